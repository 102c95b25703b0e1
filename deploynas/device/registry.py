"""Devices by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from deploynas.device.base import Device, Identity
from deploynas.device.fleet import Fleet
from deploynas.device.local import LocalDevice
from deploynas.device.named import NamedDevices
from deploynas.device.remote import RemoteDevice, command_of
from deploynas.errors import (
    DeploynasError,
    DeviceError,
    DeviceMismatchError,
    InvalidInputError,
    UnknownNameError,
)
from deploynas.runtimes import DEFAULT, RUNTIMES, by_device, that_travels

REACHED = ("exec", "ssh")  # elsewhere: exec:COMMAND, ssh:HOST


def device_names() -> list[str]:
    """Devices of this machine: those of every runtime."""
    return list(by_device())


def open_device(
    name: str, threads: int = 1, provider: str | None = None, runtime: str | None = None
) -> Device:
    """A device that a person named.

    Args:
        name: One of :func:`device_names`, ``exec:COMMAND``, ``ssh:HOST``, a name that the user
            gave one, or several of these with commas between them: a fleet of one kind.
        threads: Threads inside one operator.
        provider: What executes, where the runtime has several.
        runtime: Of a device elsewhere, by default ONNX Runtime; a device of this machine has
            its own.

    Raises:
        UnknownNameError: No such device, runtime or provider.
        InvalidInputError, MissingDependencyError: This machine cannot run it so.
        DeviceMismatchError: A fleet's devices are not of one kind.
    """
    if "," in name and not name.startswith("exec:"):
        names = [one.strip() for one in name.split(",") if one.strip()]
        if len(set(names)) < len(names) or len(names) < 2:
            raise InvalidInputError(f"--device {name!r}: a fleet is two or more different devices")
        return Fleet({one: open_device(one, threads, provider, runtime) for one in names})
    here = by_device()
    if name in here:
        if runtime is not None and RUNTIMES.load(runtime) is not here[name]:
            own = ", ".join(RUNTIMES.load(runtime).devices)
            raise InvalidInputError(
                f"the device {name} runs {here[name].name}, not {runtime}", f"try --device {own}"
            )
        return LocalDevice(name, threads, provider)
    known = NamedDevices.load()
    reached = known.devices.get(name, name)
    if reached.partition(":")[0] not in REACHED or ":" not in reached:
        names = [*here, *(f"{kind}:..." for kind in REACHED), *known.devices]
        raise UnknownNameError("device", name, names)
    chosen = that_travels(runtime or DEFAULT)
    device = RemoteDevice(name, command_of(reached), chosen, threads, provider)
    if name == reached and name not in known.typed:
        with contextlib.suppress(OSError, DeploynasError):
            known.with_typed(name).save()
    return device


def open_same(
    identity: Identity, threads: int | None = None, provider: str | None = None
) -> Device:
    """The device that a file's ``identity`` is of, set up as there but for what is given.

    A file may come from anywhere, so that a command in it is run only where a person gave it a
    name here, or typed it here before.

    Raises:
        DeviceMismatchError: This machine has no such provider or device, or fewer cores.
        MissingDependencyError: Something must be installed first; says what.
    """
    name = identity.name
    known = NamedDevices.load()
    here = by_device()
    if name not in (*here, *known.devices, *known.typed):
        raise DeviceMismatchError(
            f"measured on {identity.title}, of which this machine knows nothing",
            f"if you trust it, name it: deploynas devices add {name.partition(':')[0]} ..., or "
            "pass --device",
        )
    runtime = here[identity.device].name if identity.device in here else None
    try:
        return open_device(
            name, threads or identity.threads, provider or identity.provider, runtime
        )
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
    except (DeviceError, DeviceMismatchError) as error:
        if "reached" in identity.recorded:
            on_note(f"{error}; what it would measure is predicted only")
    except DeploynasError:
        pass
    return None
