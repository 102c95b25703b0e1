"""The one search from files to files: limits, weights, the driver, the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from deploynas.artifacts import ensure_writable, sha256
from deploynas.nn import StaticNetwork
from deploynas.search import Budget, DataRecord, Plan, Problem, SearchResult
from deploynas.search import search as run_search
from deploynas.search.descent import Decide
from deploynas.search.job import Job
from deploynas.search.judging import Evaluator, Judge
from deploynas.search.result import SearchWeights
from deploynas.search.run import Outcome
from deploynas.spaces import Archs, SearchSpace
from deploynas.train.distributed import first_alone, is_first, processes, require_one_process
from deploynas.workflows.chosen import save_chosen
from deploynas.workflows.target import Drifts, Target, Tell


@dataclass
class Opened:
    """Weights that are there, and what goes by them.

    Attributes:
        evaluator: Accuracy under these weights.
        extract: Architecture -> its network, with its weights.
        data: What they were trained on.
        weights, held_in: As :class:`SearchResult` calls them and where they are.
        inputs: Files that were read.
        num_images: That set the chosen network's batch norms; 0 where they are not its own.
        images: Their folder, where that is not the data set.
        is_kept: Whether the chosen network is in ``held_in`` anyway, and needs no file.
        decide, settle: As the driver takes them.
        finish: What else is to be said of a result, and of the row that was chosen.
        saved: Called with the chosen row once the result is on disk.
        close: To be left in the end.
    """

    evaluator: Evaluator
    extract: Callable[[Archs], StaticNetwork]
    data: DataRecord
    weights: SearchWeights
    held_in: Path
    inputs: Sequence[Path] = ()
    num_images: int = 0
    images: Path | None = None
    is_kept: bool = False
    decide: Decide | None = None
    settle: tuple[int, Judge] | None = None
    finish: Callable[[SearchResult, Archs], SearchResult] = lambda result, arch: result
    saved: Callable[[Archs], None] = lambda arch: None
    close: ExitStack = field(default_factory=ExitStack)


class Source(Protocol):
    """Where the weights of a search come from.

    Attributes:
        space: What can be searched under them.
        data: Fingerprint of the images.
        identity: How they come about, or their hash: with it and the plan a search is determined.
        num_evaluations: Of a search for which nobody chose.
        at_once: Networks that are evaluated at a time.
        beside: Whether evaluations are cheap enough for a random search beside the strategy.
        in_processes: Whether processes that torchrun started share the work.
        more_seconds: Of the processor, that a search took beyond what the clock says.
    """

    @property
    def space(self) -> SearchSpace:
        """See the class."""

    @property
    def data(self) -> str:
        """See the class."""

    @property
    def identity(self) -> str:
        """See the class."""

    @property
    def num_evaluations(self) -> int:
        """See the class."""

    @property
    def at_once(self) -> int:
        """See the class."""

    @property
    def beside(self) -> bool:
        """See the class."""

    @property
    def in_processes(self) -> bool:
        """See the class."""

    @property
    def more_seconds(self) -> float:
        """See the class."""

    def forecast(self, space: SearchSpace, plan: Plan) -> float:
        """Seconds that a search takes here where nothing was done before, about."""
        ...

    def open(self, problem: Problem, plan: Plan, run: Path, tell: Tell) -> Opened:
        """Train what is to be trained, and open it.

        Args:
            problem: Limits, which gradient searches are steered by.
            plan: Of the search.
            run: Directory for what is trained; goes on where it was stopped.
            tell: How it goes.
        """
        ...


def search(
    budget: Budget, plan: Plan, source: Source, target: Target, run: Path, tell: Tell
) -> SearchResult:
    """Search; writes ``run/search.json``, and the chosen network where nothing else keeps it.

    An impossible budget or a profile that cannot be completed here ends before any training. What
    was stopped goes on. Under ``torchrun`` a gradient search learns in all processes, then all but
    the first end.

    Args:
        budget: Hard limits.
        plan: Strategy, options, seed, effort.
        source: Where the weights come from.
        target: Profile and device; finalists are measured where that is attached.
        run: Directory, created.
        tell: How it goes.

    Raises:
        InfeasibleBudgetError: No network keeps the limits, by prediction or by measurement.
        InvalidInputError: The strategy does not fit the space; of the weights or the data.
        IncompleteProfileError: Something lacks in the profile, and its device is elsewhere.
        SystemExit: This is not the first process, and its work is done.
    """
    plan.strategy.require_fit(source.space)
    if not source.in_processes:
        require_one_process(f"a search by {plan.strategy.name}")
    with processes():
        with first_alone() as goes_first:  # it may add layers to the profile
            own = target if goes_first else target.detached()
            problem = own.problem(source.space, budget, tell)
            job = job_of(problem, plan, source, target)
            kept = Drifts.kept_in(run, job.key if goes_first else None)
            problem = own.refreshed(problem, tell, kept)
            problem.require_reachable(np.random.default_rng(plan.seed))
            if goes_first:
                ensure_writable(run)
                Drifts.of(problem, job.key).write(Drifts.file_in(run))
        opened = source.open(problem, plan, run, tell)
    if not is_first():
        raise SystemExit(0)
    with opened.close:
        outcome = run_search(
            problem, opened.evaluator, plan,
            measure=target.measure(opened.extract, problem.limits), decide=opened.decide,
            settle=opened.settle, keep_in=run, on_progress=tell.progress,
        )  # fmt: skip
        arch = problem.space.encode([outcome.best.architecture])[0]
        result = _as_result(outcome, problem, job, opened, target)
        result = opened.finish(result, arch)
        if opened.is_kept:
            result.write(SearchResult.file_in(run))
        else:
            save_chosen(
                run, result, opened.extract(arch), num_images=opened.num_images,
                images=opened.images,
            )  # fmt: skip
        opened.saved(arch)
        Drifts.file_in(run).unlink(missing_ok=True)
    return result


def job_of(problem: Problem, plan: Plan, source: Source, target: Target) -> Job:
    """What a search is."""
    others = {name: model.fingerprint for name, model in (problem.others or {}).items()}
    return Job.model_validate(
        {
            "space": problem.space.spec,
            "data": source.data,
            "profiles": {"": problem.model.fingerprint, **others},
            "budget": problem.budget,
            "strategy": plan.strategy.name,
            "options": plan.options.model_dump(mode="json"),
            "evaluator": source.identity,
            "num_evaluations": plan.effort.num_evaluations,
            "at_once": plan.effort.at_once,
            "beside": plan.beside,
            "precision": target.precision,
            "seed": plan.seed,
            "attached": target.is_attached,
        }
    )


def _as_result(
    outcome: Outcome, problem: Problem, job: Job, opened: Opened, target: Target
) -> SearchResult:
    """The one result format: what was found, under whose latency, from which files."""
    model = problem.model
    profiles = {name: other.profile for name, other in target.others.items()}
    files = [target.profile, *profiles.values(), *opened.inputs]
    return SearchResult.model_validate(
        {
            **vars(outcome),
            "job": job.key,
            "space": problem.space.spec,
            "strategy": job.strategy,
            "options": job.options,
            "seed": job.seed,
            "budget": job.budget,
            "profile": str(target.profile),
            "profiles": {name: str(path) for name, path in profiles.items()},
            "precision": model.precision,
            "device": model.profile.identity,
            "core_ms": model.level.core_ms,
            "memory_ms": model.level.memory_ms,
            "drift": model.drift,
            "drifts": {name: other.drift for name, other in (problem.others or {}).items()},
            "data": opened.data,
            "supernet": str(opened.held_in),
            "weights": opened.weights,
            "inputs": {str(path): sha256(path) for path in files},
        }
    )
