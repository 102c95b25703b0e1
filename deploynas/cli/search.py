"""``deploynas search``: the most accurate network within budget."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploynas.cli.console import (
    Json,
    PrecisionName,
    Quiet,
    as_precision,
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
}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("search")(search)


def search(
    latency_ms: Annotated[float | None, typer.Option(help="Latency budget.")] = None,
    max_flops: Annotated[float | None, typer.Option(help="MACs of one image.")] = None,
    max_params: Annotated[float | None, typer.Option(help="Parameters.")] = None,
    max_memory: Annotated[float | None, typer.Option(help="Peak memory in bytes.")] = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="ofa, evolution, one-shot, pareto, predictor, proxyless, darts, random."
        ),
    ] = "ofa",
    space_name: Annotated[
        str | None,
        typer.Option(
            "--space",
            help="mobile-small, or the strategy's own.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[Path | None, typer.Option(help="Device profile.")] = None,
    supernet: Annotated[Path | None, typer.Option(help="Run of a trained supernet.")] = None,
    ofa_weights: Annotated[
        Path | None, typer.Option(help="Published checkpoint of --space: no training.")
    ] = None,
    calibration_images: Annotated[
        Path | None,
        typer.Option(help="Unlabelled images that set a published network's batch norms."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Image folder or IDX files; ImageNet's with --ofa-weights."),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(
            help="Of a training; 4, with proxyless 10, more over a small data set. What one-shot "
            "retrains gets three times as many.",
            show_default=False,
        ),
    ] = None,
    evaluations: Annotated[
        int | None,
        typer.Option(
            help="Networks to evaluate; 96, 20000 with a predictor.", min=4, show_default=False
        ),
    ] = None,
    evaluator: Annotated[
        str,
        typer.Option(
            help="What judges a candidate: inherited (a supernet's weights), training (each from "
            "scratch), halving (the same, stopped early where it is behind)."
        ),
    ] = "inherited",
    workers: Annotated[
        int, typer.Option(help="Candidates that are trained at a time.", min=1)
    ] = 1,
    costs: Annotated[
        str | None,
        typer.Option(
            help="Of pareto, commas between: latency_ms (default), macs, params, "
            "peak_memory_bytes.",
            show_default=False,
        ),
    ] = None,
    population: Annotated[
        int | None,
        typer.Option(help="Of evolution: networks alive; 100.", show_default=False, min=2),
    ] = None,
    tournament: Annotated[
        int | None,
        typer.Option(help="Of evolution: of so many the fittest; 10.", show_default=False, min=1),
    ] = None,
    soft_latency: Annotated[
        float | None,
        typer.Option(
            help="Of evolution: accuracy lost by a latency of twice the budget, in place of "
            "refusing it; the result keeps the budget.",
            show_default=False,
        ),
    ] = None,
    soft_flops: Annotated[
        float | None,
        typer.Option(help="Of evolution: the same for MACs.", show_default=False),
    ] = None,
    architecture_update: Annotated[
        str | None,
        typer.Option(help="Of proxyless: two-path (default) or reinforce.", show_default=False),
    ] = None,
    latency_loss: Annotated[
        str | None,
        typer.Option(help="Of proxyless: adaptive (default), sum, product.", show_default=False),
    ] = None,
    latency_weight: Annotated[
        float | None,
        typer.Option(help="Of the latency losses sum and product; 0.3.", show_default=False),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(help="Of darts: first (default) or second.", show_default=False),
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(help="Of darts: softmax (default) or sigmoid (fair).", show_default=False),
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(help="Of darts: share of candidates pruned on the way.", show_default=False),
    ] = None,
    max_skips: Annotated[
        int | None,
        typer.Option(help="Of darts: skip connections in the normal cell.", show_default=False),
    ] = None,
    own_weights: Annotated[
        bool,
        typer.Option(
            "--own-weights", help="Of proxyless: no weights shared by candidates, as published."
        ),
    ] = False,
    precision_name: PrecisionName = "fp32",
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Run directory.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Always on: training goes on.")] = True,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search a space under a profile's latency and other limits."""
    from deploynas.data import space_for
    from deploynas.errors import InvalidInputError, UnknownNameError
    from deploynas.spaces import space
    from deploynas.workflows import steps

    precision = as_precision(precision_name)
    budget = steps.budget_from(latency_ms, max_flops, max_params, max_memory)
    if not budget.model_dump(exclude_none=True):
        raise typer.BadParameter("give a budget, for example --latency-ms 10")
    from deploynas.search import STRATEGIES
    from deploynas.workflows.candidates import EVALUATORS

    own_spaces = {"proxyless": "proxyless-small", "darts": "darts-small", "one-shot": "one-shot"}
    is_gradient = strategy in ("proxyless", "darts")
    if not is_gradient and strategy not in STRATEGIES:
        raise UnknownNameError("strategy", strategy, {*STRATEGIES, *own_spaces})
    space_name = space_name or own_spaces.get(strategy, "mobile-small")
    space(space_name)  # one that is not known ends here
    if is_gradient and (ofa_weights or supernet):
        raise InvalidInputError("a gradient search trains its own weights: leave out the others'")
    if strategy == "one-shot" and (ofa_weights or supernet):
        raise InvalidInputError("a one-shot search trains its own supernet: leave out the others")
    architecture = {
        "update": architecture_update,
        "latency_loss": latency_loss,
        "latency_weight": latency_weight,
    }
    architecture = {k: v for k, v in architecture.items() if v is not None}
    of_darts: dict[str, object] = {
        "order": order, "gate": gate, "prune": prune, "max_skips": max_skips,
    }  # fmt: skip
    of_darts = {k: v for k, v in of_darts.items() if v is not None}
    of_proxyless = [key.replace("_", "-") for key in architecture] + ["own-weights"] * own_weights
    if of_proxyless and strategy != "proxyless":
        raise InvalidInputError(f"--{of_proxyless[0]} goes with proxyless")
    if of_darts and strategy != "darts":
        raise InvalidInputError(f"--{next(iter(of_darts)).replace('_', '-')} goes with darts")
    options = _own_options(
        strategy, costs=costs, population=population, tournament=tournament,
        soft_latency=soft_latency, soft_flops=soft_flops,
    )  # fmt: skip
    if evaluator not in EVALUATORS:
        raise UnknownNameError("evaluator", evaluator, EVALUATORS)
    is_trained = evaluator != "inherited"
    if is_trained and (is_gradient or strategy == "one-shot" or ofa_weights or supernet):
        raise InvalidInputError(
            f"--evaluator {evaluator} trains every candidate: it goes with "
            f"{', '.join(s for s in STRATEGIES if s not in own_spaces)}, without a supernet"
        )
    if workers > 1 and not is_trained:
        raise InvalidInputError("--workers goes with --evaluator training or halving")
    if ofa_weights is None and calibration_images is not None:
        raise InvalidInputError("--calibration-images goes with --ofa-weights")
    if ofa_weights is not None and supernet is not None:
        raise InvalidInputError("give one of --ofa-weights and --supernet")
    from deploynas.artifacts import PROFILES, newest
    from deploynas.device import open_attached
    from deploynas.profile import DeviceProfile
    from deploynas.profile.shipped import locate
    from deploynas.train.distributed import is_first

    hint = "make one: deploynas profile --device cpu"
    path = locate(profile or newest("*.json", PROFILES, "device profile", hint))
    identity = DeviceProfile.read(path).identity

    def note(text: str) -> None:
        if not quiet:
            say(text, as_json=True)

    quiet = quiet or not is_first()  # of the processes that torchrun started
    note(f"profile {path}: {identity.title}")
    if "reached" in identity.recorded:
        note(f"asking {identity.name} ...")
    device = open_attached(identity, warn) if is_first() else None
    with progress(quiet) as on_progress:
        if ofa_weights is not None:
            from deploynas.workflows import published

            run = output or _own_run(f"{space_name}-published")
            result = published.search(
                ofa_weights, space_name, path, budget, run,
                device=device, calibration_images=calibration_images, data=data,
                strategy=strategy, seed=seed,
                num_evaluations=evaluations or published.NUM_EVALUATIONS, options=options,
                precision=precision,
                on_progress=on_progress, on_note=note,
            )  # fmt: skip
        elif is_trained:
            from deploynas.workflows import candidates
            from deploynas.workflows.networks import FROM_SCRATCH

            dataset = open_data(data, space_name=space_name)
            run = output or _own_run(f"{space_name}-{dataset.name}-{evaluator}")
            result = candidates.search(
                space_for(space_name, dataset), dataset, path, budget, run,
                steps.for_data(FROM_SCRATCH, dataset, epochs, seed),
                halving=evaluator == "halving", device=device, strategy=strategy, seed=seed,
                num_evaluations=evaluations or candidates.NUM_EVALUATIONS, num_workers=workers,
                options=options, precision=precision, on_progress=on_progress, on_note=note,
            )  # fmt: skip
        elif is_gradient:
            from deploynas.workflows import gradient

            dataset = open_data(data, space_name=space_name)
            run = output or _own_run(f"{space_name}-{dataset.name}")
            recipe = (
                gradient.darts_recipe_for(dataset, epochs, seed, of_darts)
                if strategy == "darts"
                else gradient.recipe_for(
                    dataset, epochs, seed, architecture, share_weights=not own_weights
                )
            )
            result = gradient.search(
                space_for(space_name, dataset), dataset, path, budget, run, recipe,
                device=device, num_evaluations=evaluations or gradient.NUM_EVALUATIONS,
                precision=precision, on_progress=on_progress, on_note=note,
            )  # fmt: skip
        elif strategy == "one-shot":
            from deploynas.workflows import one_shot

            dataset = open_data(data, space_name=space_name)
            run = output or _own_run(f"{space_name}-{dataset.name}-one-shot")
            result = one_shot.search(
                space_for(space_name, dataset), dataset, path, budget, run,
                epochs=epochs, device=device, seed=seed,
                num_evaluations=evaluations or steps.NUM_EVALUATIONS, precision=precision,
                on_progress=on_progress, on_note=note,
            )  # fmt: skip
        else:
            dataset = open_data(data, space_name=space_name)
            run = output or _own_run(f"{space_name}-{dataset.name}")
            result = steps.train_and_search(
                space_for(space_name, dataset), dataset, path, budget, run,
                supernet=supernet, epochs=epochs, device=device, strategy=strategy, seed=seed,
                num_evaluations=evaluations or steps.NUM_EVALUATIONS, options=options,
                precision=precision, on_progress=on_progress, on_note=note,
            )  # fmt: skip
    if device is not None:
        warn_notes(device)
    if as_json:
        return print_json(_document(result, run))
    _print(result, run)
    return None


