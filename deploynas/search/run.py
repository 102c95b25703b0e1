"""One search: budget check, strategy, finalists, and the random search beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from deploynas.errors import InfeasibleBudgetError
from deploynas.profile import LatencyModel
from deploynas.search.budget import Budget
from deploynas.search.result import AccuracyKind, Candidate, FrontPoint, TradeOff
from deploynas.search.strategies import (
    STRATEGIES,
    Evaluate,
    Floats,
    History,
    costs_of,
    hypervolume,
    knee,
    random_search,
)
from deploynas.spaces import Archs


class Evaluator(Protocol):
    """Accuracy of architectures.

    Attributes:
        kind: Whether :meth:`final` measured it.
        chunk: Architectures at a time, between which progress is told.
        num_finalists: Architectures that :meth:`final` ranks.
    """

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
        """``(n,)`` fractions for the search's inner loop."""
        ...

    def final(self, archs: Archs) -> Floats:
        """``(n,)`` fractions by which finalists are ranked, and which the result states."""
        ...


MeasureMs = Callable[[Archs], float]
Decide = Callable[[float], Archs | None]
MAX_MEASURED, STEP_DOWN = 5, 0.005
MAX_REFINED, USE = 2, 0.96


@dataclass(frozen=True)
class Outcome:
    """What :func:`search` found; each field as in :class:`SearchResult`."""

    best: Candidate
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
    settle: tuple[int, Callable[[Archs], Floats]] | None = None,
    options: Mapping[str, Any] | None = None,
    on_progress: Callable[[str, float], None] = lambda text, share: None,
) -> Outcome:
    """Find the most accurate network within budget.

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
        decide: What a gradient search found for a share of the latency budget: nothing else
            wins. What measures over budget gives way to the network of as much less; what leaves
            much of it unused, to one of more whose prediction alone still keeps it.
        beside: Whether a random search of as many evaluations, uniform networks, and the space's
            largest and smallest are evaluated beside the strategy; of the uniform ones the best
            may win.
        settle: How many of the finalists are judged anew, and by what: they are ordered by it, the
            result states it, and nothing else is measured on the device.
        options: The strategy's own; ``costs`` are those of the front as well.
        on_progress: Called with what is going on and its share done.

    Raises:
        InfeasibleBudgetError: No network keeps the budget, by prediction or by measurement.
    """
    rng = np.random.default_rng(seed)
    not_binding = budget.require_reachable(model, rng)
    space = model.space
    expected = max(1, num_evaluations * (2 if beside else 1))
    known: dict[bytes, float] = {}
    full: dict[bytes, float] = {}

    def evaluate(archs: Archs) -> Floats:
        new = [arch for arch in archs if arch.tobytes() not in known]
        for start in range(0, len(new), evaluator.chunk):
            part = np.stack(new[start : start + evaluator.chunk])
            scores = evaluator.quick(part)
            known.update((arch.tobytes(), float(s)) for arch, s in zip(part, scores, strict=True))
            on_progress("evaluating networks", min(1.0, len(known) / expected))
        return np.array([known[arch.tobytes()] for arch in archs])

    def accuracy(arch: Archs) -> float:
        key = arch.tobytes()
        if key not in full:
            full[key] = float(evaluator.final(arch[None])[0])
        return full[key]

    num = evaluator.num_finalists
    if decide is None:
        history = STRATEGIES[strategy](
            budget, model, evaluate, rng, num_evaluations, **(options or {})
        )
        finalists = _finalists(history, num, accuracy)
    else:
        first = decide(1.0)
        assert first is not None
        finalists = first[None]
        history = History(finalists, evaluate(finalists))
    others = None
    if beside and strategy != "random":
        drawn = _random(budget, model, evaluate, seed, num_evaluations)
        others = _finalists(drawn, num, accuracy)
    uniform = space.uniform()
    uniform = np.unique(uniform[budget.admits(uniform, model)], axis=0)
    uniform_finalists = None
    if beside and len(uniform):
        dearest = uniform[np.argsort(-space.macs(uniform), kind="stable")][:24]
        uniform_finalists = _finalists(History(dearest, evaluate(dearest)), num, accuracy)
        if strategy != "random" and decide is None:  # what was evaluated on the way may win
            merged = np.unique(np.concatenate([finalists, uniform_finalists]), axis=0)
            finalists = merged[np.argsort([-accuracy(arch) for arch in merged], kind="stable")]
    all_slack = len(not_binding) == len(budget.model_dump(exclude_none=True))
    if all_slack and decide is None:
        known_best = finalists if others is None else np.concatenate([finalists, others])
        merged = np.unique(np.concatenate([known_best, space.largest()]), axis=0)
        finalists = merged[np.argsort([-accuracy(arch) for arch in merged], kind="stable")]
    if settle is not None:
        count, judge = settle
        finalists = finalists[:count]
        scores = judge(finalists)
        full.update((a.tobytes(), float(s)) for a, s in zip(finalists, scores, strict=True))
        finalists = finalists[np.argsort(-scores, kind="stable")]
    best, measured = finalists[0], None
    if measure_ms is not None and budget.latency_ms is not None:
        on_progress("measuring finalists", 0.0)
        if decide is None:
            tried = iter(finalists[:num])
            best, measured = _first_within(
                lambda share: next(tried, None), budget.latency_ms, measure_ms
            )
        else:
            best, measured = _first_within(
                decide, budget.latency_ms, measure_ms, most=1 + model.half_width
            )

    front, trade_off = _front(history, model, (options or {}).get("costs", ("latency_ms",)))

    def candidate(arch: Archs) -> Candidate:
        return describe(model, arch, accuracy(arch), evaluator.kind)

    return Outcome(
        best=candidate(best),
        random_best=None if others is None else candidate(others[0]),
        uniform_best=None if uniform_finalists is None else candidate(uniform_finalists[0]),
        largest=candidate(space.largest()[0]) if beside else None,
        smallest=candidate(space.smallest()[0]) if beside else None,
        front=front,
        trade_off=trade_off,
        not_binding=tuple(not_binding),
        num_evaluations=num_evaluations,
        measured_latency_ms=measured,
    )


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
            "wait until it is quiet and search again, or profile into another --output",
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
    """The Pareto front among what the strategy evaluated, and its worth; None of a single one."""
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
    box = float((worst - costs[rows].min(axis=0)).prod()) * (
        float(accuracies[rows].max()) - worst_accuracy
    )
    found = hypervolume(costs, accuracies, (*worst.tolist(), worst_accuracy))
    return points, TradeOff(
        costs=tuple(names),
        hypervolume=min(1.0, found / box) if box > 0 else 1.0,
        worst=tuple(worst.tolist()),
        worst_accuracy=worst_accuracy,
        knee=knee(costs[rows], accuracies[rows]),
    )


def _finalists(history: History, num: int, accuracy: Callable[[Archs], float]) -> Archs:
    """The most accurate by quick evaluation, sorted by accuracy on the whole split."""
    archs = history.archs[history.best(num)]
    order = np.argsort([-accuracy(arch) for arch in archs], kind="stable")
    ranked: Archs = archs[order]
    return ranked


def _random(
    budget: Budget, model: LatencyModel, evaluate: Evaluate, seed: int, num_evaluations: int
) -> History:
    return random_search(
        budget, model, evaluate, np.random.default_rng([seed, 1]), num_evaluations
    )
