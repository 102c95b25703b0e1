"""One search: budget check, strategy, finalists, and the random search beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deploynas.errors import InfeasibleBudgetError
from deploynas.profile import LatencyModel
from deploynas.search.budget import Budget
from deploynas.search.evaluations import Evaluations
from deploynas.search.fronts import hypervolume, knee
from deploynas.search.result import AccuracyKind, Candidate, FoundBy, FrontPoint, TradeOff
from deploynas.search.strategies import (
    STRATEGIES,
    Floats,
    History,
    costs_of,
    random_search,
)
from deploynas.spaces import Archs


class Evaluator(Protocol):
    """Accuracy of architectures.

    Attributes:
        identity: Of what judges: equal ones give equal accuracies, in this process or another;
            None where evaluations need not be kept.
        kind: Whether :meth:`final` measured it.
        chunk: Architectures at a time, between which evaluations are kept and progress is told.
        num_finalists: Architectures that :meth:`final` ranks.
    """

    @property
    def identity(self) -> str | None:
        """See the class."""

    @property
    def kind(self) -> AccuracyKind:
        """See the class."""

    @property
    def chunk(self) -> int:
        """See the class."""

    @property
    def num_finalists(self) -> int:
        """See the class."""

    def quick(self, archs: Archs) -> Floats:
        """``(n,)`` fractions for the search's inner loop, all by the same measure."""
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


MeasureMs = Callable[[Archs], float]
Decide = Callable[[float], Archs | None]
Judge = Callable[[Archs], Floats]
MAX_MEASURED, STEP_DOWN = 12, 0.005
MAX_REFINED, USE = 2, 0.96


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
    measured_latency_ms: float | None


