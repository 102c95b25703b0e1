"""From the most accurate network down to one that measures within the limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from deploynas.costs import Floats
from deploynas.errors import InfeasibleBudgetError
from deploynas.search.drawing import uniform_samples
from deploynas.search.judging import Judge, Judged
from deploynas.search.problem import Problem
from deploynas.spaces import Archs

Measure = Callable[[Archs], Mapping[str, float]]  # limited cost -> upper confidence bound
Decide = Callable[[float], Archs | None]
MAX_MEASURED, STEP_DOWN = 12, 0.005
MAX_REFINED, USE = 2, 0.96
NUM_MORE = 200  # drawn where the machine is so slow that nothing evaluated is quick enough


class OnDevice:
    """Limits that devices measure, as shares of what is allowed.

    Args:
        problem: Limits and predictions.
        measure: As in :func:`~deploynas.search.run.search`.

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


class Descent:
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
        judged: Judged,
        finalists: Archs,
        pool: Archs,
        on_device: OnDevice | None,
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


def chosen(
    decide: Decide | None,
    first: Archs,
    descent: Descent,
    judged: Judged,
    on_device: OnDevice | None,
) -> tuple[Archs, dict[str, float]]:
    """The network to return, and what it was measured to take.

    Args:
        decide: As in :func:`~deploynas.search.run.search`.
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
