"""The one driver of searches: limits, evaluations, finalists, and what stands beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deploynas.costs import Floats
from deploynas.errors import InfeasibleBudgetError
from deploynas.search.budget import own_name
from deploynas.search.drawing import MAX_DRAWS, uniform_samples
from deploynas.search.evaluations import Evaluations
from deploynas.search.fronts import front, hypervolume, knee
from deploynas.search.problem import Problem
from deploynas.search.result import AccuracyKind, Candidate, FoundBy, FrontPoint, TradeOff
from deploynas.search.strategies.random import STRATEGY as RANDOM
from deploynas.search.strategy import Effort, Evaluating, Searcher, Strategy
from deploynas.spaces import Archs


class Evaluator(Protocol):
    """Accuracy of architectures.

    Attributes:
        identity: Of what judges: equal ones give equal accuracies, in this process or another;
            None where evaluations need not be kept.
        kind: Whether :meth:`final` measured it.
        num_finalists: Architectures that :meth:`final` ranks.
    """

    @property
    def identity(self) -> str | None:
        """See the class."""

    @property
    def kind(self) -> AccuracyKind:
        """See the class."""

    @property
    def num_finalists(self) -> int:
        """See the class."""

    def quick(self, archs: Archs) -> Iterable[float]:
        """A fraction each, in order, for the search's inner loop, all by the same measure.

        One that comes before the next is made is kept at once.
        """
        ...

    def promising(self, archs: Archs, scores: Floats) -> list[int]:
        """Indices, the most promising first, by their quick scores and what else is known."""
        ...

    def final(self, archs: Archs) -> Floats:
        """``(n,)`` fractions by which finalists are ranked, and which the result states."""
        ...


def by_score(scores: Floats) -> list[int]:
    """Indices, the highest score first, where nothing else is known."""
    return [int(i) for i in np.argsort(-scores, kind="stable")]


Measure = Callable[[Archs], Mapping[str, float]]  # limited cost -> upper confidence bound
Decide = Callable[[float], Archs | None]
Judge = Callable[[Archs], Floats]
MAX_MEASURED, STEP_DOWN = 12, 0.005
MAX_REFINED, USE = 2, 0.96
NUM_MORE = 200  # drawn where the machine is so slow that nothing evaluated is quick enough


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
        judged = _Judged(evaluator, kept, max(1, expected), on_progress)
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
        on_device = None if measure is None else _OnDevice(problem, measure)
        descent = _Descent(
            judged, finalists, np.concatenate([*pools.values(), space.as_rows([])]), on_device,
            judge, num if settle is None else 1,
        )  # fmt: skip
        if on_device is not None:
            on_progress("measuring finalists", 0.0)
        best, measured = _chosen(decide, history.archs[0], descent, judged, on_device)
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


class _Judged:
    """What was evaluated so far, each network once."""

    def __init__(
        self,
        evaluator: Evaluator,
        kept: Evaluations,
        expected: int,
        on_progress: Callable[[str, float], None],
    ) -> None:
        self._evaluator, self._kept, self._expected = evaluator, kept, expected
        self._on_progress = on_progress
        self._quick: dict[bytes, float] = {}
        self._final: dict[bytes, float] = {}

    def scores(self, archs: Archs) -> Floats:
        """``(n,)`` quick evaluations."""
        new = []
        for arch in archs:
            if arch.tobytes() not in self._quick:
                known = self._kept.get(arch, "quick")
                if known is None:
                    new.append(arch)
                else:
                    self._quick[arch.tobytes()] = known
        found = self._evaluator.quick(np.stack(new)) if new else ()
        for arch, score in zip(new, found, strict=True):
            self._quick[arch.tobytes()] = float(score)
            self._kept.add(arch, "quick", float(score))
            done = min(1.0, len(self._quick) / self._expected)
            self._on_progress("evaluating networks", done)
        return np.array([self._quick[arch.tobytes()] for arch in archs])

    def accuracy(self, arch: Archs) -> float:
        """By which finalists are ranked, of one network."""
        key = arch.tobytes()
        if key not in self._final:
            found = self._kept.get(arch, "final")
            if found is None:
                found = float(self._evaluator.final(arch[None])[0])
                self._kept.add(arch, "final", found)
            self._final[key] = found
        return self._final[key]

    def final(self, archs: Archs) -> Floats:
        """``(n,)``."""
        return np.array([self.accuracy(arch) for arch in archs])

    def settled(self, archs: Archs, judge: Judge) -> Archs:
        """Networks in the order of another judge, whose accuracies stand from now on."""
        scores = judge(archs)
        self._final.update((a.tobytes(), float(s)) for a, s in zip(archs, scores, strict=True))
        ordered: Archs = archs[by_score(scores)]
        return ordered

    def best(self, archs: Archs, num: int) -> Archs:
        """The most promising few, in the order of their final accuracy."""
        picked = archs[self._evaluator.promising(archs, self.scores(archs))[:num]]
        ordered: Archs = picked[by_score(self.final(picked))]
        return ordered

    def ranked(self, parts: Sequence[Archs]) -> Archs:
        """All of several, the most accurate first; the earlier part where they are equal."""
        if not parts:
            return np.zeros((0, 0), np.uint8)
        both = np.concatenate(parts)
        both = both[np.sort(np.unique(both, axis=0, return_index=True)[1])]
        ordered: Archs = both[by_score(self.final(both))]
        return ordered


class _OnDevice:
    """Limits that devices measure, as shares of what is allowed.

    Args:
        problem: Limits and predictions.
        measure: As in :func:`search`.

    Attributes:
        limits: Name -> limit, of what is measured.
    """

    def __init__(self, problem: Problem, measure: Measure) -> None:
        self._problem, self._measure = problem, measure
        self._known: dict[bytes, dict[str, float]] = {}

    def measured(self, arch: Archs) -> dict[str, float]:
        """Cost -> upper confidence bound; measured once a network."""
        key = arch.tobytes()
        if key not in self._known:
            found = self._measure(arch)
            self._known[key] = {k: v for k, v in found.items() if k in self._problem.limits}
        return self._known[key]

    def worst(self, arch: Archs) -> tuple[float, str]:
        """The largest share of a limit that a network was measured to take, and which that is."""
        problem, limits = self._problem, self._problem.limits
        shares = [
            (
                problem.cost(name).share(value, limits[name]),
                f"{name} {value:.4g} where {limits[name]:g} is allowed",
            )
            for name, value in self.measured(arch).items()
        ]
        return max(shares, default=(0.0, ""))

    def predicted(self, archs: Archs) -> Floats:
        """``(n,)`` the largest share of a limit on a latency that a bound predicts."""
        shares = [
            self._problem.cost(name).upper(archs) / limit
            for name, limit in self._problem.latencies.items()
        ]
        found: Floats = np.max([np.zeros(len(archs)), *shares], axis=0)
        return found

    def more(self, share: float, num: int) -> Archs:
        """Up to ``num`` networks that are predicted to take such a share of the limits, or less.

        Of many that are drawn the nearest to it.
        """
        problem = self._problem.tightened(share)
        try:
            drawn = uniform_samples(NUM_MORE, problem, np.random.default_rng(0))
        except InfeasibleBudgetError:
            return problem.space.as_rows([])
        nearest: Archs = drawn[np.argsort(-self.predicted(drawn), kind="stable")[:num]]
        return nearest

    @property
    def error(self) -> float:
        """The least error that the latency models state."""
        models = [self._problem.model, *(self._problem.others or {}).values()]
        return min(model.half_width for model in models)


class _Descent:
    """Networks to measure, ever lower: finalists, the best of all that was evaluated, then more.

    Args:
        judged: Accuracies.
        finalists: The most accurate first.
        pool: All that was evaluated.
        on_device: Predicts; None where nothing is measured.
        judge: Of what comes after the finalists.
        num: Networks that it judges at a time.
    """

    def __init__(
        self,
        judged: _Judged,
        finalists: Archs,
        pool: Archs,
        on_device: _OnDevice | None,
        judge: Judge,
        num: int,
    ) -> None:
        self._judged, self._judge, self._num = judged, judge, num
        self._waiting, self._pool = list(finalists), pool
        self._on_device = on_device
        self._seen = {arch.tobytes() for arch in finalists}

    def __call__(self, share: float) -> Archs | None:
        """The best that is predicted to take at most such a share of the limits; each once."""
        assert self._on_device is not None
        predicted = self._on_device.predicted
        fitting = [arch for arch in self._waiting if predicted(arch[None])[0] <= share]
        if len(self._pool):
            fresh = np.array([arch.tobytes() not in self._seen for arch in self._pool])
            rest = self._pool[fresh & (predicted(self._pool) <= share)]
            if not len(rest) and not fitting:
                more = self._on_device.more(share, self._num)
                rest = more[[arch.tobytes() not in self._seen for arch in more]]
            better = share < 1 and bool(fitting) and self._promises_more(rest, fitting[0])
            if len(rest) and (better or not fitting):
                picked = self._judged.best(rest, self._num)
                if self._judge != self._judged.final:
                    picked = self._judged.settled(picked, self._judge)
                self._seen |= {arch.tobytes() for arch in picked}
                self._waiting += list(picked)
                fitting += list(picked)
                fitting.sort(key=lambda arch: -self._judged.accuracy(arch))
        if not fitting:
            return None
        taken: Archs = fitting[0]
        self._waiting = [arch for arch in self._waiting if arch is not taken]
        return taken

    def _promises_more(self, archs: Archs, than: Archs) -> bool:
        """By quick evaluations, which are known."""
        scores = self._judged.scores(archs)
        return bool((scores > self._judged.scores(than[None])[0]).any())

    def better_than(self, accuracy: float) -> list[Archs]:
        """The finalists that are more accurate, the most accurate first."""
        return [arch for arch in self._waiting if self._judged.accuracy(arch) > accuracy]


def _chosen(
    decide: Decide | None,
    first: Archs,
    descent: _Descent,
    judged: _Judged,
    on_device: _OnDevice | None,
) -> tuple[Archs, dict[str, float]]:
    """The network to return, and what it was measured to take.

    Args:
        decide: As in :func:`search`.
        first: What it found for the whole limits.
        descent: All else.
        judged: Accuracies.
        on_device: Measures; None where the devices are elsewhere.

    Raises:
        InfeasibleBudgetError: Nothing measures within the limits.
    """
    if on_device is None:
        if decide is None:
            return descent.better_than(-np.inf)[0], {}
        more_accurate = descent.better_than(judged.accuracy(first))
        return (more_accurate[0] if more_accurate else first), {}
    if decide is None:
        best = first_within(descent, on_device.worst)
        return best, on_device.measured(best)
    try:
        best = first_within(decide, on_device.worst, most=1 + on_device.error)
    except InfeasibleBudgetError:
        best = first_within(descent, on_device.worst)
        return best, on_device.measured(best)
    for other in descent.better_than(judged.accuracy(best)):
        if on_device.worst(other)[0] <= 1:
            return other, on_device.measured(other)
    return best, on_device.measured(best)


def first_within(
    propose: Callable[[float], Archs | None],
    measured: Callable[[Archs], tuple[float, str]],
    *,
    most: float | None = None,
) -> Archs:
    """The first network that measures within the limits.

    Args:
        propose: Share of the limits that the next network may be predicted to take, by what the
            last one measured -> that network; None where there is no other.
        measured: Share of the limits that a network takes, and what to say of it.
        most: Where given, a network of a larger share may take the first one's place, where that
            leaves more than 1 - :data:`USE` of the limits unused: of a share below what measured
            over, and at most of this one, with which the prediction itself, its error left to the
            measurement, still keeps the limits.

    Raises:
        InfeasibleBudgetError: All were predicted within the limits and measure over them.
    """
    found: list[tuple[float, str]] = []
    share, beyond = 1.0, 1.0
    while len(found) < MAX_MEASURED and (arch := propose(share)) is not None:
        found.append(measured(arch))
        if found[-1][0] <= 1:
            break
        beyond = share
        share *= (1 - STEP_DOWN) / found[-1][0]
    if not found or found[-1][0] > 1 or arch is None:
        nearest = ""
        if found:
            nearest = f", the nearest reaches {min(found)[1]}"
        raise InfeasibleBudgetError(
            f"none of the {len(found)} finalists measures within the limits{nearest}: the machine "
            "is slower than its profile",
            "every evaluation is kept: search again when it is quiet, under a larger budget, or "
            "under a new profile",
        )
    best, used = arch, found[-1][0]
    for _ in range(0 if most is None else MAX_REFINED):
        if used >= USE:
            break
        if beyond > share:  # that measured over
            larger = (share + beyond) / 2
        else:
            larger = min(most or share, share / used * (1 - STEP_DOWN))
        tried = propose(larger)
        if tried is None or (tried == best).all():
            share = larger
            continue
        took, _ = measured(tried)
        if took <= 1:
            best, used, share = tried, took, larger
        else:
            beyond = larger
    return best


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
