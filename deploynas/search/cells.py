"""From mixtures to cells: the strongest that keep the budget.

Liu, Simonyan and Yang 2019, "DARTS", section 2.4. Nodes are independent, so that with one limit on
a sum over layers this is a multiple-choice knapsack; a limit on skips (Chen et al. 2019,
"Progressive differentiable architecture search", section 3.3) is met by a penalty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploynas.errors import InfeasibleBudgetError
from deploynas.nn.mixtures import MixedCells
from deploynas.profile import LatencyModel
from deploynas.search.architecture import Floats, LimitedSum, limited_sums
from deploynas.search.budget import Budget
from deploynas.search.discretise import Decision
from deploynas.search.knapsack import knapsack
from deploynas.spaces import Archs
from deploynas.spaces.cells import KINDS, NUM_INPUTS, CellSpace

SKIP = "skip_connect"
COLLAPSED = 2  # skips of the normal cell that are not yet a collapse (Chen et al. 2019)
ROUNDING = 1e-9  # of a latency: sums of floats


def cells_decision(
    network: MixedCells,
    mixtures: Sequence[Floats],
    model: LatencyModel,
    budget: Budget,
    max_skips: int | None = None,
) -> Decision:
    """What :func:`derive` finds with the budget and without.

    Raises:
        InfeasibleBudgetError: No cells of at most ``max_skips`` keep every limit.
    """
    stacked = np.stack(mixtures)
    free = derive(network, stacked, model, Budget(), max_skips)
    kept = derive(network, stacked, model, budget, max_skips)
    if kept is None or free is None:
        raise InfeasibleBudgetError(
            "no cells were found that keep every limit",
            "raise the budget, or --max-skips",
        )

    def strength(row: Archs) -> float:
        total = 0.0
        for kind in range(len(KINDS)):
            for node in range(network.space.table.nodes):
                for source, option in network.chosen_edges(row, kind, node):
                    mixture = stacked[network.row_of[kind, node, source]]
                    total += float(np.log(max(mixture[1 + option], 1e-30)))
        return total

    limits = budget.model_dump(exclude_none=True)
    return Decision(
        arch=kept, log_probability=strength(kept), kept_arch=kept,
        kept_log_probability=strength(kept), free_arch=free, free_log_probability=strength(free),
        is_exact=len(limits) <= 1 and max_skips is None,
    )  # fmt: skip


def derive(
    network: MixedCells,
    mixtures: Floats,
    model: LatencyModel,
    budget: Budget,
    max_skips: int | None = None,
) -> Archs | None:
    """The strongest cells that keep one limit on a sum over layers, exactly.

    As published every node keeps the two edges whose strongest operation, ``none`` apart, is
    strongest (section 2.4); with a limit, those of the most strength in sum of logarithms.

    Args:
        network: Its edges.
        mixtures: ``(num_edges, 1 + num_operations)``.
        model: Space and latency.
        budget: The latency, the MACs or the params; the tightest of several.
        max_skips: Of the normal cell.

    Returns:
        ``(num_choices,)``; None where none keeps every limit.
    """
    space = network.space
    skip = space.table.operations.index(SKIP) if SKIP in space.table.operations else None
    strength = np.log(np.maximum(mixtures, 1e-30))
    penalties = [0.0] if max_skips is None or skip is None else [0.0, *np.geomspace(0.05, 200, 40)]
    for penalty in penalties:
        values, shapes = [], []
        for kind in range(len(KINDS)):
            for node, pairs in enumerate(space.pairs):
                shape = (len(pairs), *[len(space.table.operations)] * NUM_INPUTS)
                value = np.zeros(shape)
                for number, pair in enumerate(pairs):
                    first, second = (
                        strength[network.row_of[kind, node, source], 1:].copy() for source in pair
                    )
                    if kind == 0 and skip is not None:
                        first[skip] -= penalty
                        second[skip] -= penalty
                    value[number] = first[:, None] + second[None, :]
                values.append(value)
                shapes.append(shape)
        for row in _under(space, values, shapes, model, budget):
            if max_skips is None or num_skips(space, row) <= max_skips:
                return row
    return None


def _under(
    space: CellSpace,
    values: Sequence[Floats],
    shapes: Sequence[tuple[int, ...]],
    model: LatencyModel,
    budget: Budget,
) -> list[Archs]:
    """The best without limits where that keeps them, else the best under each limit that does."""

    def row(options: Sequence[int]) -> Archs:
        found = [0]
        for option, shape in zip(options, shapes, strict=True):
            found += [int(i) for i in np.unravel_index(option, shape)]
        return np.array(found, np.uint8)

    rows = [row([int(v.argmax()) for v in values])]
    for one in limited_sums(model, budget):
        costs = [c.ravel() for c in space.node_costs(one.values)]
        limit = one.limit * (1 - ROUNDING) if one.name == "latency_ms" else one.limit
        left = limit - one.intercept - constant_of(space, one)
        solution = knapsack([v.ravel() for v in values], costs, left)
        if solution is not None:
            rows.append(row(solution.options))
    return [r for r in rows if budget.admits(r[None], model)[0]]


def _flat(row: Archs, shapes: Sequence[tuple[int, ...]]) -> list[int]:
    parts = row[1:].reshape(len(shapes), 1 + NUM_INPUTS)
    return [
        int(np.ravel_multi_index(tuple(int(i) for i in part), shape))
        for part, shape in zip(parts, shapes, strict=True)
    ]


def num_skips(space: CellSpace, arch: Archs, kind: int = 0) -> int:
    """Skip connections in the normal cell (kind 0) of an architecture."""
    if SKIP not in space.table.operations:
        return 0
    skip = space.table.operations.index(SKIP)
    columns = [
        space.column(kind, node) + 1 + i
        for node in range(space.table.nodes)
        for i in range(NUM_INPUTS)
    ]
    return int((arch[columns] == skip).sum())


def constant_of(space: CellSpace, limited: LimitedSum) -> float:
    """What no choice of cells changes in a sum over layers."""
    (row,) = space.smallest()
    costs = space.node_costs(limited.values)
    options = _flat(row, [c.shape for c in costs])
    own = sum(float(c.ravel()[i]) for c, i in zip(costs, options, strict=True))
    return float(space.sum_over_layers(row[None], limited.values)[0]) - own