def _own_options(strategy: str, **given: Any) -> dict[str, Any]:
    """Arguments of a strategy's own.

    Raises:
        InvalidInputError, UnknownNameError: They are another strategy's, or cannot be.
    """
    from deploynas.errors import InvalidInputError, UnknownNameError, require_positive
    from deploynas.search.strategies import COSTS, SoftFitness

    present = {name: value for name, value in given.items() if value is not None}
    for name in present:
        owner = "pareto" if name == "costs" else "evolution"
        if strategy != owner:
            raise InvalidInputError(f"--{name.replace('_', '-')} goes with {owner}")
    options: dict[str, Any] = {k: present[k] for k in ("population", "tournament") if k in present}
    if "costs" in present:
        names = tuple(name.strip() for name in present["costs"].split(",") if name.strip())
        for name in names:
            if name not in COSTS:
                raise UnknownNameError("cost", name, COSTS)
        if not names or len(set(names)) < len(names):
            raise InvalidInputError("--costs names one cost or more, each once")
        options["costs"] = names
    soft = {
        k: require_positive(present[k], f"--{k.replace('_', '-')}")
        for k in ("soft_latency", "soft_flops")
        if k in present
    }
    if soft:
        options["soft"] = SoftFitness(soft.get("soft_latency", 0.0), soft.get("soft_flops", 0.0))
    return options


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
        "found_by": result.found_by,
        "job": result.job,
        "seed": result.seed,
        "run": str(run),
        "measured_latency_ms": result.measured_latency_ms,
        "random_best": result.random_best and result.random_best.model_dump(),
        "front": [point.model_dump() for point in result.front],
        "trade_off": result.trade_off and result.trade_off.model_dump(),
        "decision": result.decision and result.decision.model_dump(),
    }


