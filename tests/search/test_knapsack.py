"""The knapsack against every combination."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from deploynas.search.knapsack import knapsack


def by_trying(values, costs, capacity):
    sums = [
        sum(v[i] for v, i in zip(values, options, strict=True))
        for options in itertools.product(*(range(len(v)) for v in values))
        if sum(c[i] for c, i in zip(costs, options, strict=True)) <= capacity
    ]
    return max(sums) if sums else None


@pytest.mark.parametrize("seed", range(40))
def test_is_exact(seed):
    rng = np.random.default_rng(seed)
    for _ in range(10):
        sizes = rng.integers(1, 5, rng.integers(1, 6))
        values = [rng.normal(size=n) for n in sizes]
        # rounded costs have ties, and sums that are the capacity
        costs = [np.round(rng.random(n), 1 if seed % 2 else 6) for n in sizes]
        capacity = round(float(rng.random() * len(sizes)), 1)
        best = by_trying(values, costs, capacity + 1e-12)
        solution = knapsack(values, costs, capacity + 1e-12)
        if best is None:
            assert solution is None
            continue
        assert solution.is_exact
        options = solution.options
        assert sum(v[i] for v, i in zip(values, options, strict=True)) == pytest.approx(best)
        assert sum(c[i] for c, i in zip(costs, options, strict=True)) <= capacity + 1e-9


def test_many_classes_stay_exact_enough_to_beat_greed():
    """Sixty blocks: far more combinations than could be tried; a neighbour is never better."""
    rng = np.random.default_rng(3)
    values = [np.log(rng.dirichlet(np.ones(7))) for _ in range(60)]
    costs = [rng.random(7) for _ in range(60)]
    options = np.array(knapsack(values, costs, 20.0).options)
    value = sum(v[i] for v, i in zip(values, options, strict=True))
    cost = sum(c[i] for c, i in zip(costs, options, strict=True))
    assert cost <= 20.0
    for first, second in itertools.combinations(range(60), 2):
        v = value - values[first][options[first]] - values[second][options[second]]
        c = cost - costs[first][options[first]] - costs[second][options[second]]
        sums = v + values[first][:, None] + values[second]
        allowed = c + costs[first][:, None] + costs[second] <= 20.0
        assert sums[allowed].max() <= value + 1e-9


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_values_that_are_costs_do_not_explode(share):
    """Before anything is learned: a subset sum, where nothing dominates anything."""
    rng = np.random.default_rng(5)
    costs = [1 + rng.random(7) for _ in range(21)]
    low, high = (sum(f(c) for c in costs) for f in (np.min, np.max))
    capacity = low + share * (high - low)
    solution = knapsack(costs, costs, capacity)
    reached = sum(c[o] for c, o in zip(costs, solution.options, strict=True))
    assert capacity * 0.9999 < reached <= capacity + 1e-9


@pytest.mark.parametrize("seed", range(25))
def test_values_beyond_rounding(seed):
    """Probabilities that underflowed: sums of hundreds, where 1e-12 is less than a rounding."""
    rng = np.random.default_rng(seed)
    values = [np.where(rng.random(7) < 0.3, -0.1 * rng.random(7), -690.8) for _ in range(21)]
    costs = [rng.random(7) for _ in range(21)]
    low, high = (sum(f(c) for c in costs) for f in (np.min, np.max))
    for share in (0.3, 1.0):
        solution = knapsack(values, costs, low + share * (high - low))
        value = sum(v[o] for v, o in zip(values, solution.options, strict=True))
        greedy = sum(v[c.argmin()] for v, c in zip(values, costs, strict=True))
        assert value >= greedy
