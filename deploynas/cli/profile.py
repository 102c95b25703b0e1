"""``deploynas profile``: measure a space's layers on a device."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from deploynas.cli.console import Json, Quiet, SpaceName, Threads, print_json, progress, say, warn

PROFILES = Path("profiles")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    group = typer.Typer(invoke_without_command=True, callback=profile)
    group.command("validate")(validate)
    app.add_typer(group, name="profile")


def profile(
    context: typer.Context,
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
    if context.invoked_subcommand:
        return None
    import numpy as np

    from deploynas.device import open_device
    from deploynas.errors import require_positive
    from deploynas.profile import LatencyModel, profile_space
    from deploynas.spaces import space

    if budget_minutes != math.inf:
        require_positive(budget_minutes, "--budget-minutes")
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
    path = output or PROFILES / f"{device}{suffix}.json"
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
    model = LatencyModel(chosen, result)
    ends = model.predict_ms(np.concatenate([chosen.smallest(), chosen.largest()]))
    say(f"networks of {chosen.name} take {ends[0]:.3g} to {ends[1]:.3g} ms here")
    middle = f"{float(np.sqrt(ends[0] * ends[1])):.2g}"
    named = "" if path == PROFILES / "cpu.json" else f" --profile {path}"
    say(f"next: deploynas search --latency-ms {middle}{named}")
    return None


def validate(
    path: Annotated[
        Path | None, typer.Argument(metavar="PROFILE", help="Device profile; the newest.")
    ] = None,
    space_name: Annotated[
        str | None, typer.Option("--space", help="Where the profile holds several.")
    ] = None,
    num_networks: Annotated[int, typer.Option(help="Fresh networks.", min=4)] = 40,
    seed: Annotated[int, typer.Option(help="Of the networks.", min=0)] = 20_001,
    picture: Annotated[
        Path | None, typer.Option(help="PNG file; beside the profile by default.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure fresh random networks now and compare them with their predictions."""
    from deploynas.artifacts import ensure_writable, newest
    from deploynas.device import open_device
    from deploynas.errors import (
        DeviceMismatchError,
        IncompleteProfileError,
        InvalidInputError,
        UnknownNameError,
    )
    from deploynas.profile import DeviceProfile, LatencyModel
    from deploynas.profile.validate import fresh_archs, profiled_spaces
    from deploynas.profile.validate import validate as run_validation
    from deploynas.report.validation import draw_validation

    hint = "make one: deploynas profile --device cpu"
    path = path or newest("*.json", PROFILES, "device profile", hint)
    result = DeviceProfile.read(path)
    spaces = {s.name: s for s in profiled_spaces(result)}
    if not spaces:
        raise IncompleteProfileError(f"{path} holds no calibrated space", hint)
    if space_name is not None and space_name not in spaces:
        raise UnknownNameError("profiled space", space_name, list(spaces))
    chosen = spaces[space_name or list(spaces)[-1]]
    identity = result.identity
    provider = identity.provider if identity.device == "cpu" else None
    try:
        device = open_device(identity.device, identity.threads, provider)
    except (InvalidInputError, UnknownNameError) as error:
        raise DeviceMismatchError(
            f"{path} was measured on {identity.title}, which this machine cannot run: {error}"
        ) from None
    result.require_same_device(
        device.identity, path, "validate it there, or profile this one: deploynas profile"
    )
    model = LatencyModel(chosen, result)
    archs = fresh_archs(chosen, result, num_networks, seed)
    drawn: Path | None = picture or path.with_name(f"{path.stem}-validation.png")
    assert drawn is not None
    ensure_writable(drawn.parent)
    with progress(quiet) as on_progress:
        judgement = run_validation(model, result, device, archs, on_progress=on_progress)
    table = judgement.table
    title = f"{chosen.name} at {', '.join(map(str, chosen.resolutions))} px"
    try:
        draw_validation(judgement, f"{title}\n{identity.title}", drawn)
    except ModuleNotFoundError:
        drawn = None
        warn("no picture: it needs matplotlib (pip install 'deploynas[report]')")
    if judgement.num_unstable:
        warn(
            f"{judgement.num_unstable} of {table.num_networks} measurements are unstable: the "
            "error is partly theirs; validate again while the machine is quiet"
        )
    document = {
        "profile": str(path),
        "space": chosen.name,
        **table.model_dump(),
        "mean_bias": judgement.bias,
        "worst": judgement.worst,
        "sum_of_layers_mape": judgement.sum_mape,
        "stated_error": judgement.half_width,
        "num_unstable": judgement.num_unstable,
        "picture": drawn and str(drawn),
    }
    if as_json:
        return print_json(document)
    rows = {
        "mean absolute error": f"{table.mape:.2%} (bias {judgement.bias:+.2%})",
        "sum of layers alone": f"{judgement.sum_mape:.2%}",
        "within 5 %": f"{table.within_5_percent:.0%}, worst {judgement.worst:.2%}",
        "Kendall tau": (
            f"{table.kendall_tau:.3f} ({table.kendall_tau_low:.3f}-{table.kendall_tau_high:.3f})"
        ),
        "95 % residual": f"{table.residual_95:.2%}, the model states {judgement.half_width:.2%}",
        "noise floor": f"{table.noise_floor:.2%}, {judgement.num_unstable} networks unstable",
    }
    say(f"{table.num_networks} fresh networks of {title}: {identity.title}")
    for name, value in rows.items():
        say(f"{name:21}{value}")
    if drawn:
        say(f"picture: {drawn}")
    return None
