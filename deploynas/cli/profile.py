"""``deploynas profile``: measure a space's layers on a device."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploynas.cli.console import (
    USUAL_SPACE,
    Json,
    PrecisionName,
    Quiet,
    Resolutions,
    RuntimeName,
    SpaceName,
    Threads,
    as_precision,
    open_data,
    print_json,
    progress,
    reach,
    say,
    warn,
    warn_notes,
)

if TYPE_CHECKING:
    from deploynas.device import Device
    from deploynas.profile.bundle import OnDevice
    from deploynas.profile.device_profile import Precision
    from deploynas.spaces import SearchSpace


def register(app: typer.Typer) -> None:
    """Add the verb."""
    group = typer.Typer(invoke_without_command=True, callback=profile)
    group.command("validate")(validate)
    app.add_typer(group, name="profile")


def profile(
    context: typer.Context,
    device: Annotated[
        str,
        typer.Option(help="cpu, web, exec:COMMAND, ssh:HOST, a name of yours, or a fleet A,B."),
    ] = "cpu",
    space_name: SpaceName = USUAL_SPACE,
    data: Annotated[Path | None, typer.Option(help="Data set that fixes the space.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Without --data.")] = None,
    in_channels: Annotated[int | None, typer.Option(help="Without --data.")] = None,
    resolution: Resolutions = None,
    threads: Threads = 1,
    precision_name: PrecisionName = "fp32",
    provider: Annotated[str | None, typer.Option(help="Execution provider.")] = None,
    runtime: RuntimeName = None,
    output: Annotated[Path | None, typer.Option(help="Profile file.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Measure nothing: write a file that does, with Python.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--import", help="Read what a bundle measured.")
    ] = None,
    sources: Annotated[
        list[Path] | None,
        typer.Option(
            "--from", help="A profile of another device, to start from; repeat for several."
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Whole networks to measure with --from; 10 by default.")
    ] = None,
    budget_minutes: Annotated[float, typer.Option(help="Stop measuring after this.")] = math.inf,
    operators: Annotated[
        bool,
        typer.Option("--operators", help="Of any network, for files that no space built."),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure what the profile lacks of a space: layers, then calibration networks."""
    if context.invoked_subcommand:
        return None
    import numpy as np

    from deploynas.artifacts import PROFILES
    from deploynas.device import open_device
    from deploynas.errors import InvalidInputError, require_positive
    from deploynas.profile import DeviceProfile, LatencyModel, profile_space
    from deploynas.profile.bundle import OnDevice, read_results
    from deploynas.profile.from_others import USUAL, transfer_space
    from deploynas.profile.shipped import is_shipped, locate
    from deploynas.runtimes import DEFAULT

    if budget_minutes != math.inf:
        require_positive(budget_minutes, "--budget-minutes")
    if output is not None and is_shipped(output):
        raise InvalidInputError(
            f"{output}: a profile that ships is only read", "name another file"
        )
    if samples is not None and not sources:
        raise InvalidInputError("--samples counts the networks of --from, which is not given")
    if sources and (bundle is not None or results is not None):
        raise InvalidInputError("give --from without --bundle or --import")
    lent = {one: DeviceProfile.read(locate(one)) for one in sources or ()}
    precision = as_precision(precision_name)
    if operators and (bundle or results or precision != "fp32"):
        raise InvalidInputError(
            "--operators measures in fp32, on a device that is reached now",
            "leave out --bundle, --import and --precision",
        )
    if bundle is not None:
        if results is not None:
            raise InvalidInputError("give one of --bundle and --import")
        chosen = choose_space(space_name, data, num_classes, in_channels, resolution)
        on_device = OnDevice(runtime or DEFAULT, threads, provider)
        return _bundle(bundle, chosen, precision, on_device, budget_minutes, as_json)
    target: Device
    if results is not None:
        chosen, precision, target = read_results(results)
        name = results.name.removesuffix(".jsonl").removesuffix(".results")
        threads = target.identity.threads
    else:
        target = reach(open_device(device, threads, provider, runtime), device, quiet)
        if not operators:
            chosen = choose_space(space_name, data, num_classes, in_channels, resolution)
        name = re.sub(r"[^\w.@-]+", "-", device)[:60]
    suffix = f"-t{threads}" if threads > 1 else ""
    path = output or PROFILES / f"{name}{suffix}.json"
    if operators:
        return _operators(target, path, budget_minutes, as_json, quiet)
    with progress(quiet) as on_progress:
        if lent:
            result, num_measured = transfer_space(
                chosen, target, path, lent, samples or USUAL, precision=precision,
                on_progress=on_progress,
            ), 0  # fmt: skip
        else:
            result, num_measured = profile_space(
                chosen, target, path, precision=precision, budget_minutes=budget_minutes,
                on_progress=on_progress,
            )  # fmt: skip
    from deploynas.profile.device_profile import space_key

    warn_notes(target)
    validation = result.validations[space_key(chosen, precision)]
    model = LatencyModel(chosen, result, precision)
    if as_json:
        return print_json(
            {
                "path": str(path),
                "num_layers": len(result.layers),
                "num_measured": num_measured,
                "device": result.identity.model_dump(),
                "notes": list(target.notes),
                "validation": validation.model_dump(),
                "bound": vars(model.bound),
                "transferred_from": result.sources(chosen, precision),
            }
        )
    say(f"{result.identity.title}")
    if basis := result.basis(chosen, precision):
        say(f"{path}: {basis}; stated error {validation.margin:.1%}")
    else:
        say(f"{num_measured} layers measured now, {len(result.layers)} in {path}")
    say(
        f"latency model, held out on {validation.num_networks} networks: mean error "
        f"{validation.mape:.1%}, within 5 %: {validation.within_5_percent:.0%}, Kendall tau "
        f"{validation.kendall_tau:.3f}, noise floor {validation.noise_floor:.1%}"
    )
    say(f"bound of a prediction where nothing is measured again: {model.bound.words}")
    ends = model.predict_ms(np.concatenate([chosen.smallest(), chosen.largest()]))
    say(f"networks of {chosen.name} take {ends[0]:.3g} to {ends[1]:.3g} ms here")
    middle = f"{float(np.sqrt(ends[0] * ends[1])):.2g}"
    named = "" if path == PROFILES / "cpu.json" else f" --profile {path}"
    how = "" if chosen.argument == USUAL_SPACE else f" --space {chosen.argument}"
    how += "" if precision == "fp32" else f" --precision {precision}"
    how += f" --strategy {chosen.strategy}" if chosen.strategy else ""
    if data or (chosen.strategy and chosen.num_classes == 1000):
        how += f" --data {data or 'DIR'}"
    say(f"next: deploynas search{how} --latency-ms {middle}{named}")
    return None


