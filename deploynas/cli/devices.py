"""``deploynas devices``: what this machine can run, and what it takes to run more."""

from __future__ import annotations

from typing import Annotated

import typer

from deploynas.cli.console import Json, Quiet, print_json, say


def register(app: typer.Typer) -> None:
    """Add the verb."""
    group = typer.Typer(invoke_without_command=True, callback=devices)
    group.command("install")(install)
    app.add_typer(group, name="devices")


def devices(context: typer.Context, as_json: Json = False, quiet: Quiet = False) -> None:
    """List the devices of this machine, with their identity."""
    if context.invoked_subcommand:
        return None
    from deploynas.device import DEVICE_NAMES, Identity, open_device
    from deploynas.errors import DeploynasError

    found: list[Identity] = []
    missing: dict[str, str] = {}
    for name in DEVICE_NAMES:
        try:
            found.append(open_device(name).identity)
        except DeploynasError as error:
            missing[name] = str(error)
    if as_json:
        return print_json({"devices": [i.model_dump() for i in found], "missing": missing})
    for identity in found:
        say(f"{identity.device:14}{identity.title}")
    for name, reason in missing.items():
        say(f"{name:14}not ready: {reason}")
    return None


def install(
    name: Annotated[str, typer.Argument(help="web: onnxruntime-web, by npm.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Install what a device needs, for this user."""
    from deploynas.device.web import install_runtime
    from deploynas.errors import UnknownNameError

    if name != "web":
        raise UnknownNameError("device to install", name, ["web"])
    if not quiet:
        say("asking npm for onnxruntime-web (some 35 MB) ...", as_json=True)
    folder, installed = install_runtime()
    if as_json:
        return print_json({"path": str(folder), "installed": installed})
    say(f"onnxruntime-web is {'now' if installed else 'already'} in {folder}")
    say("next: deploynas profile --device web")
    return None