def _print(result: SearchResult, run: Path) -> None:
    from deploynas.workflows.networks import ChosenRecord

    best = result.best
    for name in result.not_binding:
        say(f"the {name} budget does not bind: every network keeps it")
    say(
        f"predicted {best.predicted_latency_ms:.3f} ms +-{best.prediction_error:.1%}"
        f"{' (outside the calibrated range)' if best.extrapolated else ''}, "
        f"{best.macs / 1e6:.2f} M MACs, {best.params / 1e3:.0f} k params"
    )
    say(_accuracy(best))
    if result.random_best:
        say(
            f"random search, {result.num_evaluations} networks with the same weights: "
            f"{result.random_best.accuracy:.2%}"
        )
    if result.found_by != "strategy":
        say(f"found by {FINDERS[result.found_by]}, not by {result.strategy} itself")
    if result.decision:
        say(_decision(result.decision))
    if result.strategy == "pareto" and result.trade_off:
        for line in _front(result, result.trade_off):
            say(line)
    say(f"architecture: {best.architecture}")
    if result.weights == "published" and (
        ChosenRecord.read(ChosenRecord.file_in(run)).batch_norm == "uncalibrated"
    ):
        warn(
            "the sliced batch norms are uncalibrated, so that the network is not yet as accurate "
            "as predicted: pass --calibration-images DIR, about 2,000 images without labels"
        )
    after = "retrain" if result.weights == "paths" else "export"
    anew = " --from-scratch" if result.weights == "paths" else ""
    say(f"saved in {run}; next: deploynas {after} {run}{anew}")


def _front(result: SearchResult, found: TradeOff) -> list[str]:
    """The trade-off, cheapest first; the knee is marked."""
    units = {
        "latency_ms": (1.0, "ms"), "macs": (1e6, "M MACs"), "params": (1e3, "k params"),
        "peak_memory_bytes": (1e3, "kB"),
    }  # fmt: skip

    def costs(values: tuple[float, ...]) -> str:
        return "".join(
            f"{value / units[name][0]:9.3f} {units[name][1]}"
            for name, value in zip(found.costs, values, strict=True)
        )

    lines = [
        f"{costs(point.costs)}  {point.accuracy:7.2%}{'  knee' if i == found.knee else ''}"
        for i, point in enumerate(result.front)
    ]
    corner = re.sub(r" +", " ", f"{costs(found.worst)} {found.worst_accuracy:.2%}").strip()
    return [
        f"the front has {len(lines)} networks, hypervolume {found.hypervolume:.3f} (share of the "
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
