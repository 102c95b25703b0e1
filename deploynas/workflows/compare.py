"""Strategies side by side: one space, one budget, one recipe for what they find.

Every strategy searches with every seed; what it found is trained from scratch by the same recipe,
and measured beside all others in one run. Random search always stands beside them. All that is
done is kept in the run's folder: a comparison that was stopped goes on, and trains nothing twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deploynas.artifacts import ensure_writable, exists
from deploynas.data import ImageDataset
from deploynas.device import Device, StopRule, measure
from deploynas.errors import InvalidInputError, UnknownNameError
from deploynas.onboard.folders import temporary_folder
from deploynas.profile import LatencyModel
from deploynas.profile.profiler import write_timed
from deploynas.search import STRATEGIES, Budget, SearchResult
from deploynas.search.darts import DartsRecipe
from deploynas.search.job import Job, hash_of
from deploynas.search.proxyless import ProxylessRecipe
from deploynas.search.strategies import Floats
from deploynas.spaces import Archs, SearchSpace
from deploynas.spaces.layers import Node
from deploynas.train import Recipe, SupernetRecipe
from deploynas.train.distributed import require_one_process
from deploynas.train.evaluate import QUICK_CALIBRATION, QUICK_IMAGES
from deploynas.workflows import candidates, gradient, one_shot, steps
from deploynas.workflows.candidates import EVALUATORS, at_once
from deploynas.workflows.comparison import (
    RANDOM,
    Comparison,
    Settings,
    Winner,
    rows_of,
    tau_of,
)
from deploynas.workflows.steps import OnProgress, TrainedSupernet
from deploynas.workflows.trainings import (
    Cost,
    Trained,
    clocked,
    images_per_second,
    key_of,
    train_all,
)

GRADIENT = ("proxyless", "darts")
ONE_SHOT = "one-shot"


def strategies_for(space: SearchSpace) -> list[str]:
    """Strategies that a space fits."""
    found = list(STRATEGIES)
    if len(space.resolutions) == 1:
        fits = (space.has_candidates, space.mixture is not None)
        found += [name for name, fit in zip(GRADIENT, fits, strict=True) if fit]
    return found


def settings_for(
    space: SearchSpace,
    strategies: Sequence[str] | None,
    *,
    evaluator: str = "inherited",
    num_seeds: int,
    budget: Budget,
    num_evaluations: int,
    supernet_epochs: float | None,
    recipe: Recipe,
) -> Settings:
    """Check what was asked for; random search is added where it is not named.

    All strategies that the space fits where ``strategies`` is None; others as in
    :class:`Settings`.

    Raises:
        UnknownNameError: No such strategy.
        InvalidInputError: One that the space does not fit, or named twice; a number too small.
    """
    known = [*STRATEGIES, *GRADIENT]
    fitting = strategies_for(space)
    strategies = fitting if strategies is None else strategies
    for name in strategies:
        if name not in known:
            raise UnknownNameError("strategy", name, known)
        if name not in fitting:
            raise InvalidInputError(
                f"{space.name} does not fit {name}, which searches candidate operations"
                f"{' or cells' if name == 'darts' else ''} at one resolution",
                f"it fits {', '.join(fitting)}",
            )
    if evaluator not in EVALUATORS:
        raise UnknownNameError("evaluator", evaluator, EVALUATORS)
    if len(set(strategies)) < len(strategies):
        raise InvalidInputError("a strategy is named twice")
    if num_seeds < 1 or num_evaluations < 4:
        raise InvalidInputError("a comparison needs one seed and four evaluations, or more")
    named = (RANDOM, *(name for name in strategies if name != RANDOM))
    return Settings(
        strategies=named, num_seeds=num_seeds, budget=budget, evaluator=evaluator,
        num_evaluations=num_evaluations, supernet_epochs=supernet_epochs, recipe=recipe,
    )  # fmt: skip


def compare(
    space: SearchSpace,
    dataset: ImageDataset,
    profile_path: Path,
    run: Path,
    settings: Settings,
    *,
    device: Device | None,
    num_workers: int = 1,
    max_minutes: float = np.inf,
    on_progress: OnProgress,
    on_note: Callable[[str], None],
) -> Comparison:
    """Search, train and measure; writes ``run/comparison.json``.

    Args:
        space: Searched by all.
        dataset: Images.
        profile_path: Device profile.
        run: Directory, created; what it holds of the same jobs is not done again, and what it
            holds of others (another budget, profile, recipe, ...) is left alone.
        settings: What is compared.
        device: The profile's, which measures every winner; None where it is elsewhere.
        num_workers: Trainings at a time, in processes of their own.
        max_minutes: No search and no training of a winner begins later.
        on_progress: Called with what is going on and its share done.
        on_note: Called with what a user should know.

    Raises:
        InfeasibleBudgetError: No network keeps the budget.
    """
    require_one_process("compare")
    started = time.monotonic()

    def time_is_up() -> bool:
        return time.monotonic() - started > max_minutes * 60

    ensure_writable(run)
    model = steps.latency_model(space, profile_path, device, "fp32", on_progress)
    settings.budget.require_reachable(model, np.random.default_rng(0))
    on_note(_forecast(model, dataset, settings, num_workers))
    supernets = _Supernets(model.space, dataset, run / "supernets", settings, on_progress)
    winners: list[Winner] = []
    todo = [(s, n) for n in range(settings.num_seeds) for s in settings.strategies]
    for number, (strategy, seed) in enumerate(todo):
        schedule = _schedule(strategy, model.space, settings)
        weights = None if schedule is None else supernets.recipe(schedule, seed)
        job = _job(strategy, seed, weights, model, dataset, settings, device, num_workers)
        folder = run / "searches" / f"{strategy}-seed{seed}-{job.key}"
        is_done = exists(SearchResult.file_in(folder)) and exists(folder / "cost.json")
        if not is_done and time_is_up():
            continue

        def told(text: str, share: float, name: str = strategy, done: int = number) -> None:
            on_progress(f"searching: {name}, {text}", (done + share) / len(todo))

        supernet, seconds = None, 0.0
        if weights is not None:
            supernet, seconds = supernets.trained(weights)
            if not is_done and time_is_up():
                continue
        if not is_done:
            folder.mkdir(parents=True, exist_ok=True)
            _search(
                strategy, seed, folder, model, dataset, profile_path, settings, supernet, device,
                num_workers, run / "trained", told,
            )  # fmt: skip
        result = SearchResult.read(SearchResult.file_in(folder))
        arch = model.space.encode([result.best.architecture])[0]
        cheap = None
        if supernet is not None and strategy != ONE_SHOT:
            cheap = result.best.accuracy
        elif settings.evaluator == "halving" and _has_candidates_trained(strategy, settings):
            nodes = model.space.layers(arch)
            cheap = _first_rung(nodes, dataset, run / "trained", _recipe(settings, seed))
        winners.append(
            Winner(
                strategy=strategy, seed=seed, job=job.key, architecture=result.best.architecture,
                search_seconds=Cost.read(folder / "cost.json").seconds + seconds,
                cheap=cheap,
                predicted_latency_ms=result.best.predicted_latency_ms or 0.0,
            )
        )  # fmt: skip
    jobs = [
        (w, model.space.layers(model.space.encode([w.architecture])[0]), w.seed) for w in winners
    ]
    trained = train_all(
        [(nodes, _recipe(settings, seed)) for _, nodes, seed in jobs],
        dataset, run / "trained", num_workers, time_is_up, on_progress,
    )  # fmt: skip
    winners = [
        w.model_copy(
            update={"validation": t.validation, "test": t.test, "train_seconds": t.seconds}
        )
        if t is not None
        else w
        for w, t in zip(winners, trained, strict=True)
    ]
    if device is not None and winners:
        winners = _measured(winners, [nodes for _, nodes, _ in jobs], model, device, on_progress)
    comparison = Comparison.model_validate(
        {
            "space": space.spec,
            "settings": settings,
            "data": steps.data_record(dataset),
            "profile": str(profile_path),
            "device": model.profile.identity.title,
            "supernet_seconds": supernets.seconds,
            "winners": tuple(winners),
            "rows": tuple(rows_of(winners, settings)),
            "kendall_tau": tau_of(winners),
            "complete": len(winners) == len(todo) and all(w.test is not None for w in winners),
        }
    )
    comparison.write(Comparison.file_in(run))
    return comparison


def _schedule(strategy: str, space: SearchSpace, settings: Settings) -> str | None:
    """Of the supernet that a strategy searches; None where it trains weights of its own."""
    if _has_candidates_trained(strategy, settings) or strategy in GRADIENT:
        return None
    return "single-path" if strategy == ONE_SHOT else space.schedules[0]


def _has_candidates_trained(strategy: str, settings: Settings) -> bool:
    return settings.evaluator != "inherited" and strategy not in (ONE_SHOT, *GRADIENT)


class _Supernets:
    """The supernets of a comparison: one a schedule and seed, which several strategies search."""

    def __init__(
        self,
        space: SearchSpace,
        dataset: ImageDataset,
        folder: Path,
        settings: Settings,
        on_progress: OnProgress,
    ) -> None:
        self._space, self._dataset, self._folder = space, dataset, folder
        self._epochs, self._on_progress = settings.supernet_epochs, on_progress
        self._open: tuple[SupernetRecipe, TrainedSupernet] | None = None
        self._seconds: dict[str, dict[int, float]] = {}

    @property
    def seconds(self) -> dict[str, float]:
        """Schedule -> mean seconds of a training."""
        return {k: float(np.mean(list(v.values()))) for k, v in self._seconds.items()}

    def recipe(self, schedule: str, seed: int) -> SupernetRecipe:
        """How it is trained."""
        return steps.supernet_recipe(self._space, self._dataset, self._epochs, seed, schedule)

    def trained(self, recipe: SupernetRecipe) -> tuple[TrainedSupernet, float]:
        """A supernet and the seconds of its training, now or before."""
        key = hash_of([self._space.spec, self._dataset.fingerprint, recipe.model_dump()])
        folder = self._folder / f"{recipe.schedule}-seed{recipe.seed}-{key}"
        if not exists(folder / "supernet.json"):
            folder.mkdir(parents=True, exist_ok=True)
            with clocked(folder, self._on_progress) as (told, _):
                steps.train(self._space, self._dataset, folder, recipe, told)
        seconds = Cost.read(folder / "cost.json").seconds if exists(folder / "cost.json") else 0.0
        self._seconds.setdefault(recipe.schedule, {})[recipe.seed] = seconds
        if self._open is None or self._open[0] != recipe:
            self._open = recipe, steps.open_supernet(folder, self._dataset)
        return self._open[1], seconds


def _job(
    strategy: str,
    seed: int,
    weights: SupernetRecipe | None,
    model: LatencyModel,
    dataset: ImageDataset,
    settings: Settings,
    device: Device | None,
    num_workers: int,
) -> Job:
    """What one search of the comparison is: what is kept of it is kept under this."""
    recipe, options = _recipe(settings, seed), {}
    num_evaluations = settings.num_evaluations
    if strategy in GRADIENT:
        evaluator = _gradient_recipe(strategy, dataset, settings, seed).model_dump_json()
        num_evaluations = 0
    elif weights is None:
        evaluator = candidates.evaluator_of(recipe, halving=settings.evaluator == "halving")
        options = {"batch": num_workers}  # as many children are bred at a time
    elif strategy == ONE_SHOT:
        evaluator = f"{weights.model_dump_json()} {recipe.model_dump_json()}"
    else:
        evaluator = weights.model_dump_json()
    return steps.job_of(
        model, dataset, settings.budget, strategy, evaluator, seed, num_evaluations, device,
        options,
    )  # fmt: skip


def _search(
    strategy: str,
    seed: int,
    folder: Path,
    model: LatencyModel,
    dataset: ImageDataset,
    profile_path: Path,
    settings: Settings,
    supernet: TrainedSupernet | None,
    device: Device | None,
    num_workers: int,
    trained: Path,
    told: OnProgress,
) -> None:
    """Search by a strategy with one seed; leaves its result and its seconds in the folder."""
    recipe = _recipe(settings, seed)
    if _has_candidates_trained(strategy, settings):
        candidates.search(
            model.space, dataset, profile_path, settings.budget, folder,
            recipe, halving=settings.evaluator == "halving", device=device, strategy=strategy,
            seed=seed, num_evaluations=settings.num_evaluations, num_workers=num_workers,
            trained=trained, on_progress=told, on_note=lambda text: None,
        )  # fmt: skip
        return
    with clocked(folder, told) as (told, more), contextlib.ExitStack() as stack:
        if strategy in GRADIENT:
            own = _gradient_recipe(strategy, dataset, settings, seed)
            gradient.search(
                model.space, dataset, profile_path, settings.budget, folder, own,
                device=device, num_evaluations=0, on_progress=told, on_note=lambda text: None,
            )  # fmt: skip
            return
        assert supernet is not None
        settle = None
        if strategy == ONE_SHOT:  # of the best few the one that validates best from scratch
            alone = candidates.TrainedCandidates(
                model.space, dataset, recipe, trained, num_workers=num_workers, on_progress=told,
            )  # fmt: skip
            stack.callback(alone.close)

            def judge(archs: Archs) -> Floats:
                started, before = time.monotonic(), alone.seconds
                found = alone.final(archs)
                # their own seconds count, whoever trained them, however many at a time
                more.append(alone.seconds - before - (time.monotonic() - started))
                return found

            settle = (one_shot.TOP_K, judge)
        steps.search(
            supernet, model, profile_path, settings.budget, folder, device=device,
            strategy=strategy, seed=seed, num_evaluations=settings.num_evaluations,
            beside=False, settle=settle, on_progress=told,
        )  # fmt: skip


def _recipe(settings: Settings, seed: int) -> Recipe:
    """By which everything of a seed is trained from scratch."""
    return settings.recipe.model_copy(update={"seed": seed})


def _first_rung(
    nodes: list[Node], dataset: ImageDataset, trained: Path, recipe: Recipe
) -> float | None:
    """Validation accuracy after the shortest schedule of successive halving, where it had one."""
    first, *others = candidates.rungs_of(recipe, dataset, halving=True)
    file = trained / f"{key_of(nodes, dataset, first)}.json"
    return Trained.read(file).validation if others and exists(file) else None


def _gradient_recipe(
    strategy: str, dataset: ImageDataset, settings: Settings, seed: int
) -> ProxylessRecipe | DartsRecipe:
    epochs = settings.supernet_epochs
    if strategy == "darts":
        return gradient.darts_recipe_for(dataset, epochs, seed, {})
    return gradient.recipe_for(dataset, epochs, seed, {})


RULE = StopRule(precision=0.01, min_sessions=4, max_sessions=8)


def _measured(
    winners: list[Winner],
    networks: Sequence[list[Node]],
    model: LatencyModel,
    device: Device,
    on_progress: OnProgress,
) -> list[Winner]:
    """Each winner's latency, all in one run; equal networks are one."""
    with temporary_folder() as folder:
        names = [hashlib.sha256(str(nodes).encode()).hexdigest()[:16] for nodes in networks]
        paths = {
            name: write_timed(folder / f"{name}.onnx", nodes, model.precision, 0)
            for name, nodes in zip(names, networks, strict=True)
        }
        samples = measure(
            device, paths, RULE, on_progress=lambda p: on_progress("measuring winners", p.done)
        )
    found = []
    for winner, name in zip(winners, names, strict=True):
        x = samples[name].estimate()
        found.append(
            winner.model_copy(
                update={
                    "latency_ms": x.median, "latency_low_ms": x.low, "latency_high_ms": x.high
                }
            )
        )  # fmt: skip
    return found