def search(
    model: LatencyModel,
    evaluator: Evaluator,
    budget: Budget,
    *,
    strategy: str,
    seed: int,
    num_evaluations: int,
    measure_ms: MeasureMs | None,
    decide: Decide | None = None,
    beside: bool = True,
    settle: tuple[int, Judge] | None = None,
    options: Mapping[str, Any] | None = None,
    keep_in: Path | None = None,
    on_progress: Callable[[str, float], None] = lambda text, share: None,
) -> Outcome:
    """Find the most accurate network within budget.

    Whatever was evaluated may win: what the strategy found, what the random search beside it drew,
    a uniform network. Where the device measures a network over budget, the next one is the best of
    all evaluated whose prediction is lower by as much.

    Args:
        model: Space and latency.
        evaluator: Accuracy of architectures.
        budget: Hard limits.
        strategy: A key of ``STRATEGIES``; the strategy's name where it is ``decide`` that
            searched.
        seed: Of every draw.
        num_evaluations: Architectures that the strategy, and the random search, may evaluate.
        measure_ms: Measures a network on the attached device (its upper confidence bound);
            None where the device is elsewhere, so that the prediction's bound decides.
        decide: What a gradient search found for a share of the latency budget. What measures over
            budget gives way to the network of as much less; what leaves much of it unused, to one
            of more whose prediction alone still keeps it.
        beside: Whether a random search of as many evaluations, uniform networks, and the space's
            largest and smallest are evaluated beside the strategy.
        settle: How many of the finalists are judged anew, and by what: they are ordered by it, and
            the result states it.
        options: The strategy's own; ``costs`` are those of the front as well.
        keep_in: A run's directory, where every evaluation is kept, and looked up first.
        on_progress: Called with what is going on and its share done.

    Raises:
        InfeasibleBudgetError: No network keeps the budget, by prediction or by measurement.
    """
    rng = np.random.default_rng(seed)
    not_binding = budget.require_reachable(model, rng)
    space, num = model.space, evaluator.num_finalists
    identity = evaluator.identity if keep_in is not None else None
    with Evaluations(keep_in or Path(), identity, space) as kept:
        judged = _Judged(
            evaluator, kept, max(1, num_evaluations * (2 if beside else 1)), on_progress
        )
        pools: dict[FoundBy, Archs] = {}
        if decide is None:
            history = STRATEGIES[strategy](
                budget, model, judged.scores, rng, num_evaluations, **(options or {})
            )
            pools["strategy"] = history.archs
        else:
            first = decide(1.0)
            assert first is not None
            history = History(first[None], judged.scores(first[None]))
        if beside and strategy != "random":
            own = np.random.default_rng([seed, 1])
            drawn = random_search(budget, model, judged.scores, own, num_evaluations)
            pools["random"] = drawn.archs
        uniform = space.uniform()
        uniform = np.unique(uniform[budget.admits(uniform, model)], axis=0)
        if beside and len(uniform):
            dearest = uniform[np.argsort(-space.macs(uniform), kind="stable")][:24]
            judged.scores(dearest)
            pools["uniform"] = dearest
        if len(not_binding) == len(budget.model_dump(exclude_none=True)) and decide is None:
            judged.scores(space.largest())
            pools["largest"] = space.largest()
        best_of = {name: judged.best(archs, num) for name, archs in pools.items()}
        finalists = judged.ranked(list(best_of.values()))
        judge: Judge = judged.final
        if settle is not None:
            count, judge = settle
            finalists = judged.settled(finalists[:count], judge)
        descent = _Descent(
            judged, finalists, np.concatenate([*pools.values(), space.as_rows([])]), model,
            budget.latency_ms, judge, num if settle is None else 1,
        )  # fmt: skip
        limit = budget.latency_ms if measure_ms is not None else None
        if limit is not None:
            on_progress("measuring finalists", 0.0)
        best, measured = _chosen(
            decide, history.archs[0], descent, judged, model, limit, measure_ms
        )
        front, trade_off = _front(history, model, (options or {}).get("costs", ("latency_ms",)))

        def candidate(arch: Archs) -> Candidate:
            return describe(model, arch, judged.accuracy(arch), evaluator.kind)

        def first_of(name: FoundBy) -> Candidate | None:
            return candidate(best_of[name][0]) if name in best_of else None

        held = [name for name, archs in pools.items() if (archs == best).all(axis=1).any()]
        return Outcome(
            best=candidate(best),
            found_by="strategy" if decide is not None and not held else held[0],
            random_best=first_of("random"),
            uniform_best=first_of("uniform"),
            largest=candidate(space.largest()[0]) if beside else None,
            smallest=candidate(space.smallest()[0]) if beside else None,
            front=front,
            trade_off=trade_off,
            not_binding=tuple(not_binding),
            num_evaluations=num_evaluations,
            measured_latency_ms=measured,
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
        chunk = self._evaluator.chunk
        for start in range(0, len(new), chunk):
            part = np.stack(new[start : start + chunk])
            for arch, score in zip(part, self._evaluator.quick(part), strict=True):
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


class _Descent:
    """Networks to measure, ever lower: finalists, then the best of all that was evaluated.

    Args:
        judged: Accuracies.
        finalists: The most accurate first.
        pool: All that was evaluated.
        model: Predicts.
        limit: Latency budget.
        judge: Of what comes after the finalists.
        num: Networks that it judges at a time.
    """

    def __init__(
        self,
        judged: _Judged,
        finalists: Archs,
        pool: Archs,
        model: LatencyModel,
        limit: float | None,
        judge: Judge,
        num: int,
    ) -> None:
        self._judged, self._judge, self._num = judged, judge, num
        self._waiting, self._pool = list(finalists), pool
        self._upper = model.upper_ms
        self._limit = limit
        self._seen = {arch.tobytes() for arch in finalists}

    def __call__(self, share: float) -> Archs | None:
        """The best that is predicted to take at most such a share of the budget; each once."""
        assert self._limit is not None
        most = self._limit * share
        fitting = [arch for arch in self._waiting if self._upper(arch[None])[0] <= most]
        if len(self._pool):
            fresh = np.array([arch.tobytes() not in self._seen for arch in self._pool])
            rest = self._pool[fresh & (self._upper(self._pool) <= most)]
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
    model: LatencyModel,
    limit: float | None,
    measure_ms: MeasureMs | None,
) -> tuple[Archs, float | None]:
    """The network to return, and what it was measured to take.

    Args:
        decide: As in :func:`search`.
        first: What it found for the whole budget.
        descent: All else.
        judged: Accuracies.
        model: Latency.
        limit: Latency budget, where it is measured.
        measure_ms: As in :func:`search`.

    Raises:
        InfeasibleBudgetError: Nothing measures within the limit.
    """
    if limit is None or measure_ms is None:
        if decide is None:
            return descent.better_than(-np.inf)[0], None
        more_accurate = descent.better_than(judged.accuracy(first))
        return (more_accurate[0] if more_accurate else first), None
    if decide is None:
        return _first_within(descent, limit, measure_ms)
    try:
        best, measured = _first_within(decide, limit, measure_ms, most=1 + model.half_width)
    except InfeasibleBudgetError:
        return _first_within(descent, limit, measure_ms)
    for other in descent.better_than(judged.accuracy(best)):
        upper = measure_ms(other)
        if upper <= limit:
            return other, upper
    return best, measured


