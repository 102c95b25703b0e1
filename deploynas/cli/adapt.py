"""``deploynas adapt``: a trained network of one's own, cut until it keeps its limits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploynas.cli.asked import (
    LatencyMs,
    Limits,
    MaxFlops,
    MaxMemory,
    MaxParams,
    RecipeName,
    RecipeSet,
    budget_of,
    recipe_changes,
)
from deploynas.cli.console import Json, Quiet, print_json, progress, say, warn, warn_notes

if TYPE_CHECKING:
    from deploynas.workflows.adapting import Adapted

KINDS = {"width": "channels", "depth": "parts that can be left out", "kernel": "kernels"}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("adapt")(adapt)


def adapt(
    model: Annotated[
        str,
        typer.Argument(help="file.py:function, torchvision:NAME or timm:NAME. A file is run."),
    ],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Images: a folder, or IDX files.")
    ] = None,
    latency_ms: LatencyMs = None,
    max_flops: MaxFlops = None,
    max_params: MaxParams = None,
    max_memory: MaxMemory = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Of the weights: 5MB.")
    ] = None,
    limits: Limits = None,
    device_name: Annotated[str, typer.Option("--device", help="That measures.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads inside one operator.", min=1)] = 1,
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint in the library's own names; random ones.")
    ] = None,
    resolution: Annotated[
        str, typer.Option(metavar="PX|HxW", help="Of the images that it takes.")
    ] = "224",
    mean: Annotated[
        str | None,
        typer.Option(help="That it takes off: 0.485,0.456,0.406; else its library's, the data's."),
    ] = None,
    std: Annotated[str | None, typer.Option(help="That it divides by; likewise.")] = None,
    keep: Annotated[
        str, typer.Option(metavar="A,B", help="Modules that stay whole: features.0,*.se")
    ] = "",
    evaluations: Annotated[
        int, typer.Option(metavar="N", help="Networks that are judged.", min=8)
    ] = 200,
    importance: Annotated[
        str, typer.Option(help="Which channels stay: taylor, or magnitude.")
    ] = "taylor",
    no_finetune: Annotated[
        bool, typer.Option("--no-finetune", help="Leave the weights as they are cut.")
    ] = False,
    distil: Annotated[
        bool, typer.Option("--distil", help="Train on the original's answers as well.")
    ] = False,
    beside: Annotated[
        bool, typer.Option("--beside", help="Train the uniformly narrowed original as well.")
    ] = False,
    epochs: Annotated[float | None, typer.Option(metavar="N", help="Of its training.")] = None,
    recipe_name: RecipeName = "small",
    recipe_set: RecipeSet = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of every draw.")] = 0,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what can be chosen, and why the rest stays.")
    ] = False,
    output: Annotated[Path | None, typer.Option(metavar="RUN", help="Run directory.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Cut a trained network until it keeps its limits, and train what is left; goes on too."""
    from deploynas.errors import InvalidInputError
    from deploynas.spaces import Resolution
    from deploynas.workflows.adapt import explained, read_network

    side = Resolution.of(resolution)
    if explain:
        with progress(quiet) as on_progress:
            on_progress("reading the network", 0.0)
            document = explained(read_network(model, weights, side))
            on_progress("reading the network", 1.0)
        if as_json:
            return print_json(document)
        _explain(document)
        return None
    if data is None:
        raise InvalidInputError(
            "images are needed that judge what is cut: pass --data DIR",
            f"or see what could be: deploynas adapt {model} --explain",
        )
    if importance not in ("taylor", "magnitude"):
        raise InvalidInputError(f"--importance is taylor or magnitude, got {importance!r}")
    typed = [*(limits or []), *([f"weight_bytes={max_size}"] if max_size else [])]
    budget = budget_of(latency_ms, max_flops, max_params, max_memory, typed)

    from deploynas.artifacts import EXPORTS, RUNS
    from deploynas.device import open_device
    from deploynas.workflows.adapt import open_module, prepared_data
    from deploynas.workflows.adapting import AdaptPlan, prepared
    from deploynas.workflows.adapting import adapt as adapted
    from deploynas.workflows.target import Tell

    name = "adapt-" + re.sub(r"[^\w.-]+", "-", Path(model).name)
    run = output or RUNS / name
    plan = AdaptPlan(
        model, budget, evaluations, importance, not no_finetune, distil, epochs,
        recipe_changes(recipe_name, recipe_set), beside, seed,
    )  # fmt: skip

    def note(text: str) -> None:
        if not quiet:
            say(text, as_json=True)

    device = open_device(device_name, threads)
    with progress(quiet) as on_progress:
        tell = Tell(on_progress, note)
        module = open_module(model, weights)
        if weights is None and not model.partition(":")[0].endswith(".py"):
            warn(f"{model} has random weights: pass its own with --weights")
        dataset = prepared_data(module, model, data, side, (mean, std), note)
        kept = [one.strip() for one in keep.split(",") if one.strip()]
        reading = prepared(module, side, dataset, kept, plan, run, tell)
        result = adapted(module, reading, dataset, device, plan, run, EXPORTS / run.name, tell)
    warn_notes(device)
    if as_json:
        return print_json({**result.model_dump(mode="json"), "run": str(run)})
    _print(result, run)
    return None


def _print(result: Adapted, run: Path) -> None:
    say(f"{'':<20}{'accuracy':>9}{'ms':>9}{'(95 %)':>18}{'M MACs':>9}{'M params':>10}")
    for row in result.rows:
        say(
            f"{row.name:<20}{row.accuracy:>9.2%}{row.latency_ms:>9.3f}"
            f"{f'{row.latency_low_ms:.3f}-{row.latency_high_ms:.3f}':>18}"
            f"{row.macs / 1e6:>9.1f}{row.params / 1e6:>10.2f}"
        )
    say("accuracy: validation images; of all but the original batch norms are recalibrated")
    last, limit = result.rows[-1], result.budget.latency_ms
    if limit is not None and result.predicted_ms is not None:
        say(
            f"{last.latency_ms / limit:.1%} of {limit:g} ms; predicted "
            f"{result.predicted_ms:.3f} ms +-{result.prediction_error:.1%} before it was measured"
        )
    say(f"test accuracy of what was exported: {result.test_accuracy:.2%}")
    say(
        f"{result.num_evaluations} networks judged, {result.num_measured} measured; "
        + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items())
    )
    say(f"saved in {run} and {result.export}; next: deploynas check {result.export}")


def _explain(document: dict[str, Any]) -> None:
    sides = "x".join(map(str, document["input"]))
    say(
        f"{document['network']}, input {sides}: {document['macs'] / 1e6:,.1f} M MACs, "
        f"{document['params'] / 1e6:,.2f} M parameters; narrowest "
        f"{document['macs_narrowest'] / 1e6:,.1f} M MACs"
    )
    for kind, title in KINDS.items():
        groups = [one for one in document["groups"] if one["kind"] == kind]
        say(f"{title}: {len(groups)}")
        for one in groups:
            options = "" if kind == "depth" else _listed(one["options"])
            say(f"  {one['name']:<48} {options}".rstrip())
    say(f"frozen: {len(document['frozen'])}")
    for one in document["frozen"]:
        say(f"  {one['name']:<48} {one['reason']}")


def _listed(options: list[int]) -> str:
    if len(options) <= 4:
        return ", ".join(map(str, options))
    return f"{options[0]}, {options[1]} ... {options[-1]}"
