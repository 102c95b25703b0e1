"""``deploynas devices``: what this machine can run."""

from __future__ import annotations

import typer

from deploynas.cli.console import Json, Quiet, print_json, say


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("devices")(devices)


def devices(as_json: Json = False, quiet: Quiet = False) -> None:
    """List the devices of this machine, with their identity."""
    from deploynas.device import CpuDevice

    found = [CpuDevice().identity]
    if as_json:
        return print_json({"devices": [identity.model_dump() for identity in found]})
    for identity in found:
        say(f"{identity.device:6} {identity.title}")
    return None
