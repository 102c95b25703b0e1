"""``deploynas devices``: what this machine can run, what it takes to run more, and boards."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from deploynas.cli.console import Json, Quiet, print_json, say, warn


def register(app: typer.Typer) -> None:
    """Add the verb."""
    group = typer.Typer(invoke_without_command=True, callback=devices)
    for command in (install, add, remove):
        group.command(command.__name__)(command)
    app.add_typer(group, name="devices")


def devices(
    context: typer.Context,
    ask: Annotated[
        bool, typer.Option("--ask", help="Reach the named devices and print who they are.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the devices of this machine, with their identity, and those that you named."""
    if context.invoked_subcommand:
        return None
    from deploynas.device import Identity, device_names, open_device
    from deploynas.device.named import NamedDevices
    from deploynas.errors import DeploynasError
    from deploynas.runtimes import RUNTIMES

    named = NamedDevices.load().devices
    found: list[Identity] = []
    missing: dict[str, str] = {}
    for name in (*device_names(), *(named if ask else ())):
        if name in named and not quiet:
            say(f"asking {name} ...", as_json=True)
        try:
            found.append(open_device(name).identity)
        except DeploynasError as error:
            missing[name] = str(error)
    if as_json:
        return print_json(
            {"devices": [i.model_dump() for i in found], "missing": missing, "named": named}
        )
    for identity in found:
        say(f"{identity.name:14}{identity.title.removeprefix(f'{identity.name}: ')}")
    for text in RUNTIMES.broken.values():
        warn(text)
    for name, reason in missing.items():
        say(f"{name:14}not ready: {reason}")
    if not ask:
        for name, reached in named.items():
            say(f"{name:14}{reached} (--ask reaches it)")
    return None


def add(
    name: Annotated[str, typer.Argument(help="What --device will call it.")],
    command: Annotated[
        str | None, typer.Option("--exec", help="Starts its Python, as: ssh pi@board python3")
    ] = None,
    host: Annotated[str | None, typer.Option("--ssh", help="Host, as ssh knows it.")] = None,
    python: Annotated[
        str | None, typer.Option(help="With --ssh: its Python, as: venv/bin/python")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Name a device, for --device of every verb."""
    from deploynas.device import device_names, open_device
    from deploynas.device.named import NamedDevices
    from deploynas.device.remote import command_of
    from deploynas.errors import DeploynasError, InvalidInputError

    if (command is None) == (host is None):
        raise InvalidInputError("give one of --exec COMMAND and --ssh HOST")
    if name in device_names():
        raise InvalidInputError(f"{name} is a device of this machine: choose another name")
    if python is not None and host is None:
        raise InvalidInputError("--python goes with --ssh; a command names its own")
    reached = f"ssh:{host} {shlex.quote(python or '')}".removesuffix(" ''")
    if command is not None:
        reached = f"exec:{command}"
    command_of(reached)
    path = NamedDevices.load().with_device(name, reached).save()
    if not quiet:
        say(f"asking {name} ...", as_json=True)
    identity = None
    try:
        identity = open_device(name).identity
    except DeploynasError as error:
        warn(f"{name} is named, but not ready: {error}")
    if as_json:
        return print_json(
            {"path": str(path), "name": name, "reached": reached,
             "device": identity and identity.model_dump()}
        )  # fmt: skip
    if identity:
        say(identity.title)
    say(f"{name} is in {path}; next: deploynas profile --device {name}")
    return None


def remove(
    name: Annotated[str, typer.Argument(help="Its name.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Forget a named device."""
    from deploynas.device.named import NamedDevices

    path = NamedDevices.load().without(name).save()
    if as_json:
        return print_json({"path": str(path), "name": name})
    say(f"{name} is no longer in {path}")
    return None


def install(
    name: Annotated[str, typer.Argument(help="A device of this machine, as: web.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Install what a device needs, for this user."""
    from deploynas.errors import UnknownNameError
    from deploynas.runtimes import by_device

    known = {device: runtime for device, runtime in by_device().items() if runtime.installs}
    if name not in known:
        raise UnknownNameError("device to install", name, known)
    runtime = known[name]
    if not quiet:
        say(f"installing {runtime.installs} ...", as_json=True)
    folder, installed = runtime.install()
    if as_json:
        return print_json({"path": str(folder), "installed": installed})
    say(f"{runtime.name} is {'now' if installed else 'already'} in {folder}")
    say(f"next: deploynas profile --device {name}")
    return None
