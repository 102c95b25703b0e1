"""The multiple-choice knapsack, exactly: one option a class, the most value within a capacity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
SLACK = 1e-12  # of what is summed, for rounding
MAX_STATES = 20_000  # partial sums that are kept


@dataclass(frozen=True)
class Solution:
    """Options within capacity.

    Attributes:
        options: One a class.
        is_exact: No others within capacity have more value. Where values are proportional to
            costs there are too many partial sums to keep: then the best of each of
            :data:`MAX_STATES` small ranges of cost is.
    """

    options: list[int]
    is_exact: bool


def knapsack(
    values: Sequence[Floats], costs: Sequence[Floats], capacity: float
) -> Solution | None:
    """The options that have the most value in sum at a cost of ``capacity`` or less.

    Dynamic programming over undominated partial sums; those whose linear relaxation stays below a
    known solution are dropped (Kellerer, Pferschy and Pisinger 2004, "Knapsack problems",
    sections 11.2 and 11.5).

    Args:
        values: ``(num_options,)`` a class, finite.
        costs: The same shapes.
        capacity: Of the sum of costs.

    Returns:
        None where even the cheapest options cost more.
    """
    if sum(float(c.min()) for c in costs) > capacity:
        return None
    slack = SLACK * max(1.0, sum(float(np.abs(v).max()) for v in values))
    is_exact = True
    rests = [_Relaxation.of(values[k:], costs[k:]) for k in range(len(values))] + [
        _Relaxation.of([], [])
    ]
    least = rests[0].reached(capacity)
    cost, value = np.zeros(1), np.zeros(1)
    trace: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]] = []
    for k in range(len(values)):
        cost = (cost[:, None] + costs[k]).ravel()
        value = (value[:, None] + values[k]).ravel()
        bound = value + rests[k + 1].bound(capacity - cost)
        kept = np.flatnonzero(bound >= least - slack)
        kept = kept[np.lexsort((-value[kept], cost[kept]))]
        best_before = np.concatenate([[-np.inf], np.maximum.accumulate(value[kept])[:-1]])
        kept = kept[value[kept] > best_before]
        if len(kept) > MAX_STATES:
            is_exact = False
            kept = _thinned(kept, cost[kept])
        trace.append((kept // len(values[k]), kept % len(values[k])))
        cost, value = cost[kept], value[kept]
    row = int(np.argmax(value))
    options = []
    for parents, chosen in reversed(trace):
        options.append(int(chosen[row]))
        row = int(parents[row])
    return Solution(options[::-1], is_exact)


def _thinned(kept: npt.NDArray[np.intp], cost: Floats) -> npt.NDArray[np.intp]:
    """Of undominated sums, sorted by cost, the last (and best) in each range of cost.

    The cheapest stays as well, so that there is always a solution.
    """
    ranges = np.floor((cost - cost[0]) / (cost[-1] - cost[0]) * (MAX_STATES - 1))
    is_last = np.append(ranges[1:] != ranges[:-1], True)
    is_last[0] = True
    thinned: npt.NDArray[np.intp] = kept[is_last]
    return thinned


@dataclass(frozen=True)
class _Relaxation:
    """The linear relaxation over some classes: value reached as a function of capacity.

    Attributes:
        cost, value: Of the cheapest options.
        costs, values: Sums after each further step, the most efficient first; concave.
        steps: The class of each step.
    """

    cost: float
    value: float
    costs: Floats
    values: Floats
    steps: tuple[int, ...]

    @classmethod
    def of(cls, values: Sequence[Floats], costs: Sequence[Floats]) -> _Relaxation:
        cost = value = 0.0
        steps: list[tuple[float, float, float, int]] = []  # -efficiency, cost, value, class
        for number, (v, c) in enumerate(zip(values, costs, strict=True)):
            hull = _hull(v, c)
            cost, value = cost + float(c[hull[0]]), value + float(v[hull[0]])
            for i, j in zip(hull, hull[1:], strict=False):
                dc, dv = float(c[j] - c[i]), float(v[j] - v[i])
                steps.append((-dv / dc, dc, dv, number))
        steps.sort(key=lambda step: step[0])  # stable: a class's own steps stay in order
        return cls(
            cost,
            value,
            np.cumsum([0.0, *(step[1] for step in steps)]),
            np.cumsum([0.0, *(step[2] for step in steps)]),
            tuple(step[3] for step in steps),
        )

    def bound(self, capacity: Floats) -> Floats:
        """``(n,)`` what no solution exceeds; -inf where there is none."""
        left = capacity - self.cost
        most = self.value + np.interp(left, self.costs, self.values)
        return np.where(left >= -SLACK * max(1.0, self.cost), most, -np.inf)

    def reached(self, capacity: float) -> float:
        """The value of one solution: steps while they fit, none past one that does not."""
        left, value = capacity - self.cost, self.value
        full: set[int] = set()
        step_costs, step_values = np.diff(self.costs), np.diff(self.values)
        for number, dc, dv in zip(self.steps, step_costs, step_values, strict=True):
            if number in full or dc > left:
                full.add(number)
            else:
                left, value = left - dc, value + dv
        return value


def _hull(values: Floats, costs: Floats) -> list[int]:
    """Options on the upper concave hull, from the cheapest to the most valuable."""
    order = np.lexsort((-values, costs))
    hull: list[int] = []
    for i in order:
        if hull and values[i] <= values[hull[-1]]:
            continue
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            before = (values[b] - values[a]) * (costs[i] - costs[b])
            after = (values[i] - values[b]) * (costs[b] - costs[a])
            if before > after:
                break
            hull.pop()
        hull.append(int(i))
    return hull
