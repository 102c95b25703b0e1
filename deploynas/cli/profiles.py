"""``deploynas profiles``: what a profile holds, and the profiles that ship with the package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploynas.cli.console import Json, Quiet, print_json, say

if TYPE_CHECKING:
    from deploynas.profile import DeviceProfile


def register(app: typer.Typer) -> None:
    """Add the verb."""
    group = typer.Typer(
        no_args_is_help=True,
        help="List the profiles that ship, for --profile shipped:NAME, or show what one holds.",
    )
    group.command("list")(list_shipped)
    group.command("show")(show)
    app.add_typer(group, name="profiles")


def list_shipped(as_json: Json = False, quiet: Quiet = False) -> None:
    """List the profiles that ship; none is ever taken unless you name it."""
    from deploynas.profile import DeviceProfile
    from deploynas.profile.shipped import PREFIX, locate, names

    rows = []
    for name in names():
        path = locate(Path(PREFIX + name))
        rows.append({"name": name, **_summary(path, DeviceProfile.read(path))})
    if as_json:
        return print_json({"profiles": rows})
    if not rows:
        say("no profile ships with this copy")
    for row in rows:
        _print(row)
    return None


def show(
    target: Annotated[
        str, typer.Argument(metavar="NAME_OR_PATH", help="A shipped profile's name, or a file.")
    ],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show whose a profile is, what it holds, and how far off its predictions are."""
    from deploynas.profile import DeviceProfile
    from deploynas.profile.shipped import PREFIX, locate
    from deploynas.profile.validate import bounds_of

    is_name = re.fullmatch(r"[\w-]+", target) and not Path(target).exists()
    path = locate(Path(PREFIX + target if is_name else target))
    profile = DeviceProfile.read(path)
    name = target if is_name else target.removeprefix(PREFIX)
    bounds = bounds_of(profile)
    transferred = {
        key: [source.device for source in transfer.sources]
        for key, transfer in profile.transfers.items()
    }
    document = {
        "name": name,
        **_summary(path, profile),
        "identity": profile.identity.model_dump(),
        "level": profile.level and profile.level.model_dump(),
        "validations": {key: table.model_dump() for key, table in profile.validations.items()},
        "bounds": {key: vars(bound) for key, bound in bounds.items()},
        "transferred_from": transferred,
    }
    if as_json:
        return print_json(document)
    _print(document)
    for key, table in profile.validations.items():
        say(
            f"  {key}, held out: mean error {table.mape:.1%}, within 5 %: "
            f"{table.within_5_percent:.0%}, Kendall tau {table.kendall_tau:.3f}, "
            f"noise floor {table.noise_floor:.1%}"
        )
        if key in bounds:
            say(f"    bound where nothing is measured again: {bounds[key].words}")
    for key, devices in transferred.items():
        say(f"  {key}, transferred: layers from {'; '.join(devices)}")
    hard = profile.identity.session_options
    for what, values in (("options", hard), ("recorded", profile.identity.recorded)):
        say(f"  {what}: {', '.join(f'{k} {v}' for k, v in values.items())}")
    return None


def _summary(path: Path, profile: DeviceProfile) -> dict[str, Any]:
    from deploynas.profile.shipped import calibrations

    held = calibrations(profile)
    return {
        "path": str(path),
        "device": profile.identity.title,
        "num_layers": len(profile.layers),
        "num_networks": sum(one.num_networks for one in held),
        "spaces": [vars(one) for one in held],
        "bytes": path.stat().st_size,
    }


def _print(row: dict[str, Any]) -> None:
    say(f"{row['name']}: {row['device']}")
    say(
        f"  {row['num_layers']} layers, {row['num_networks']} networks, "
        f"{row['bytes'] / 1e3:.0f} kB"
    )
    for held in row["spaces"]:
        error = held["stated_error"]
        stated = "not validated" if error is None else f"stated error {error:.1%}"
        say(
            f"  {held['space']} {held['precision']} at "
            f"{', '.join(map(str, held['resolutions']))} px, {held['num_classes']} classes, "
            f"{held['in_channels']} channel{'s' * (held['in_channels'] > 1)}: {stated}"
        )
