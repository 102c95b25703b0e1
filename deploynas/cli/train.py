"""``deploynas train``: a supernet on images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploynas.cli.asked import RecipeName, RecipeSet, recipe_changes
from deploynas.cli.console import (
    USUAL_SPACE,
    Json,
    Quiet,
    Resolutions,
    SpaceName,
    open_data,
    print_json,
    progress,
    say,
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("train")(train)


def train(
    space_name: SpaceName = USUAL_SPACE,
    data: Annotated[Path | None, typer.Option(help="Image folder or IDX files.")] = None,
    resolution: Resolutions = None,
    output: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/supernet"),
    epochs: Annotated[
        float | None,
        typer.Option(
            help="Passes over the images; 4, more over a small data set.", show_default=False
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="sandwich, progressive (shrinking as published) or single-path; the space's own.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of order, subnets and weights.")] = 0,
    recipe_name: RecipeName = "small",
    recipe_set: RecipeSet = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a supernet: sandwich rule with in-place distillation, progressive, or single paths."""
    from deploynas.data import space_for
    from deploynas.errors import UnknownNameError
    from deploynas.train import SCHEDULES
    from deploynas.train.distributed import is_first, processes
    from deploynas.workflows import supernets
    from deploynas.workflows.recipes import supernet_recipe

    if schedule is not None and schedule not in SCHEDULES:
        raise UnknownNameError("schedule", schedule, SCHEDULES)

    dataset = open_data(data, space_name=space_name, resolutions=resolution)
    chosen = space_for(space_name, dataset, resolution)
    settings = supernet_recipe(
        chosen, dataset, epochs, seed, schedule, recipe_changes(recipe_name, recipe_set)
    )
    with processes():
        talks = is_first()
        with progress(quiet or not talks) as on_progress:
            supernets.train(chosen, dataset, output, settings, on_progress)
    if not talks:
        return None
    if as_json:
        return print_json({"run": str(output), "space": chosen.spec})
    say(f"supernet of {chosen.name} in {output}")
    say(f"next: deploynas search --supernet {output} --latency-ms 10")
    return None