def _first_within(
    propose: Callable[[float], Archs | None],
    latency_ms: float,
    measure_ms: MeasureMs,
    *,
    most: float | None = None,
) -> tuple[Archs, float]:
    """The first network that measures within budget, and its upper confidence bound.

    Args:
        propose: Share of the budget that the next network may be predicted to take, by what the
            last one measured -> that network; None where there is no other.
        latency_ms: Budget.
        measure_ms: Upper confidence bound.
        most: Where given, a network of a larger share may take the first one's place, where that
            leaves more than 1 - :data:`USE` of the budget unused: of a share below what measured
            over, and at most of this one, with which the prediction itself, its error left to the
            measurement, still keeps the budget.

    Raises:
        InfeasibleBudgetError: All were predicted within budget and measure over it.
    """
    uppers: list[float] = []
    share, beyond = 1.0, 1.0
    while len(uppers) < MAX_MEASURED and (arch := propose(share)) is not None:
        uppers.append(measure_ms(arch))
        if uppers[-1] <= latency_ms:
            break
        beyond = share
        share *= latency_ms / uppers[-1] * (1 - STEP_DOWN)
    if not uppers or uppers[-1] > latency_ms or arch is None:
        raise InfeasibleBudgetError(
            f"none of the {len(uppers)} finalists measures within {latency_ms:g} ms, the lowest "
            f"reaches {min(uppers):.4g} ms: the machine is slower than its profile",
            "every evaluation is kept: search again when it is quiet, under a larger budget, or "
            "under a new profile",
        )
    best, upper = arch, uppers[-1]
    for _ in range(0 if most is None else MAX_REFINED):
        if upper >= USE * latency_ms:
            break
        if beyond > share:  # that measured over
            larger = (share + beyond) / 2
        else:
            larger = min(most or share, share * latency_ms / upper * (1 - STEP_DOWN))
        found = propose(larger)
        if found is None or (found == best).all():
            share = larger
            continue
        measured = measure_ms(found)
        if measured <= latency_ms:
            best, upper, share = found, measured, larger
        else:
            beyond = larger
    return best, upper


def describe(model: LatencyModel, arch: Archs, accuracy: float, kind: AccuracyKind) -> Candidate:
    """A network with its costs and its prediction."""
    space, row = model.space, arch[None]
    predicted = float(model.predict_ms(row)[0])
    return Candidate.model_validate(
        {
            "architecture": space.decode(row)[0],
            "predicted_latency_ms": predicted,
            "prediction_error": model.half_width,
            "extrapolated": model.extrapolates(predicted),
            "macs": int(space.macs(row)[0]),
            "params": int(space.params(row)[0]),
            "peak_memory_bytes": int(space.peak_memory_bytes(row)[0]),
            "accuracy": accuracy,
            "accuracy_kind": kind,
        }
    )


def _front(
    history: History, model: LatencyModel, names: Sequence[str]
) -> tuple[tuple[FrontPoint, ...], TradeOff | None]:
    """The Pareto front among what the strategy evaluated, and its worth; None of a single one.

    What is equal in all that was evaluated is left out of the hypervolume.
    """
    predicted, accuracies = model.predict_ms(history.archs), history.accuracies
    costs = costs_of(model, history.archs, names)
    if "latency_ms" in names:  # of the prediction itself, as everywhere else
        costs[:, list(names).index("latency_ms")] = predicted
    rows = history.front(costs)
    points = tuple(
        FrontPoint.model_validate(
            {
                "architecture": arch,
                "predicted_latency_ms": float(predicted[row]),
                "costs": tuple(costs[row].tolist()),
                "accuracy": float(accuracies[row]),
            }
        )
        for row, arch in zip(rows, model.space.decode(history.archs[rows]), strict=True)
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
        worst=tuple(worst.tolist()),
        worst_accuracy=worst_accuracy,
        knee=knee(costs[rows], accuracies[rows]),
    )
