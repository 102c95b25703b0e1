"""Strategies side by side: one space, one budget, one recipe for what they find.

Every strategy searches with every seed; what it found is trained from scratch by the same recipe,
and measured beside all others in one run. Random search always stands beside them. All that is
done is kept in the run's folder: a comparison that was stopped goes on, and trains nothing twice.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploynas.artifacts import ensure_writable, exists
from deploynas.data import ImageDataset
from deploynas.device import Device, StopRule, measure
from deploynas.errors import InvalidInputError, UnknownNameError
from deploynas.onboard.folders import temporary_folder
from deploynas.profile.profiler import write_timed
from deploynas.search import STRATEGIES, Effort, Plan, Problem, SearchResult
from deploynas.search.job import hash_of
from deploynas.search.strategy import Strategy
from deploynas.spaces import SearchSpace
from deploynas.spaces.layers import Node
from deploynas.train import Recipe, SupernetRecipe
from deploynas.train.distributed import require_one_process
from deploynas.workflows.candidates import Candidates, TrainedCandidates, at_once, rungs_of
from deploynas.workflows.compare_table import (
    RANDOM,
    Comparison,
    Settings,
    Winner,
    rows_of,
    tau_of,
)
from deploynas.workflows.executor import ALONE, Workers
from deploynas.workflows.gradient import Learning
from deploynas.workflows.inherited import Inherited
from deploynas.workflows.recipes import for_data, supernet_recipe
from deploynas.workflows.search import Source, job_of
from deploynas.workflows.search import search as run_search
from deploynas.workflows.sources import EVALUATORS
from deploynas.workflows.supernets import SupernetRecord, data_record, train
from deploynas.workflows.target import Drifts, OnProgress, Target, Tell
from deploynas.workflows.trainings import (
    Spent,
    Trained,
    clocked,
    images_per_second,
    key_of,
    train_all,
)


def strategies_for(space: SearchSpace) -> list[str]:
    """Strategies that a space fits."""
    return [name for name, one in STRATEGIES.all().items() if one.misfit(space) is None]


def checked(settings: Settings, space: SearchSpace) -> Settings:
    """What was asked for, random search with it; all that fit where no strategy is named.

    Raises:
        UnknownNameError: No such strategy or evaluator.
        InvalidInputError: One that the space does not fit, or named twice; a number too small.
    """
    names = settings.strategies or tuple(strategies_for(space))
    for name in names:
        STRATEGIES.load(name).require_fit(space)
    if settings.evaluator not in EVALUATORS:
        raise UnknownNameError("evaluator", settings.evaluator, EVALUATORS)
    if len(set(names)) < len(names):
        raise InvalidInputError("a strategy is named twice")
    if settings.num_seeds < 1 or settings.num_evaluations < 4:
        raise InvalidInputError("a comparison needs one seed and four evaluations, or more")
    named = (RANDOM, *(name for name in names if name != RANDOM))
    return settings.model_copy(update={"strategies": named})


def compare(
    space: SearchSpace,
    dataset: ImageDataset,
    target: Target,
    run: Path,
    settings: Settings,
    *,
    workers: Workers = ALONE,
    max_minutes: float = np.inf,
    tell: Tell,
) -> Comparison:
    """Search, train and measure; writes ``run/comparison.json``.

    Args:
        space: Searched by all.
        dataset: Images.
        target: Profile and device, which measures every winner where it is attached.
        run: Directory, created; what it holds of the same jobs is not done again, and what it
            holds of others (another budget, profile, recipe, ...) is left alone.
        settings: What is compared; as :func:`checked` makes it.
        workers: How many trainings at a time, and where.
        max_minutes: No search and no training of a winner begins later.
        tell: How it goes.

    Raises:
        InfeasibleBudgetError: No network keeps the budget.
    """
    require_one_process("compare")
    settings = checked(settings, space)
    started = time.monotonic()

    def time_is_up() -> bool:
        return time.monotonic() - started > max_minutes * 60

    ensure_writable(run)
    problem = target.problem(space, settings.budget, tell)
    job = hash_of([settings.model_dump(mode="json"), problem.model.fingerprint])
    problem = target.refreshed(problem, tell, Drifts.kept_in(run, job))
    problem.require_reachable(np.random.default_rng(0))
    Drifts.of(problem, job).write(Drifts.file_in(run))
    bench = _Bench(problem, dataset, target, settings, run, workers)
    tell.note(bench.forecast())
    winners: list[Winner] = []
    todo = [(s, n) for n in range(settings.num_seeds) for s in settings.strategies]
    for number, (name, seed) in enumerate(todo):

        def told(text: str, share: float, name: str = name, done: int = number) -> None:
            tell.progress(f"searching: {name}, {text}", (done + share) / len(todo))

        one = bench.search_of(STRATEGIES.load(name), seed, told)
        if one.is_done or not time_is_up():
            winner = one.winner(time_is_up)
            winners += [] if winner is None else [winner]
    jobs = [
        (w, problem.space.layers(problem.space.encode([w.architecture])[0]), w.seed)
        for w in winners
    ]
    trained = train_all(
        [(nodes, bench.recipe(seed)) for _, nodes, seed in jobs],
        dataset, run / "trained", workers, time_is_up, tell.progress,
    )  # fmt: skip
    winners = [
        w.model_copy(
            update={"validation": t.validation, "test": t.test, "train_seconds": t.seconds}
        )
        if t is not None
        else w
        for w, t in zip(winners, trained, strict=True)
    ]
    if target.device is not None and winners:
        nodes = [nodes for _, nodes, _ in jobs]
        winners = _measured(winners, nodes, target, target.device, tell.progress)
    comparison = Comparison.model_validate(
        {
            "space": space.spec,
            "settings": settings,
            "data": data_record(dataset),
            "profile": str(target.profile),
            "device": problem.model.profile.identity.title,
            "supernet_seconds": bench.supernet_seconds,
            "winners": tuple(winners),
            "rows": tuple(rows_of(winners, settings)),
            "kendall_tau": tau_of(winners),
            "complete": len(winners) == len(todo) and all(w.test is not None for w in winners),
        }
    )
    comparison.write(Comparison.file_in(run))
    if comparison.complete:
        Drifts.file_in(run).unlink(missing_ok=True)
    return comparison


class _Bench:
    """What all searches of a comparison share: limits, images, supernets, trainings."""

    def __init__(
        self,
        problem: Problem,
        dataset: ImageDataset,
        target: Target,
        settings: Settings,
        run: Path,
        workers: Workers,
    ) -> None:
        self.problem, self.dataset, self.target = problem, dataset, target
        self.settings, self.run, self.workers = settings, run, workers
        self._seconds: dict[str, dict[int, float]] = {}

    @property
    def supernet_seconds(self) -> dict[str, float]:
        """Schedule -> mean seconds of a training."""
        return {k: float(np.mean(list(v.values()))) for k, v in self._seconds.items()}

    def recipe(self, seed: int) -> Recipe:
        """By which everything of a seed is trained from scratch."""
        return self.settings.recipe.model_copy(update={"seed": seed})

    def schedule_of(self, strategy: Strategy) -> str | None:
        """Of the supernet that a strategy searches; None where it has none."""
        own = self.problem.space.schedules[0]
        any_weights = own if self.settings.evaluator == "inherited" else None
        return {"own": None, "single-path": "single-path", "any": any_weights}[strategy.weights]

    def supernet(self, schedule: str, seed: int) -> tuple[SupernetRecipe, Path]:
        """How the supernet of a seed is trained, and where it is kept."""
        recipe = supernet_recipe(
            self.problem.space, self.dataset, self.settings.supernet_epochs, seed, schedule
        )
        key = hash_of([self.problem.space.spec, self.dataset.fingerprint, recipe.model_dump()])
        return recipe, self.run / "supernets" / f"{schedule}-seed{seed}-{key}"

    def train_supernet(self, schedule: str, seed: int, told: OnProgress) -> float:
        """Train it where it is not there; the seconds of its training, now or before."""
        recipe, folder = self.supernet(schedule, seed)
        if not exists(SupernetRecord.file_in(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            with clocked(folder, told) as (clock, _):
                train(self.problem.space, self.dataset, folder, recipe, clock)
        seconds = Spent.read(folder / "cost.json").seconds if exists(folder / "cost.json") else 0.0
        self._seconds.setdefault(schedule, {})[seed] = seconds
        return seconds

    def search_of(self, strategy: Strategy, seed: int, told: OnProgress) -> _Search:
        """The search of a strategy with one seed."""
        settings, space = self.settings, self.problem.space
        schedule = self.schedule_of(strategy)
        source: Source
        if schedule is not None:
            recipe, folder = self.supernet(schedule, seed)
            retrained = None
            if strategy.num_retrained:
                retrained = TrainedCandidates(
                    space, self.dataset, self.recipe(seed), self.run / "trained",
                    workers=self.workers, on_progress=told,
                )  # fmt: skip
            source = Inherited(
                space, self.dataset, folder, recipe, retrained=retrained, workers=self.workers
            )
        elif strategy.weights == "own":
            own = strategy.recipe(strategy.options(), seed)  # type: ignore[attr-defined]
            own = for_data(own, self.dataset, settings.supernet_epochs)
            source = Learning(space, self.dataset, strategy, own)  # type: ignore[arg-type]
        else:
            source = Candidates(
                space, self.dataset, self.recipe(seed), halving=settings.evaluator == "halving",
                workers=self.workers, trained=self.run / "trained",
            )  # fmt: skip
        num = 1 if strategy.weights == "own" else settings.num_evaluations
        effort = Effort(num, source.at_once)
        plan = Plan(strategy, strategy.options(), seed, effort, beside=False)
        return _Search(self, plan, source, schedule, told)

    def forecast(self) -> str:
        """How long it will take where nothing was done before, from a few training steps."""
        settings, space = self.settings, self.problem.space
        strategies = [STRATEGIES.load(name) for name in settings.strategies]
        speed = images_per_second(space, settings.recipe.batch_size)
        num, num_images = len(strategies) * settings.num_seeds, len(self.dataset.train)
        trainings = num + settings.num_seeds * sum(
            one.num_retrained - 1 for one in strategies if one.num_retrained
        )
        seconds = trainings * settings.recipe.epochs * num_images / speed
        seconds /= at_once(self.workers.num)
        for schedule in {self.schedule_of(one) for one in strategies} - {None}:
            recipe, _ = self.supernet(str(schedule), 0)
            paths = 1 if schedule == "single-path" else 3  # of a step, about
            seconds += settings.num_seeds * paths * recipe.epochs * num_images / speed
        for one in strategies:
            search = self.search_of(one, 0, lambda text, share: None)
            seconds += settings.num_seeds * search.source.forecast(space, search.plan)
        return (
            f"about {seconds / 60:.0f} minutes where nothing was done before: {num} searches, and "
            f"{trainings} trainings of {settings.recipe.epochs:g} epochs"
        )


@dataclass
class _Search:
    """One search of a comparison.

    Attributes:
        schedule: Of the supernet that it goes by.
    """

    bench: _Bench
    plan: Plan
    source: Source
    schedule: str | None
    told: OnProgress

    def __post_init__(self) -> None:
        bench, plan = self.bench, self.plan
        self.job = job_of(bench.problem, plan, self.source, bench.target).key
        folder = f"{plan.strategy.name}-seed{plan.seed}-{self.job}"
        self.folder = bench.run / "searches" / folder
        self.is_done = exists(SearchResult.file_in(self.folder)) and exists(
            self.folder / "cost.json"
        )

    def winner(self, time_is_up: Callable[[], bool]) -> Winner | None:
        """What it found, now or before; None where time was up before it began."""
        bench, plan = self.bench, self.plan
        seconds = 0.0
        if self.schedule is not None:
            seconds = bench.train_supernet(self.schedule, plan.seed, self.told)
        if not self.is_done:
            if time_is_up():
                return None
            self._search()
        best = SearchResult.read(SearchResult.file_in(self.folder)).best
        cheap = None
        if self.schedule is not None and not plan.strategy.num_retrained:
            cheap = best.accuracy
        elif bench.settings.evaluator == "halving" and plan.strategy.weights == "any":
            space = bench.problem.space
            cheap = _first_rung(
                space.layers(space.encode([best.architecture])[0]), bench.dataset,
                bench.run / "trained", bench.recipe(plan.seed),
            )  # fmt: skip
        return Winner(
            strategy=plan.strategy.name, seed=plan.seed, job=self.job,
            architecture=best.architecture,
            search_seconds=Spent.read(self.folder / "cost.json").seconds + seconds, cheap=cheap,
            predicted_latency_ms=best.predicted_latency_ms or 0.0,
        )  # fmt: skip

    def _search(self) -> None:
        """Leaves the result and its seconds in the folder."""
        bench, tell = self.bench, Tell(self.told)
        self.folder.mkdir(parents=True, exist_ok=True)
        believed = Drifts.of(bench.problem, self.job)  # the same by all
        believed.write(Drifts.file_in(self.folder))
        clock = self.folder / "clock"
        with clocked(clock, self.told) as (told, more):
            run_search(
                bench.settings.budget, self.plan, self.source, bench.target, self.folder,
                Tell(told, tell.note),
            )  # fmt: skip
            more.append(self.source.more_seconds)
        if not exists(self.folder / "cost.json"):  # of candidates, whose own seconds count
            Spent.read(clock / "cost.json").write(self.folder / "cost.json")


def _first_rung(
    nodes: list[Node], dataset: ImageDataset, trained: Path, recipe: Recipe
) -> float | None:
    """Validation accuracy after the shortest schedule of successive halving, where it had one."""
    first, *others = rungs_of(recipe, dataset, halving=True)
    file = trained / f"{key_of(nodes, dataset, first)}.json"
    return Trained.read(file).validation if others and exists(file) else None


RULE = StopRule(precision=0.01, min_sessions=4, max_sessions=8)


def _measured(
    winners: list[Winner],
    networks: Sequence[list[Node]],
    target: Target,
    device: Device,
    on_progress: OnProgress,
) -> list[Winner]:
    """Each winner's latency, all in one run; equal networks are one."""
    with temporary_folder() as folder:
        names = [hashlib.sha256(str(nodes).encode()).hexdigest()[:16] for nodes in networks]
        paths = {
            name: write_timed(folder / f"{name}.onnx", nodes, target.precision, 0)
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
