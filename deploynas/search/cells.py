"""From mixtures to cells: the strongest that keep the budget.

Liu, Simonyan and Yang 2019, "DARTS", section 2.4. Nodes are independent, so that with one limit on
a sum over layers this is a multiple-choice knapsack; a limit on skips (Chen et al. 2019,
"Progressive differentiable architecture search", section 3.3) is shared out among the nodes in
every way there is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploynas.errors import InfeasibleBudgetError
from deploynas.nn.mixtures import MixedCells
from deploynas.profile import LatencyModel
from deploynas.search.budget import Budget, Floats, limited_sums
from deploynas.search.discretise import Decision
from deploynas.search.knapsack import knapsack
from deploynas.spaces import Archs
from deploynas.spaces.cells import KINDS, NUM_INPUTS, SKIP, CellSpace

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
    without = derive(network, stacked, model, Budget(), max_skips)
    within = derive(network, stacked, model, budget, max_skips)
    if within is None or without is None:
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

    (free, _), (kept, is_exact) = without, within
    return Decision(
        arch=kept, log_probability=strength(kept), kept_arch=kept,
        kept_log_probability=strength(kept), free_arch=free, free_log_probability=strength(free),
        is_exact=is_exact,
    )  # fmt: skip


def derive(
    network: MixedCells,
    mixtures: Floats,
    model: LatencyModel,
    budget: Budget,
    max_skips: int | None = None,
) -> tuple[Archs, bool] | None:
    """The strongest cells that keep one limit on a sum over layers, and a limit on skips.

    As published every node keeps the two edges whose strongest operation, ``none`` apart, is
    strongest (section 2.4); with a limit, those of the most strength in sum of logarithms. A limit
    on skips is shared out among the nodes in every way there is, a knapsack each.

    Args:
        network: Its edges.
        mixtures: ``(num_edges, 1 + num_operations)``.
        model: Space and latency.
        budget: The latency, the MACs or the params; the tightest of several.
        max_skips: Of the normal cell.

    Returns:
        ``(num_choices,)``, and whether no cells within the limits are stronger; None where none
        keeps every limit.
    """
    space = network.space
    values, num_options = [], len(space.table.operations)
    for kind in range(len(KINDS)):
        for node, pairs in enumerate(space.pairs):
            value = np.empty((len(pairs), num_options, num_options))
            for number, pair in enumerate(pairs):
                first, second = (
                    np.log(np.maximum(mixtures[network.row_of[kind, node, source], 1:], 1e-30))
                    for source in pair
                )
                value[number] = first[:, None] + second[None, :]
            values.append(value)
    found = [
        _strongest(space, values, options, model, budget) for options in _allowed(space, max_skips)
    ]
    best = max((s for s in found if s.arch is not None), key=lambda s: s.strength, default=None)
    if best is None or best.arch is None:
        return None
    return best.arch, all(s.is_settled or s.at_most <= best.strength for s in found)


def _allowed(space: CellSpace, max_skips: int | None) -> Iterator[list[npt.NDArray[np.intp]]]:
    """Options of every node that keep the limit on skips together, for every way to share it."""
    num_options = len(space.table.operations)
    is_skip = np.array([name == SKIP for name in space.table.operations])
    skips = [
        np.tile((is_skip[:, None] * 1 + is_skip[None, :]).ravel(), len(pairs))
        for pairs in space.pairs
    ]
    anything = [np.arange(len(pairs) * num_options**2) for pairs in space.pairs]
    nodes = len(space.pairs)
    if max_skips is None or max_skips >= NUM_INPUTS * nodes or not is_skip.any():
        yield anything + anything
        return
    for shares in itertools.product(range(NUM_INPUTS + 1), repeat=nodes):
        if sum(shares) == max_skips:
            normal = [np.flatnonzero(s <= m) for s, m in zip(skips, shares, strict=True)]
            if all(map(len, normal)):
                yield normal + anything


@dataclass(frozen=True)
class _Strongest:
    """What was found among some options of every node.

    Attributes:
        at_most: Strength that no row of these exceeds.
        strength, arch: Of what was found; None where nothing was.
        is_settled: That there is nothing stronger is known.
    """

    at_most: float
    strength: float = -np.inf
    arch: Archs | None = None
    is_settled: bool = True


def _strongest(
    space: CellSpace,
    values: Sequence[Floats],
    options: Sequence[npt.NDArray[np.intp]],
    model: LatencyModel,
    budget: Budget,
) -> _Strongest:
    strengths = [v.ravel()[own] for v, own in zip(values, options, strict=True)]
    at_most = sum(float(s.max()) for s in strengths)

    def found(chosen: Sequence[int], is_settled: bool) -> _Strongest:
        nodes = [
            [int(part) for part in np.unravel_index(own[i], value.shape)]
            for own, i, value in zip(options, chosen, values, strict=True)
        ]
        (arch,) = space.of_nodes(nodes)
        if not budget.admits(arch[None], model)[0]:
            return _Strongest(at_most, is_settled=False)
        strength = sum(float(s[i]) for s, i in zip(strengths, chosen, strict=True))
        return _Strongest(at_most, strength, arch, is_settled)

    free = found([int(s.argmax()) for s in strengths], True)
    if free.arch is not None:
        return free
    kept = []
    limits = limited_sums(model, budget)
    for one in limits:
        costs = space.node_costs(one.values)
        own_costs = [c.ravel()[own] for c, own in zip(costs, options, strict=True)]
        limit = one.limit * (1 - ROUNDING) if one.name == "latency_ms" else one.limit
        left = limit - one.intercept - space.constant_of(one.values)
        solution = knapsack(strengths, own_costs, left)
        if solution is None:
            return _Strongest(at_most)  # nothing keeps this limit
        kept.append(found(solution.options, solution.is_exact and len(limits) == 1))
    return max(kept, key=lambda k: k.strength, default=_Strongest(at_most, is_settled=False))