def _operators(
    device: Device, path: Path, budget_minutes: float, as_json: bool, quiet: bool
) -> None:
    from deploynas.profile.operators import BUDGET_MINUTES, profile_operators

    with progress(quiet) as on_progress:
        result, num_measured = profile_operators(
            device, path, budget_minutes=min(budget_minutes, BUDGET_MINUTES),
            on_progress=on_progress,
        )  # fmt: skip
    warn_notes(device)
    validation = result.operator_validation
    assert validation is not None
    if as_json:
        return print_json(
            {
                "path": str(path),
                "num_fragments": len(result.fragments),
                "num_measured": num_measured,
                "device": result.identity.model_dump(),
                "notes": list(device.notes),
                "validation": validation.model_dump(),
            }
        )
    say(f"{result.identity.title}")
    say(f"{num_measured} fragments measured now, {len(result.fragments)} in {path}")
    say(
        f"held out on {validation.num_networks} networks: mean error {validation.mape:.1%}, 95 % "
        f"within {validation.margin:.1%}, noise floor {validation.noise_floor:.1%}"
    )
    say(f"next: deploynas inspect MODEL.onnx --profile {path}")
    return None


def _bundle(
    path: Path, space: SearchSpace, precision: Precision, device: OnDevice, minutes: float,
    as_json: bool,
) -> None:  # fmt: skip
    from deploynas.profile.bundle import write_bundle
    from deploynas.runtimes import that_travels

    num_models, size = write_bundle(
        path, space, precision=precision, device=device, budget_minutes=minutes
    )
    package = that_travels(device.runtime).package
    if as_json:
        return print_json({"bundle": str(path), "num_models": num_models, "bytes": size})
    say(f"{path}: {num_models} models of {space.name}, {size / 1e6:.1f} MB")
    say(f"on the device (Python 3.9 or newer, numpy, {package}): python3 {path.name}")
    say(f"then here: deploynas profile --import {path.stem}.results.jsonl")
    return None


def choose_space(
    name: str,
    data: Path | None,
    num_classes: int | None,
    in_channels: int | None,
    resolutions: list[str] | None,
) -> SearchSpace:
    """The space to profile: by numbers, as published, or as the data or its default needs it."""
    from deploynas.data import space_for
    from deploynas.spaces import is_known, space

    given = num_classes is not None or in_channels is not None
    is_published = is_known(name) and space(name).num_classes == 1000
    if data is None and (given or is_published):
        channels = 3 if in_channels is None else in_channels
        return space(name, num_classes, channels, resolutions)
    return space_for(name, open_data(data, space_name=name, resolutions=resolutions), resolutions)


