"""Every strategy on a tabular space, in seconds and without torch: the promises that all share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import strategies as bench

from deploynas.errors import InfeasibleBudgetError
from deploynas.search import STRATEGIES, Budget
from deploynas.search.strategies import (
    SoftFitness,
    costs_of,
    pareto,
    regularised_evolution,
)

LAND = bench.Landscape(0)
COSTS = np.sort(LAND.upper_ms(LAND.everything))
BUDGETS = {
    "none": Budget(),
    "feasible": Budget(latency_ms=float(np.quantile(COSTS, 0.5))),
    "tight": Budget(latency_ms=float(COSTS[30])),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("num", [1, 40])
def test_every_strategy(name, budget, num):
    asked = []

    def evaluate(archs):
        asked.extend(arch.tobytes() for arch in archs)
        return LAND.accuracies(archs)

    history = STRATEGIES[name](budget, LAND, evaluate, np.random.default_rng(3), num)
    assert 0 < len(asked) <= num
    assert len(set(asked)) == len(asked)  # nothing twice
    assert {arch.tobytes() for arch in history.archs} == set(asked)
    assert budget.admits(history.archs, LAND).all()
    np.testing.assert_allclose(history.accuracies, LAND.accuracies(history.archs))
    again = STRATEGIES[name](budget, LAND, LAND.accuracies, np.random.default_rng(3), num)
    assert np.array_equal(again.archs, history.archs)
    other = STRATEGIES[name](Budget(), LAND, LAND.accuracies, np.random.default_rng(4), 40)
    assert not np.array_equal(other.archs[:10], history.archs[:10])


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_impossible_budget_ends(name):
    budget = Budget(latency_ms=float(COSTS[0]) * 0.99)
    with pytest.raises(InfeasibleBudgetError):
        STRATEGIES[name](budget, LAND, LAND.accuracies, np.random.default_rng(0), 40)
    with pytest.raises(InfeasibleBudgetError, match="lowest reachable"):
        budget.require_reachable(LAND, np.random.default_rng(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evolution", "pareto"])
def test_better_than_random(name):
    found = [bench.finds_the_top(name, seed) for seed in range(8)]
    at_random = [bench.finds_the_top("random", seed) for seed in range(8)]
    assert sum(found) > sum(at_random) + 2


@pytest.mark.slow
def test_no_strategy_here_imports_torch():
    """The predictor needs scikit-learn, which does not bring it."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(bench.__file__).parent)!r});"
        "sys.modules['torch'] = None; import strategies as s;"
        "[s.finds_the_top(n, 0) for n in s.STRATEGIES if n != 'predictor']"
    )
    package = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": package}
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_predictor_spends_few_evaluations_too():
    for num in (4, 14):
        history = STRATEGIES["predictor"](
            Budget(), LAND, LAND.accuracies, np.random.default_rng(0), num
        )
        assert len(history.archs) == num


def test_the_oldest_dies():
    """The best of the first population is a parent no longer once as many have come after it."""
    best = {}

    def evaluate(archs):
        scores = LAND.accuracies(archs)
        if not best:  # nothing that comes later is as good
            best["row"] = archs[-1]  # the youngest of the first population
            scores[-1] = 2.0
        return scores

    def near(arch):
        return (arch != best["row"]).sum() == 1

    history = regularised_evolution(
        Budget(), LAND, evaluate, np.random.default_rng(0), 160, population=20, tournament=20
    )
    children = history.archs[20:]
    parents = [near(child) for child in children]
    # with a tournament among all, it is the only parent while it lives, and none after
    assert all(parents[:20])
    assert not all(parents[20:])
    assert sum(parents[20:]) < 40


def test_one_choice_changes():
    archs = LAND.space.sample(200, np.random.default_rng(0))
    changed = LAND.space.change_one(archs, np.random.default_rng(1))
    assert ((changed != archs).sum(axis=1) == 1).all()
    assert (changed < LAND.space.num_options).all()


def test_soft_fitness_passes_through_what_is_too_slow():
    budget = BUDGETS["feasible"]
    soft = SoftFitness(latency=0.5, flops=0.0)
    asked = []

    def evaluate(archs):
        asked.append(budget.admits(archs, LAND))
        return LAND.accuracies(archs)

    history = regularised_evolution(
        budget, LAND, evaluate, np.random.default_rng(0), 120, soft=soft
    )
    assert not np.concatenate(asked).all()
    assert budget.admits(history.archs, LAND).all()
    rows = LAND.everything[::4096]
    excess = np.maximum(0, LAND.upper_ms(rows) / budget.latency_ms - 1)
    scores = LAND.accuracies(rows)
    np.testing.assert_allclose(soft(rows, scores, budget, LAND), scores - 0.5 * excess)


@pytest.mark.slow
def test_pareto_under_two_costs_keeps_both():
    costs, sizes = ("latency_ms", "params"), []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        history = pareto(Budget(), LAND, LAND.accuracies, rng, 60, costs=costs)
        assert len(history.archs) == 60
        values = costs_of(LAND, history.archs, costs)
        sizes.append(len(history.front(values)))
        assert sizes[-1] >= max(len(history.front(cost)) for cost in values.T)
    assert np.mean(sizes) > 2
