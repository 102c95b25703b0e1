"""``deploynas retrain``: train the chosen subnet further, or anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploynas.cli.console import Json, Quiet, print_json, progress, say


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("retrain")(retrain)


def retrain(
    run: Annotated[Path | None, typer.Argument(help="Run of a search; the newest.")] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="New weights, not the supernet's.")
    ] = False,
    data: Annotated[Path | None, typer.Option(help="Where the data moved to.")] = None,
    epochs: Annotated[
        float | None,
        typer.Option(
            help="3, or 12 from scratch; more over a small data set.", show_default=False
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak; 0.1.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of order and weights.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the chosen network of a search on its own; export then takes these weights."""
    from deploynas.errors import require_positive
    from deploynas.workflows import steps

    run, result, dataset = steps.open_run(
        run, data, lambda picked: say(f"retraining {picked}", as_json=as_json)
    )
    chosen = steps.FROM_SCRATCH if from_scratch else steps.FINE_TUNING
    changes: dict[str, float] = {"seed": seed}
    if epochs is None:
        changes |= steps.lengthened(chosen, dataset)
    else:
        changes["epochs"] = require_positive(epochs, "--epochs")
    if learning_rate is not None:
        changes["learning_rate"] = require_positive(learning_rate, "--learning-rate")
    recipe = chosen.model_copy(update=changes)
    with progress(quiet) as on_progress:
        if from_scratch:
            start = steps.from_scratch(result, dataset, seed)
        else:
            supernet = steps.open_supernet(Path(result.supernet), dataset)
            start = steps.inherited(result.best, supernet)
        record = steps.retrain_run(run, start, recipe, on_progress)
    if as_json:
        return print_json({"run": str(run), **record.model_dump()})
    say(
        f"validation accuracy {record.accuracy:.2%} after {recipe.epochs:g} epochs; "
        f"{record.accuracy_before:.2%} with the supernet's weights"
    )
    say(f"next: deploynas export {run}")
    return None