def _forecast(
    model: LatencyModel, dataset: ImageDataset, settings: Settings, num_workers: int
) -> str:
    """How long it will take where nothing was done before, from a few training steps."""
    space, recipe = model.space, settings.recipe
    speed = images_per_second(space, recipe.batch_size)
    num = len(settings.strategies) * settings.num_seeds
    trainings = num
    if ONE_SHOT in settings.strategies:
        trainings += settings.num_seeds * (one_shot.TOP_K - 1)
    seconds = trainings * recipe.epochs * len(dataset.train) / speed / at_once(num_workers)
    schedules = {_schedule(s, space, settings) for s in settings.strategies} - {None}
    for schedule in schedules:
        own = steps.supernet_recipe(space, dataset, settings.supernet_epochs, 0, schedule)
        paths = 1 if schedule == "single-path" else 3  # of a step, about
        seconds += settings.num_seeds * paths * own.epochs * len(dataset.train) / speed
    for strategy in settings.strategies:
        if strategy in GRADIENT:
            passes = _gradient_recipe(strategy, dataset, settings, 0).epochs
            run_at_once = 3.0 if strategy == "proxyless" else space.candidates_at_once
            one = run_at_once * passes * len(dataset.train) / speed
        elif _has_candidates_trained(strategy, settings):
            rungs = candidates.rungs_of(recipe, dataset, halving=settings.evaluator == "halving")
            one = candidates.forecast(rungs, space, dataset, settings.num_evaluations)
            one /= at_once(num_workers)
        else:
            evaluated = min(QUICK_IMAGES, len(dataset.val)) + QUICK_CALIBRATION
            one = settings.num_evaluations * evaluated / (3 * speed)
        seconds += settings.num_seeds * one
    return (
        f"about {seconds / 60:.0f} minutes where nothing was done before: {num} searches, and "
        f"{trainings} trainings of {recipe.epochs:g} epochs"
    )