def validate(
    path: Annotated[
        Path | None, typer.Argument(metavar="PROFILE", help="Device profile; the newest.")
    ] = None,
    space_name: Annotated[
        str | None, typer.Option("--space", help="Where the profile holds several.")
    ] = None,
    precision_name: PrecisionName = "fp32",
    num_networks: Annotated[int, typer.Option(help="Fresh networks.", min=4)] = 40,
    seed: Annotated[int, typer.Option(help="Of the networks.", min=0)] = 20_001,
    picture: Annotated[
        Path | None, typer.Option(help="PNG file; beside the profile by default.")
    ] = None,
    budget_minutes: Annotated[
        float, typer.Option(help="Begin no more sessions than needed after so long.")
    ] = 2.5,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure fresh random networks now and compare them with their predictions."""
    from deploynas.artifacts import PROFILES, ensure_writable, newest
    from deploynas.device import open_same
    from deploynas.errors import IncompleteProfileError, UnknownNameError, require_positive
    from deploynas.profile import DeviceProfile, LatencyModel
    from deploynas.profile.shipped import is_shipped, locate
    from deploynas.profile.validate import RULE, fresh_archs, profiled_spaces
    from deploynas.profile.validate import validate as run_validation
    from deploynas.report.validation import draw_validation
    from deploynas.spaces.tables import SUFFIX

    require_positive(budget_minutes, "--budget-minutes")
    hint = "make one: deploynas profile --device cpu"
    path = locate(path or newest("*.json", PROFILES, "device profile", hint))
    result = DeviceProfile.read(path)
    precision = as_precision(precision_name)
    own = space_name if space_name is not None and space_name.endswith(SUFFIX) else None
    spaces = {s.argument: s for s in profiled_spaces(result, precision, own)}
    if own is not None and own not in spaces:
        raise IncompleteProfileError(
            f"{path} holds no calibration of {own} as it is now in {precision}",
            f"add it: deploynas profile --space {own} --output {path}",
        )
    if not spaces:
        raise IncompleteProfileError(
            f"{path} holds no calibrated space in {precision}",
            f"{hint}; of a table of your own: --space FILE{SUFFIX}",
        )
    if space_name is not None and space_name not in spaces:
        raise UnknownNameError("profiled space", space_name, list(spaces))
    chosen = spaces[space_name or list(spaces)[-1]]
    identity = result.identity
    device = reach(open_same(identity), identity.name, quiet)
    result.require_same_device(
        device.identity, path, "validate it there, or profile this one: deploynas profile"
    )
    model = LatencyModel(chosen, result, precision)
    archs = fresh_archs(chosen, result, num_networks, seed, precision)
    beside = PROFILES if is_shipped(path) else path.parent
    stem = Path(path.name.removesuffix(".gz")).stem
    drawn: Path | None = picture or beside / f"{stem}-validation.png"
    assert drawn is not None
    ensure_writable(drawn.parent)
    with progress(quiet) as on_progress:
        rule = replace(RULE, soft_seconds=budget_minutes * 60)
        judgement = run_validation(
            model, result, device, archs, rule=rule, on_progress=on_progress
        )
    table = judgement.table
    title = f"{chosen.name} at {', '.join(map(str, chosen.resolutions))} px"
    try:
        draw_validation(judgement, f"{title}\n{identity.title}", drawn)
    except ModuleNotFoundError:
        drawn = None
        warn("no picture: it needs matplotlib (pip install 'deploynas[report]')")
    warn_notes(device)
    if judgement.num_unstable:
        warn(
            f"{judgement.num_unstable} of {table.num_networks} measurements are unstable: the "
            "error is partly theirs; validate again while the machine is quiet"
        )
    document = {
        "profile": str(path),
        "space": chosen.name,
        "precision": precision,
        **table.model_dump(),
        "mean_bias": judgement.bias,
        "drift": judgement.drift,
        "worst": judgement.worst,
        "sum_of_layers_mape": judgement.sum_mape,
        "stated_error": judgement.half_width,
        "num_unstable": judgement.num_unstable,
        "picture": drawn and str(drawn),
        "notes": list(device.notes),
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
        "drift taken out": f"{judgement.drift:+.2%}, by networks of the profile measured again",
        "noise floor": f"{table.noise_floor:.2%}, {judgement.num_unstable} networks unstable",
    }
    say(f"{table.num_networks} fresh networks of {title}: {identity.title}")
    for name, value in rows.items():
        say(f"{name:21}{value}")
    if drawn:
        say(f"picture: {drawn}")
    return None
