"""``deploynas search``: the most accurate network within budget."""

from __future__ import annotations

import re
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
    pairs,
    recipe_changes,
    target_of,
)
from deploynas.cli.console import (
    Json,
    PrecisionName,
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
    from deploynas.search import Candidate, SearchResult
    from deploynas.search.result import DecisionRecord, TradeOff


FINDERS = {
    "random": "the random search beside it",
    "uniform": "the uniform networks beside it",
    "largest": "looking at the largest network",
    "drawn": "a few more draws, for the machine is slower than its profile",
}
MAX_SHOWN = 30  # networks of a front
PREDICTED = "ofa"  # the usual strategy where a predictor judges, and many networks can be


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("search")(search)


def search(
    latency_ms: LatencyMs = None,
    max_flops: MaxFlops = None,
    max_params: MaxParams = None,
    max_memory: MaxMemory = None,
    limits: Limits = None,
    profiles: Profiles = None,
    no_refresh: NoRefresh = False,
    strategy_name: Annotated[
        str | None, typer.Option("--strategy", metavar="NAME", help="See: deploynas strategies.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Option of the strategy."),
    ] = None,
    space_name: Annotated[
        str | None,
        typer.Option("--space", metavar="NAME", help="Search space; else the strategy's own."),
    ] = None,
    resolution: Resolutions = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Images: a folder, or IDX files.")
    ] = None,
    supernet: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run of a trained supernet.")
    ] = None,
    ofa_weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Published checkpoint: no training.")
    ] = None,
    calibration_images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="That set its batch norms; no labels.")
    ] = None,
    evaluator: Evaluator = "inherited",
    evaluations: Annotated[
        int | None, typer.Option(metavar="N", help="Networks to evaluate.", min=4)
    ] = None,
    workers: NumWorkers = 1,
    executor: ExecutorName = "local",
    epochs: Annotated[float | None, typer.Option(metavar="N", help="Of a training.")] = None,
    recipe_name: RecipeName = "small",
    recipe_set: RecipeSet = None,
    precision_name: PrecisionName = "fp32",
    seed: Annotated[int, typer.Option(metavar="N", help="Of every draw.")] = 0,
    output: Annotated[Path | None, typer.Option(metavar="RUN", help="Run directory.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search a space under a profile's latency and other limits; goes on where it stopped."""
    from deploynas.data import space_for
    from deploynas.errors import InvalidInputError
    from deploynas.search import STRATEGIES, Effort, Plan
    from deploynas.search.strategy import DEFAULT
    from deploynas.spaces import space

    budget = budget_of(latency_ms, max_flops, max_params, max_memory, limits)
    usual = DEFAULT if ofa_weights is None else PREDICTED
    strategy = STRATEGIES.load(strategy_name or usual)
    options = strategy.options_from(pairs(option, "--set"))
    changes = recipe_changes(recipe_name, recipe_set)
    if ofa_weights is None and calibration_images is not None:
        raise InvalidInputError("--calibration-images goes with --ofa-weights")
    if ofa_weights is not None and resolution:
        raise InvalidInputError(
            "published weights are searched at the resolutions that their predictor knows",
            "leave out --resolution",
        )
    if ofa_weights is not None and supernet is not None:
        raise InvalidInputError("give one of --ofa-weights and --supernet")
    if space_name is not None:
        space(space_name)  # one that is not known ends here

    from deploynas.train.distributed import is_first
    from deploynas.workflows import search as workflow
    from deploynas.workflows.executor import Workers
    from deploynas.workflows.sources import Training, source_of
    from deploynas.workflows.target import Tell

    how = Training(seed, epochs, changes, evaluator, Workers(workers, executor), supernet)
    how.require_fit(strategy)
    if (ofa_weights or supernet) and evaluator == "inherited" and (epochs or changes):
        whose = "--ofa-weights" if ofa_weights else "--supernet"
        raise InvalidInputError(f"{whose} is trained: leave out --epochs and the recipe")
    if supernet is not None:
        from deploynas.workflows.inherited import require_space, space_trained, trained_at

        if space_name is not None:
            require_space(supernet, space(space_name))
        elif strategy.weights == "any":
            space_name = space_trained(supernet)
        resolution = trained_at(supernet, resolution or ())
    space_name = space_name or strategy.home

    quiet = quiet or not is_first()  # of the processes that torchrun started

    def note(text: str) -> None:
        if not quiet:
            say(text, as_json=True)

    hint = "make one: deploynas profile --device cpu"
    target = target_of(profiles, precision_name, hint, note, refreshes=not no_refresh)
    with progress(quiet) as on_progress:
        tell = Tell(on_progress, note)
        source: workflow.Source
        if ofa_weights is not None:
            from deploynas.workflows.published import PublishedWeights

            source = PublishedWeights(ofa_weights, space_name, calibration_images, data)
            source.require_fit(strategy)
            run = output or _own_run(f"{space_name}-published")
        else:
            dataset = open_data(data, space_name=space_name, resolutions=resolution)
            own = [strategy.name] if strategy.weights == "single-path" else []
            own += [evaluator] if evaluator != "inherited" else []
            run = output or _own_run("-".join([space_name, dataset.name, *own]))
            chosen = space_for(space_name, dataset, resolution)
            source = source_of(strategy, options, chosen, dataset, how, run, tell)
        effort = Effort(evaluations or source.num_evaluations, source.at_once)
        plan = Plan(strategy, options, seed, effort, source.beside)
        result = workflow.search(budget, plan, source, target, run, tell)
    for device in devices_of(target):
        warn_notes(device)
    if as_json:
        return print_json(_document(result, run))
    _print(result, run)
    return None


def _own_run(name: str) -> Path:
    """The run directory of a name; a space's may hold what no file system likes."""
    from deploynas.artifacts import RUNS

    return RUNS / re.sub(r"[^\w.-]+", "-", name)


def _document(result: SearchResult, run: Path) -> dict[str, object]:
    return {
        **result.best.model_dump(),
        "space": result.space["name"],
        "budget": result.budget.model_dump(exclude_none=True),
        "not_binding": list(result.not_binding),
        "precision": result.precision,
        "strategy": result.strategy,
        "options": result.options,
        "found_by": result.found_by,
        "job": result.job,
        "seed": result.seed,
        "run": str(run),
        "measured_latency_ms": result.measured_latency_ms,
        "measured": result.measured,
        "drift": result.drift and result.drift.model_dump(),
        "random_best": result.random_best and result.random_best.model_dump(),
        "front": [point.model_dump() for point in result.front],
        "trade_off": result.trade_off and result.trade_off.model_dump(),
        "decision": result.decision and result.decision.model_dump(),
    }


def _print(result: SearchResult, run: Path) -> None:
    from deploynas.search import STRATEGIES
    from deploynas.workflows.chosen import ChosenRecord

    best = result.best
    for name in result.not_binding:
        say(f"the {name} budget does not bind: every network keeps it")
    say(
        f"predicted {best.predicted_latency_ms:.3f} ms +-{best.prediction_error:.1%}"
        f"{' (outside the calibrated range)' if best.extrapolated else ''}, "
        f"{best.macs / 1e6:.2f} M MACs, {best.params / 1e3:.0f} k params"
    )
    say(_accuracy(best))
    for name, value in best.costs.items():
        say(f"{name} {value:.4g}")
    if result.random_best:
        say(
            f"random search, {result.num_evaluations} networks with the same weights: "
            f"{result.random_best.accuracy:.2%}"
        )
    if result.found_by != "strategy":
        say(f"found by {FINDERS[result.found_by]}, not by {result.strategy} itself")
    if result.decision:
        say(_decision(result.decision))
    if STRATEGIES.load(result.strategy).shows_front and result.trade_off:
        for line in front_lines(result, result.trade_off):
            say(line)
    say(f"architecture: {best.architecture}")
    if result.has_file and (
        ChosenRecord.read(ChosenRecord.file_in(run)).batch_norm == "uncalibrated"
    ):
        warn(
            "the sliced batch norms are uncalibrated, so that the network is not yet as accurate "
            "as predicted: pass --calibration-images DIR, about 2,000 images without labels"
        )
    after = "retrain" if result.needs_training else "export"
    anew = " --from-scratch" if result.needs_training else ""
    say(f"saved in {run}; next: deploynas {after} {run}{anew}")


def front_lines(result: SearchResult, found: TradeOff) -> list[str]:
    """The trade-off, cheapest first; the knee is marked."""
    from deploynas.costs import COSTS
    from deploynas.search.budget import own_name

    def costs(values: tuple[float, ...]) -> str:
        return "".join(
            f"{COSTS.load(own_name(name)).format(value):>16}"
            for name, value in zip(found.costs, values, strict=True)
        )

    num = len(result.front)
    shown = list(range(num))
    if num > MAX_SHOWN:  # evenly, the knee among them
        steps = (i * (num - 1) // (MAX_SHOWN - 1) for i in range(MAX_SHOWN))
        shown = sorted({*steps, found.knee})
    lines = [
        f"{costs(result.front[i].costs)}  {result.front[i].accuracy:7.2%}"
        f"{'  knee' if i == found.knee else ''}"
        for i in shown
    ]
    corner = re.sub(r" +", " ", f"{costs(found.worst)} {found.worst_accuracy:.2%}").strip()
    fewer = f", {len(lines)} of them here" if len(lines) < num else ""
    return [
        f"the front has {num} networks{fewer}, hypervolume {found.hypervolume:.3f} (share of the "
        f"box between its best values and the worst evaluated: {corner}):",
        *lines,
    ]


def _decision(decision: DecisionRecord) -> str:
    """What the budget cost, in one line."""
    if decision.num_changed:
        cost = decision.free_log_probability - decision.kept_log_probability
        text = (
            f"the budget changes {decision.num_changed} blocks of the network that the search "
            f"likes best, which is e^{cost:.1f} times as likely"
        )
    else:
        text = "the network that the search likes best keeps the budget"
    if decision.num_raised:
        text += f"; {decision.num_raised} blocks are dearer than liked, to use the budget"
    return text if decision.is_exact else f"{text}; found by a bounded search"


def _accuracy(best: Candidate) -> str:
    if best.accuracy_kind == "measured":
        return f"validation accuracy {best.accuracy:.2%}"
    beyond = ", beyond what it was fitted to" if best.accuracy_extrapolated else ""
    return (
        f"predicted ImageNet accuracy {best.accuracy:.2%} "
        f"(held-out error of the predictor {best.accuracy_error:.2%}{beyond})"
    )
