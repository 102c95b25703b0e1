"""The one driver of searches: limits, evaluations, finalists, and what stands beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploynas.costs import Floats
from deploynas.errors import InfeasibleBudgetError
from deploynas.search.budget import own_name
from deploynas.search.descent import Decide, Descent, Measure, OnDevice, chosen
from deploynas.search.drawing import MAX_DRAWS
from deploynas.search.evaluations import Evaluations
from deploynas.search.fronts import front, hypervolume, knee
from deploynas.search.judging import Evaluator, Judge, Judged, by_score
from deploynas.search.problem import Problem
from deploynas.search.result import AccuracyKind, Candidate, FoundBy, FrontPoint, TradeOff
from deploynas.search.strategies.random import STRATEGY as RANDOM
from deploynas.search.strategy import Effort, Evaluating, Searcher, Strategy
from deploynas.spaces import Archs


@dataclass(frozen=True)
class History:
    """Every distinct architecture within the limits that a strategy had evaluated, in order.

    Attributes:
        archs: ``(n, num_choices)``.
        accuracies: ``(n,)`` fractions.
    """

    archs: Archs
    accuracies: Floats

    def best(self, k: int) -> list[int]:
        """Indices of the ``k`` most accurate, best first."""
        return by_score(self.accuracies)[:k]

    def front(self, costs: Floats) -> list[int]:
        """Indices of the Pareto front, cheapest first: no other is as cheap and as accurate.

        Args:
            costs: ``(n,)``, or ``(n, num_costs)``, of which none may be beaten.
        """
        return front(costs, self.accuracies)


@dataclass(frozen=True)
class Plan:
    """How a problem is searched.

    Attributes:
        strategy, options: Which, and its own.
        seed: Of every draw.
        effort: Of the strategy, and of the random search beside it.
        beside: Whether a random search of as many evaluations, uniform networks, and the space's
            largest and smallest are evaluated beside the strategy.
    """

    strategy: Strategy
    options: Any
    seed: int
    effort: Effort
    beside: bool = True


@dataclass(frozen=True)
class Outcome:
    """What :func:`search` found; each field as in :class:`SearchResult`."""

    best: Candidate
    found_by: FoundBy
    random_best: Candidate | None
    uniform_best: Candidate | None
    largest: Candidate | None
    smallest: Candidate | None
    front: tuple[FrontPoint, ...]
    trade_off: TradeOff | None
    not_binding: tuple[str, ...]
    num_evaluations: int
    measured: dict[str, float]


def explore(
    strategy: Evaluating,
    options: Any,
    problem: Problem,
    evaluate: Judge,
    rng: np.random.Generator,
    effort: Effort,
    fidelity: str = "quick",
) -> History:
    """Run a strategy: ask it, evaluate, tell it, until it has nothing more or has had enough.

    Networks that are equal are one, and are evaluated once; what a strategy asks for outside the
    limits it is told about, but it is no result.

    Raises:
        InfeasibleBudgetError: No network within the limits was found.
    """
    searcher: Searcher = strategy.searcher(problem, options, rng, effort)
    known: dict[bytes, float] = {}
    rows: list[Archs] = []
    stuck = 0
    while len(known) < effort.num_evaluations and stuck < MAX_DRAWS:
        asked = searcher.ask(effort.num_evaluations - len(known))
        if not len(asked):
            break
        asked = problem.space.canonical(asked)
        keys = [arch.tobytes() for arch in asked]
        fresh = [i for i, key in enumerate(keys) if key not in known and key not in keys[:i]]
        stuck = 0 if fresh else stuck + 1
        if fresh:
            scores = evaluate(asked[fresh])
            known.update((keys[i], float(score)) for i, score in zip(fresh, scores, strict=True))
            rows += [asked[i] for i in fresh]
        searcher.tell(asked, np.array([known[key] for key in keys]), fidelity)
    if not rows:
        raise InfeasibleBudgetError(
            f"{strategy.name} found no network of {problem.space.name} within the limits"
        )
    archs = np.stack(rows)
    scores = np.array([known[arch.tobytes()] for arch in archs])
    kept = problem.admits(archs)
    if not kept.any():
        raise InfeasibleBudgetError(f"{strategy.name} evaluated no network within the limits")
    return History(archs[kept], scores[kept])


def search(
    problem: Problem,
    evaluator: Evaluator,
    plan: Plan,
    *,
    measure: Measure | None = None,
    decide: Decide | None = None,
    settle: tuple[int, Judge] | None = None,
    keep_in: Path | None = None,
    on_progress: Callable[[str, float], None] = lambda text, share: None,
) -> Outcome:
    """Find the most accurate network within the limits.

    Whatever was evaluated may win: what the strategy found, what the random search beside it drew,
    a uniform network. Where a device measures a network over a limit, the next one is the best of
    all evaluated whose prediction is lower by as much; where there is none, of a few more that are
    drawn there.

    Args:
        problem: Space, costs and limits.
        evaluator: Accuracy of architectures.
        plan: Strategy, seed, effort.
        measure: Measures limited costs on the attached devices (upper confidence bounds); where
            None, or of a limit that it does not tell, the predictions' bounds decide.
        decide: What a gradient search found for a share of the measured limits. What measures over
            one gives way to the network of as much less; what leaves much of it unused, to one of
            more whose prediction alone still keeps it.
        settle: How many of the finalists are judged anew, and by what: they are ordered by it, and
            the result states it.
        keep_in: A run's directory, where every evaluation is kept, and looked up first.
        on_progress: Called with what is going on and its share done.

    Raises:
        InfeasibleBudgetError: No network keeps the limits, by prediction or by measurement.
    """
    space, num = problem.space, evaluator.num_finalists
    not_binding = problem.require_reachable(np.random.default_rng(plan.seed))
    identity = evaluator.identity if keep_in is not None else None
    with Evaluations(keep_in or Path(), identity, space) as kept:
        if kept.damage:
            on_progress(kept.damage, 0.0)
        expected = plan.effort.num_evaluations * (2 if plan.beside else 1)
        judged = Judged(evaluator, kept, max(1, expected), on_progress)
        pools: dict[FoundBy, Archs] = {}
        if decide is None:
            assert isinstance(plan.strategy, Evaluating)
            rng = np.random.default_rng(plan.seed)
            history = explore(
                plan.strategy, plan.options, problem, judged.scores, rng, plan.effort
            )
            pools["strategy"] = history.archs
        else:
            first = decide(1.0)
            assert first is not None
            history = History(first[None], judged.scores(first[None]))
        if plan.beside and plan.strategy is not RANDOM:
            own, effort = np.random.default_rng([plan.seed, 1]), plan.effort
            drawn = explore(RANDOM, RANDOM.options(), problem, judged.scores, own, effort)
            pools["random"] = drawn.archs
        uniform = space.uniform()
        uniform = np.unique(uniform[problem.admits(uniform)], axis=0)
        if plan.beside and len(uniform):
            dearest = uniform[np.argsort(-space.macs(uniform), kind="stable")][:24]
            judged.scores(dearest)
            pools["uniform"] = dearest
        if len(not_binding) == len(problem.limits) and decide is None:
            judged.scores(space.largest())
            pools["largest"] = space.largest()
        best_of = {name: judged.best(archs, num) for name, archs in pools.items()}
        finalists = judged.ranked(list(best_of.values()))
        judge: Judge = judged.final
        if settle is not None:
            count, judge = settle
            finalists = judged.settled(finalists[:count], judge)
        on_device = None if measure is None else OnDevice(problem, measure)
        descent = Descent(
            judged, finalists, np.concatenate([*pools.values(), space.as_rows([])]), on_device,
            judge, num if settle is None else 1,
        )  # fmt: skip
        if on_device is not None:
            on_progress("measuring finalists", 0.0)
        best, measured = chosen(decide, history.archs[0], descent, judged, on_device)
        shown, trade_off = front_of(history, problem, plan.strategy.shown_costs(plan.options))

        def candidate(arch: Archs) -> Candidate:
            return describe(problem, arch, judged.accuracy(arch), evaluator.kind)

        def first_of(name: FoundBy) -> Candidate | None:
            return candidate(best_of[name][0]) if name in best_of else None

        held = [name for name, archs in pools.items() if (archs == best).all(axis=1).any()]
        return Outcome(
            best=candidate(best),
            found_by=held[0] if held else "drawn" if decide is None else "strategy",
            random_best=first_of("random"),
            uniform_best=first_of("uniform"),
            largest=candidate(space.largest()[0]) if plan.beside else None,
            smallest=candidate(space.smallest()[0]) if plan.beside else None,
            front=shown,
            trade_off=trade_off,
            not_binding=tuple(not_binding),
            num_evaluations=plan.effort.num_evaluations,
            measured=measured,
        )


def describe(problem: Problem, arch: Archs, accuracy: float, kind: AccuracyKind) -> Candidate:
    """A network with its costs and its prediction."""
    space, row, model = problem.space, arch[None], problem.model
    predicted = float(model.predict_ms(row)[0])
    own = Candidate.model_fields
    return Candidate.model_validate(
        {
            "architecture": space.decode(row)[0],
            "predicted_latency_ms": predicted,
            "prediction_error": model.half_width,
            "extrapolated": model.extrapolates(predicted),
            "macs": int(space.macs(row)[0]),
            "params": int(space.params(row)[0]),
            "peak_memory_bytes": int(space.peak_memory_bytes(row)[0]),
            "costs": {
                name: float(problem.cost(name).predict(row)[0])
                for name in problem.limits
                if name not in own and name != "latency_ms"
            },
            "accuracy": accuracy,
            "accuracy_kind": kind,
        }
    )


def front_of(
    history: History, problem: Problem, names: Sequence[str]
) -> tuple[tuple[FrontPoint, ...], TradeOff | None]:
    """The Pareto front among what the strategy evaluated, and its worth; None of a single one.

    What is equal in all that was evaluated is left out of the hypervolume.
    """
    predicted, accuracies = problem.model.predict_ms(history.archs), history.accuracies
    costs = problem.values(history.archs, names)
    for column, name in enumerate(names):  # of a latency the prediction itself, as elsewhere
        if own_name(name) == "latency_ms":
            costs[:, column] = problem.cost(name).predict(history.archs)
    rows = history.front(costs)
    signs = np.array([-1.0 if problem.cost(name).at_least else 1.0 for name in names])
    points = tuple(
        FrontPoint.model_validate(
            {
                "architecture": arch,
                "predicted_latency_ms": float(predicted[row]),
                "costs": tuple((signs * costs[row]).tolist()),
                "accuracy": float(accuracies[row]),
            }
        )
        for row, arch in zip(rows, problem.space.decode(history.archs[rows]), strict=True)
    )
    if len(rows) < 2:
        return points, None
    worst, worst_accuracy = costs.max(axis=0), float(accuracies.min())
    corner = worst + (worst == costs.min(axis=0))  # of length 1 where all are equal
    least = worst_accuracy - (worst_accuracy == accuracies.max())
    sides = (*(corner - costs[rows].min(axis=0)), accuracies[rows].max() - least)
    found = hypervolume(costs[rows], accuracies[rows], (*corner.tolist(), float(least)))
    return points, TradeOff(
        costs=tuple(names),
        hypervolume=min(1.0, found / float(np.prod(sides))),
        worst=tuple((signs * worst).tolist()),
        worst_accuracy=worst_accuracy,
        knee=knee(costs[rows], accuracies[rows]),
    )
