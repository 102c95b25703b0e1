"""``deploynas compare``: strategies side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploynas.cli.asked import (
    Evaluator,
    ExecutorName,
    LatencyMs,
    Limits,
    MaxFlops,
    MaxMemory,
    MaxParams,
    NoRefresh,
    NumWorkers,
    Profiles,
    RecipeName,
    RecipeSet,
    budget_of,
    devices_of,
    recipe_changes,
    target_of,
)
from deploynas.cli.console import (
    Json,
    Quiet,
    Resolutions,
    open_data,
    print_json,
    progress,
    say,
    warn,
    warn_notes,
)

if TYPE_CHECKING:
    from deploynas.workflows.compare_table import Comparison, Row


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("compare")(compare)


def compare(
    strategies: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Commas between; all that the space fits."),
    ] = None,
    latency_ms: LatencyMs = None,
    max_flops: MaxFlops = None,
    max_params: MaxParams = None,
    max_memory: MaxMemory = None,
    limits: Limits = None,
    space_name: Annotated[str, typer.Option("--space", help="Searched by all.")] = (
        "proxyless-small"
    ),
    profiles: Profiles = None,
    no_refresh: NoRefresh = False,
    resolution: Resolutions = None,
    data: Annotated[Path | None, typer.Option(help="Image folder or IDX files.")] = None,
    images: Annotated[
        int | None,
        typer.Option(help="Train images that are used; all.", show_default=False, min=1),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Searches and trainings a strategy.", min=1)] = 3,
    evaluator: Evaluator = "inherited",
    evaluations: Annotated[
        int, typer.Option(help="Networks that a strategy may evaluate.", min=4)
    ] = 96,
    search_epochs: Annotated[
        float | None,
        typer.Option(
            help="Of the supernet and of gradient searches; as in search.", show_default=False
        ),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Of every winner's training; 12.", show_default=False)
    ] = None,
    recipe_name: RecipeName = "small",
    recipe_set: RecipeSet = None,
    workers: NumWorkers = 1,
    executor: ExecutorName = "local",
    max_minutes: Annotated[
        float | None, typer.Option(help="Nothing begins later; run again to go on.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/compare"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search by several strategies, train what they find by one recipe, and compare."""
    from deploynas.data import space_for
    from deploynas.errors import require_positive
    from deploynas.spaces import space
    from deploynas.workflows import compare as workflow
    from deploynas.workflows.compare_table import Settings
    from deploynas.workflows.executor import Workers
    from deploynas.workflows.recipes import FROM_SCRATCH, for_data
    from deploynas.workflows.target import Tell

    budget = budget_of(latency_ms, max_flops, max_params, max_memory, limits)
    space(space_name)  # one that is not known ends here
    dataset = open_data(data, space_name=space_name, resolutions=resolution)
    dataset = dataset.with_fewer(images)
    chosen = space_for(space_name, dataset, resolution)
    asked = Settings(
        strategies=tuple(s.strip() for s in (strategies or "").split(",") if s.strip()),
        evaluator=evaluator, num_seeds=seeds, budget=budget, num_evaluations=evaluations,
        supernet_epochs=search_epochs,
        recipe=for_data(FROM_SCRATCH, dataset, epochs, recipe_changes(recipe_name, recipe_set)),
    )  # fmt: skip
    settings = workflow.checked(asked, chosen)

    def note(text: str) -> None:
        if not quiet:
            say(text, as_json=True)

    hint = f"make one: deploynas profile --device cpu --space {space_name}"
    target = target_of(profiles, "fp32", hint, note, refreshes=not no_refresh)
    limit = float("inf") if max_minutes is None else require_positive(max_minutes, "--max-minutes")
    with progress(quiet) as on_progress:
        comparison = workflow.compare(
            chosen, dataset, target, output, settings, workers=Workers(workers, executor),
            max_minutes=limit, tell=Tell(on_progress, note),
        )  # fmt: skip
    for device in devices_of(target):
        warn_notes(device)
    if as_json:
        return print_json({"run": str(output), **comparison.model_dump(mode="json")})
    for line in _lines(comparison):
        say(line)
    if not comparison.complete:
        warn("time was up before everything was trained: run the same command again to go on")
    say(f"saved in {output}")
    return None


def _lines(comparison: Comparison) -> list[str]:
    """The table, and what it means."""
    settings = comparison.settings
    head = (
        f"{'strategy':11}{'test accuracy':>18}{'seeds':>7}{'over random':>20}"
        f"{'latency':>12}{'search':>10}"
    )
    lines = [
        f"{comparison.data.name}, {comparison.space['name']}, "
        f"{comparison.device}", "", head, *(_row(row) for row in comparison.rows), "",
        f"accuracy: test images, mean and standard deviation, trained from scratch "
        f"({settings.recipe.epochs:g} epochs)",
        "search: seconds, those of the supernet included where a strategy needs one"
        + "".join(f" ({k} {v:.0f})" for k, v in comparison.supernet_seconds.items()),
    ]  # fmt: skip
    if comparison.kendall_tau is not None:
        lines.append(
            f"Kendall tau between cheap and full evaluation of what was found: "
            f"{comparison.kendall_tau:.2f}"
        )
    return lines


def _row(row: Row) -> str:
    accuracy = "-" if row.mean is None else f"{row.mean:.2%}"
    if row.deviation is not None:
        accuracy += f" +-{row.deviation:.2%}"
    over = ""
    if row.over_random is not None:
        over = f"{100 * row.over_random:+.2f}"
        if row.interval is not None:
            over += f" +-{100 * row.interval:.2f}{' *' if row.differs else ''}"
    latency = "-" if row.latency_ms is None else f"{row.latency_ms:.4g} ms"
    over_budget = "  over budget" if row.within is False else ""
    return (
        f"{row.strategy:11}{accuracy:>18}{row.num_trained:>7}{over:>20}{latency:>12}"
        f"{row.seconds:>8.0f} s{over_budget}"
    )
