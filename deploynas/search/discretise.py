"""From probabilities to one network that keeps the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploynas.nn.mixed import MixedNetwork
from deploynas.profile import LatencyModel
from deploynas.search.architecture import AdditiveCost, Floats, additive_costs
from deploynas.search.budget import Budget
from deploynas.search.knapsack import knapsack
from deploynas.search.strategies import evolution
from deploynas.spaces import Archs

USE = 0.97  # of a limit
ROUNDING = 1e-9  # of a limit: sums of floats
BOUNDED_EVALUATIONS = 20_000


@dataclass(frozen=True)
class Decision:
    """The likeliest network that keeps the budget and uses it.

    Attributes:
        arch: ``(num_choices,)``; not canonical: the blocks are where they were learned.
        log_probability: Of it.
        kept_log_probability: Of the likeliest network within budget, however cheap.
        free_arch, free_log_probability: Of the likeliest network without a budget.
        is_exact: Within budget no network is likelier among those that cost as much or more.
    """

    arch: Archs
    log_probability: float
    kept_log_probability: float
    free_arch: Archs
    free_log_probability: float
    is_exact: bool

    @property
    def num_changed(self) -> int:
        """Blocks that the budget decided otherwise."""
        return int((self.arch != self.free_arch).sum())


def discretise(
    network: MixedNetwork,
    probabilities: Sequence[Floats],
    model: LatencyModel,
    budget: Budget,
    rng: np.random.Generator,
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
        model: Space and latency.
        budget: Hard limits.
        rng: Of the bounded search.

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

    def under(cost: AdditiveCost, worth: float) -> Archs | None:
        """The best under one limit, where all of it spent is worth so much log-likelihood."""
        left = cost.limit * (1 - ROUNDING) - cost.constant
        raised = [v + worth * c / cost.limit for v, c in zip(values, cost.candidates, strict=True)]
        options = knapsack(raised, cost.candidates, left)
        return None if options is None else network.row(options)

    free = network.row([int(v.argmax()) for v in values])
    costs = additive_costs(network, model, budget)
    candidates = np.stack([free, *(row for c in costs if (row := under(c, 0.0)) is not None)])
    # each is the likeliest under some of the limits: one that keeps all is the likeliest
    kept = candidates[budget.admits(candidates, model)]
    is_exact = bool(len(kept))
    if not is_exact:
        history = evolution(budget, model, likelihood, rng, BOUNDED_EVALUATIONS)
        kept = history.archs[history.best(1)]
    likeliest = kept[int(likelihood(kept).argmax())]
    chosen = likeliest
    if len(costs) == 1 and is_exact:
        for worth in np.geomspace(0.1, 1e4, 36):
            if costs[0].of(network.options(chosen)) >= USE * costs[0].limit:
                break
            dearer = under(costs[0], worth)
            if dearer is not None and bool(budget.admits(dearer[None], model)[0]):
                chosen = dearer
    return Decision(
        arch=chosen,
        log_probability=float(likelihood(chosen[None])[0]),
        kept_log_probability=float(likelihood(likeliest[None])[0]),
        free_arch=free,
        free_log_probability=float(likelihood(free[None])[0]),
        is_exact=is_exact,
    )
