"""Devices by name."""

from __future__ import annotations

from deploynas.device.base import Device, Identity
from deploynas.device.cpu import CpuDevice
from deploynas.device.web import HOSTS, WebDevice
from deploynas.errors import (
    DeploynasError,
    DeviceMismatchError,
    InvalidInputError,
    UnknownNameError,
)

DEVICE_NAMES = ("cpu", *HOSTS)


def open_device(name: str, threads: int = 1, provider: str | None = None) -> Device:
    """A device of this machine by name.

    Args:
        name: One of :data:`DEVICE_NAMES`.
        threads: Threads inside one operator.
        provider: Execution provider of ONNX Runtime; ``cpu`` only.

    Raises:
        UnknownNameError: No such device or provider.
        InvalidInputError, MissingDependencyError: This machine cannot run it so.
    """
    if name == "cpu":
        return CpuDevice(threads, provider) if provider else CpuDevice(threads)
    if name not in HOSTS:
        raise UnknownNameError("device", name, DEVICE_NAMES)
    if provider:
        raise InvalidInputError(f"--provider is for the device cpu, not {name}")
    return WebDevice(name, threads)


def open_same(
    identity: Identity, threads: int | None = None, provider: str | None = None
) -> Device:
    """The device of this machine that is set up as ``identity`` is, but for what is given.

    Raises:
        DeviceMismatchError: This machine has no such provider, or fewer cores.
        MissingDependencyError: Something must be installed first; says what.
    """
    own = identity.provider if identity.device == "cpu" else None
    try:
        return open_device(identity.device, threads or identity.threads, provider or own)
    except (InvalidInputError, UnknownNameError) as error:
        raise DeviceMismatchError(
            f"measured on {identity.title}, which this machine cannot run: {error}"
        ) from None


def open_attached(identity: Identity) -> Device | None:
    """The device that measured ``identity``, where this machine has it; None elsewhere."""
    try:
        device = open_same(identity)
    except DeploynasError:
        return None
    return None if identity.differences(device.identity) else device
