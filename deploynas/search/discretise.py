"""From probabilities to one network that keeps the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deploynas.nn.candidates import MixedNetwork
from deploynas.search.drawing import admitted_samples
from deploynas.search.gates import AdditiveCost, Floats, additive_costs
from deploynas.search.knapsack import knapsack
from deploynas.search.problem import Problem
from deploynas.spaces import Archs

USE = 0.97  # of a limit
NUM_PARENTS = 50
ROUNDING = 1e-9  # of a limit: sums of floats


@dataclass(frozen=True)
class Decision:
    """The likeliest network that keeps the budget and uses it.

    Attributes:
        arch: ``(num_choices,)``; not canonical: the blocks are where they were learned.
        log_probability: Of it.
        kept_arch, kept_log_probability: The likeliest network within budget, however cheap.
        free_arch, free_log_probability: The likeliest network without a budget.
        is_exact: No network within budget is likelier than ``kept_arch``.
    """

    arch: Archs
    log_probability: float
    kept_arch: Archs
    kept_log_probability: float
    free_arch: Archs
    free_log_probability: float
    is_exact: bool

    @property
    def num_changed(self) -> int:
        """Blocks that the budget decided otherwise."""
        return int((self.kept_arch != self.free_arch).sum())

    @property
    def num_raised(self) -> int:
        """Blocks that are dearer, so that the budget is used."""
        return int((self.arch != self.kept_arch).sum())


def discretise(
    network: MixedNetwork,
    probabilities: Sequence[Floats],
    problem: Problem,
    rng: np.random.Generator,
    num_evaluations: int = 20_000,
) -> Decision:
    """The likeliest network that keeps every limit.

    With one limit on a sum over blocks this is a multiple-choice knapsack, solved exactly. With
    several, the likeliest network under one of them is the answer where it keeps the others; else
    a bounded evolution looks for a likely one, and the decision says that it is not exact.
    Where the likeliest leaves more than 1 - :data:`USE` of a single limit unused, dear candidates
    count for more until it does not: what the search was given to spend, it spends.

    Args:
        network: Its blocks have the choices.
        probabilities: ``(num_candidates,)`` a mixed layer.
        problem: Hard limits.
        rng: Of the bounded search.
        num_evaluations: Networks that it may look at.

    Raises:
        InfeasibleBudgetError: None was found.
    """
    values = [np.log(p + 1e-300) for p in probabilities]

    def likelihood(archs: Archs) -> Floats:
        columns = [layer.column for layer in network.mixed]
        total = np.zeros(len(archs))
        for column, value in zip(columns, values, strict=True):
            total += value[archs[:, column]]
        return total

    def under(cost: AdditiveCost, worth: float) -> tuple[Archs | None, bool]:
        """The best under one limit, where all of it spent is worth so much log-likelihood."""
        left = cost.limit * (1 - ROUNDING) - cost.constant
        raised = [v + worth * c / cost.limit for v, c in zip(values, cost.candidates, strict=True)]
        solution = knapsack(raised, cost.candidates, left)
        if solution is None:
            return None, False
        return network.row(solution.options), solution.is_exact

    free = network.row([int(v.argmax()) for v in values])
    costs = additive_costs(network, problem)
    found = [(free, True), *(under(cost, 0.0) for cost in costs)]
    # each is the likeliest under some of the limits: one that keeps all is the likeliest
    kept = [
        (row, exact) for row, exact in found if row is not None and problem.admits(row[None])[0]
    ]
    if kept:
        likeliest, is_exact = max(kept, key=lambda pair: likelihood(pair[0][None])[0])
    else:
        seeds = np.stack([row for row, _ in found if row is not None])
        likeliest = _bounded(network, likelihood, problem, rng, num_evaluations, seeds)
        is_exact = False
    chosen = likeliest
    if kept and len(costs) == 1:
        for worth in np.geomspace(0.1, 1e3, 13):
            spent = costs[0].unit(costs[0].of(network.options(chosen)))
            if spent >= USE * costs[0].unit(costs[0].limit):
                break
            dearer, _ = under(costs[0], float(worth))
            if dearer is not None and problem.admits(dearer[None])[0]:
                chosen = dearer
    return Decision(
        arch=chosen,
        log_probability=float(likelihood(chosen[None])[0]),
        kept_arch=likeliest,
        kept_log_probability=float(likelihood(likeliest[None])[0]),
        free_arch=free,
        free_log_probability=float(likelihood(free[None])[0]),
        is_exact=is_exact,
    )


def _bounded(
    network: MixedNetwork,
    likelihood: Callable[[Archs], Floats],
    problem: Problem,
    rng: np.random.Generator,
    num_evaluations: int,
    seeds: Archs,
) -> Archs:
    """A likely network within several limits, by evolution on uncanonical rows.

    It starts from networks within budget and crosses them with those that are likely.

    Raises:
        InfeasibleBudgetError: No network within budget was found to start from.
    """
    parents = admitted_samples(NUM_PARENTS, problem, rng)
    columns = [layer.column for layer in network.mixed]
    num_options = problem.space.num_options[columns]
    size = 4 * NUM_PARENTS
    for _ in range(max(1, num_evaluations // size)):
        likely = np.concatenate([parents, seeds])
        children = parents[rng.integers(len(parents), size=size)].copy()
        others = likely[rng.integers(len(likely), size=size)]
        crossed = rng.random(children.shape) < rng.random((size, 1))
        children = np.where(crossed, others, children)
        redraw = rng.random((size, len(columns))) < 1 / len(columns)
        fresh = rng.integers(0, num_options, size=redraw.shape)
        children[:, columns] = np.where(redraw, fresh, children[:, columns])
        children = children[problem.admits(children)]
        parents = np.unique(np.concatenate([parents, children]), axis=0)
        parents = parents[np.argsort(-likelihood(parents), kind="stable")[:NUM_PARENTS]]
    best: Archs = parents[0]
    return best
