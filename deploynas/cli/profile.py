"""``deploynas profile``: measure a space's layers on a device."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from deploynas.cli.console import Json, Quiet, SpaceName, Threads, print_json, progress, say, warn


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("profile")(profile)


def profile(
    device: Annotated[str, typer.Option(help="Device to profile.")] = "cpu",
    space_name: SpaceName = "mobile-small",
    data: Annotated[Path | None, typer.Option(help="Data set that fixes the space.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Without --data.")] = None,
    in_channels: Annotated[int | None, typer.Option(help="Without --data.")] = None,
    resolution: Annotated[list[int] | None, typer.Option(help="May be repeated.")] = None,
    threads: Threads = 1,
    provider: Annotated[str | None, typer.Option(help="Execution provider.")] = None,
    output: Annotated[Path | None, typer.Option(help="Profile file.")] = None,
    budget_minutes: Annotated[float, typer.Option(help="Stop measuring after this.")] = math.inf,
    resume: Annotated[
        bool, typer.Option("--resume", help="Always on: a run goes on where it was.")
    ] = True,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure what the profile lacks of a space: layers, then calibration networks."""
    from deploynas.profile import open_device, profile_space
    from deploynas.spaces import space

    target = open_device(device, threads, provider)
    if data is not None or (num_classes is None and in_channels is None):
        # no data named: the space of the default data set
        from deploynas.data import load_dataset, resolutions_for

        dataset = load_dataset(data)
        for text in dataset.warnings:
            warn(text)
        sides = resolution or list(resolutions_for(dataset.size))
        if space_name.startswith("ofa-") and resolution is None and data is None:
            chosen = space(space_name)
        else:
            chosen = space(space_name, dataset.num_classes, dataset.channels, sides)
    else:
        chosen = space(space_name, num_classes, in_channels or 3, resolution)
    suffix = f"-t{threads}" if threads > 1 else ""
    path = output or Path("profiles") / f"{device}{suffix}.json"
    with progress(quiet) as on_progress:
        result, num_measured = profile_space(
            chosen, target, path, budget_minutes=budget_minutes, on_progress=on_progress
        )
    from deploynas.profile.device_profile import space_key

    validation = result.validations[space_key(chosen, "fp32")]
    if as_json:
        return print_json(
            {
                "path": str(path),
                "num_layers": len(result.layers),
                "num_measured": num_measured,
                "device": result.identity.model_dump(),
                "validation": validation.model_dump(),
            }
        )
    say(f"{result.identity.title}")
    say(f"{num_measured} layers measured now, {len(result.layers)} in {path}")
    say(
        f"latency model, held out on {validation.num_networks} networks: mean error "
        f"{validation.mape:.1%}, within 5 %: {validation.within_5_percent:.0%}, Kendall tau "
        f"{validation.kendall_tau:.3f}, noise floor {validation.noise_floor:.1%}"
    )
    say("next: deploynas search --latency-ms 10")
    return None
