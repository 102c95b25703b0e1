"""Devices by name."""

from __future__ import annotations

from collections.abc import Callable

from deploynas.device.base import Device, Identity
from deploynas.device.cpu import CpuDevice
from deploynas.device.fleet import Fleet
from deploynas.device.named import NamedDevices
from deploynas.device.remote import RemoteDevice, command_of
from deploynas.device.web import HOSTS, WebDevice
from deploynas.errors import (
    DeploynasError,
    DeviceError,
    DeviceMismatchError,
    InvalidInputError,
    UnknownNameError,
)

DEVICE_NAMES = ("cpu", *HOSTS)  # of this machine
REACHED = ("exec", "ssh")  # elsewhere: exec:COMMAND, ssh:HOST


def open_device(name: str, threads: int = 1, provider: str | None = None) -> Device:
    """A device by name.

    Args:
        name: One of :data:`DEVICE_NAMES`, ``exec:COMMAND``, ``ssh:HOST``, a name that the user
            gave one, or several of these with commas between them: a fleet of one kind.
        threads: Threads inside one operator.
        provider: Execution provider of ONNX Runtime.

    Raises:
        UnknownNameError: No such device or provider.
        InvalidInputError, MissingDependencyError: This machine cannot run it so.
        DeviceMismatchError: A fleet's devices are not of one kind.
    """
    if "," in name and not name.startswith("exec:"):
        names = [one.strip() for one in name.split(",") if one.strip()]
        if len(set(names)) < len(names) or len(names) < 2:
            raise InvalidInputError(f"--device {name!r}: a fleet is two or more different devices")
        return Fleet({one: open_device(one, threads, provider) for one in names})
    if name == "cpu":
        return CpuDevice(threads, provider) if provider else CpuDevice(threads)
    if name in HOSTS:
        if provider:
            raise InvalidInputError(f"--provider is for ONNX Runtime, which {name} does not use")
        return WebDevice(name, threads)
    named = NamedDevices.load().devices
    reached = named.get(name, name)
    if reached.partition(":")[0] not in REACHED or ":" not in reached:
        known = (*DEVICE_NAMES, *(f"{kind}:..." for kind in REACHED), *named)
        raise UnknownNameError("device", name, known)
    return RemoteDevice(name, command_of(reached), threads, provider)


def open_same(
    identity: Identity, threads: int | None = None, provider: str | None = None
) -> Device:
    """The device that is set up as ``identity`` is, but for what is given.

    Raises:
        DeviceMismatchError: This machine has no such provider or device, or fewer cores.
        MissingDependencyError: Something must be installed first; says what.
    """
    own = identity.provider if identity.device == "cpu" else None
    try:
        return open_device(identity.name, threads or identity.threads, provider or own)
    except (InvalidInputError, UnknownNameError) as error:
        raise DeviceMismatchError(
            f"measured on {identity.title}, which this machine cannot run: {error}"
        ) from None


def open_attached(
    identity: Identity, on_note: Callable[[str], None] = lambda text: None
) -> Device | None:
    """The device that measured ``identity``, where it can be reached from here; else None.

    A device elsewhere that does not answer is told to ``on_note``.
    """
    try:
        device = open_same(identity)
        return None if identity.differences(device.identity) else device
    except DeviceError as error:
        on_note(f"{error}; what it would measure is predicted only")
    except DeploynasError:
        pass
    return None
