"""``deploynas retrain``: train the chosen subnet further, or anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploynas.cli.asked import RecipeName, RecipeSet, recipe_changes
from deploynas.cli.console import Json, Quiet, print_json, progress, say, warn


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("retrain")(retrain)


def retrain(
    run: Annotated[Path | None, typer.Argument(help="Run of a search; the newest.")] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="New weights, not the supernet's.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="Images of your own classes; or where the data moved to.")
    ] = None,
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
    recipe_name: RecipeName = "small",
    recipe_set: RecipeSet = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the chosen network of a search on its own; export then takes these weights."""
    from deploynas.errors import require_positive
    from deploynas.workflows import retraining
    from deploynas.workflows.chosen import open_chosen, open_run
    from deploynas.workflows.recipes import FINE_TUNING, FROM_SCRATCH, for_data

    run, result = open_run(run, lambda picked: say(f"retraining {picked}", as_json=as_json))
    dataset = retraining.data_for(result, data)
    for text in dataset.warnings:
        warn(text)
    is_new = dataset.fingerprint != result.data.fingerprint
    if is_new:
        say(
            f"{dataset.source} has {dataset.num_classes} classes of its own: the network gets a "
            "new classifier" if dataset.classes != result.data.classes
            else f"{dataset.source} has the same classes as {result.data.source}",
            as_json=as_json,
        )  # fmt: skip
    chosen = FROM_SCRATCH if from_scratch else FINE_TUNING
    base = chosen.model_copy(update={"seed": seed})
    recipe = for_data(base, dataset, epochs, recipe_changes(recipe_name, recipe_set))
    if learning_rate is not None:
        rate = require_positive(learning_rate, "--learning-rate")
        recipe = recipe.model_copy(update={"learning_rate": rate})
    with progress(quiet) as on_progress:
        if from_scratch:
            start = retraining.from_scratch(result, dataset, seed)
        else:
            start = retraining.for_classes(open_chosen(run, result, dataset), result, dataset)
        before = None if is_new or from_scratch else start.candidate.accuracy
        record = retraining.retrain_run(run, start, dataset, recipe, on_progress, before)
    accuracy = record.candidate.accuracy
    if as_json:
        document = record.model_dump(mode="json")
        return print_json({"run": str(run), "accuracy": accuracy, **document})
    text = f"validation accuracy {accuracy:.2%} after {recipe.epochs:g} epochs"
    if before is not None:
        text += f"; {before:.2%} with the supernet's weights"
    say(text)
    if record.candidate.predicted_latency_ms is None:
        say("its latency is not predicted: the profile holds no classifier of so many classes")
    say(f"next: deploynas export {run}")
    return None
