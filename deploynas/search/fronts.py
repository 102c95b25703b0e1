"""Pareto fronts of costs and accuracy: what nothing beats, what it is worth, where it bends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def front(costs: Floats, accuracies: Floats) -> list[int]:
    """Indices of the Pareto front, cheapest first: no other is as cheap and as accurate.

    Of equal networks the first counts.

    Args:
        costs: ``(n,)``, or ``(n, num_costs)``, of which none may be beaten.
        accuracies: ``(n,)``.
    """
    import moocore

    columns = costs[:, None] if costs.ndim == 1 else costs
    points = np.column_stack([columns, -accuracies])
    rows = np.flatnonzero(moocore.is_nondominated(points))
    found: list[int] = rows[np.lexsort(columns[rows].T[::-1])].tolist()
    return found


def hypervolume(costs: Floats, accuracies: Floats, worst: Sequence[float]) -> float:
    """What a set of networks dominates, up to a worst corner (Zitzler and Thiele 1998).

    Only its front counts; with three costs by HV4D+ (Guerreiro and Fonseca 2018, "Computing and
    updating hypervolume contributions in up to four dimensions"), quadratic in its length.

    Args:
        costs: ``(n, num_costs)``, one or more.
        accuracies: ``(n,)``.
        worst: The corner: each cost's, then the accuracy's.
    """
    import moocore

    rows = front(costs, accuracies)
    *limits, least = worst
    points = np.column_stack([costs[rows], -accuracies[rows]])
    return float(moocore.hypervolume(points, ref=[*limits, -least]))


def knee(costs: Floats, accuracies: Floats) -> int:
    """Index of the front's member that is furthest above the line between its ends.

    Args:
        costs: ``(n,)`` of a front, or ``(n, num_costs)``, whose mean then counts, each scaled by
            its range.
        accuracies: ``(n,)``.
    """

    def scaled(values: Floats) -> Floats:
        span = np.maximum(np.ptp(values, axis=0), 1e-12)
        return np.asarray((values - values.min(axis=0)) / span)

    columns = costs.reshape(len(accuracies), -1)
    return int(np.argmax(scaled(accuracies) - scaled(columns).mean(axis=1)))
