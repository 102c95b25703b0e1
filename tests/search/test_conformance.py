"""Every strategy on a tabular space, in seconds and without torch: the promises that all share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import strategies as bench

from deploynas import spaces
from deploynas.errors import InfeasibleBudgetError, InvalidInputError, UnknownNameError
from deploynas.search import Budget, Effort, Problem, explore
from deploynas.search.strategies.evolution import STRATEGY as EVOLUTION
from deploynas.search.strategies.evolution import EvolutionOptions
from deploynas.search.strategies.pareto import STRATEGY as PARETO
from deploynas.search.strategy import STRATEGIES, Evaluating
from deploynas.testing.strategies import check_strategy

LAND = bench.Landscape(0)
COSTS = np.sort(LAND.upper_ms(LAND.everything))
BUDGETS = {
    "none": Budget(),
    "feasible": Budget(latency_ms=float(np.quantile(COSTS, 0.5))),
    "tight": Budget(latency_ms=float(COSTS[30])),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", bench.DISTINCT)
def test_every_strategy(name):
    check_strategy(STRATEGIES.load(name), LAND.space)


@pytest.mark.long
@pytest.mark.parametrize("name", bench.DISTINCT)
def test_every_strategy_on_cells(name):
    check_strategy(STRATEGIES.load(name), spaces.space("darts-small"))


def test_an_impossible_budget_ends():
    problem = Problem(LAND, Budget(latency_ms=float(COSTS[0]) * 0.99))
    with pytest.raises(InfeasibleBudgetError, match="lowest reachable"):
        problem.require_reachable(np.random.default_rng(0))


class Forgetful(Evaluating):
    """Asks for what it knows, and for what is over the limit, as a first attempt would."""

    name = help = "forgetful"

    def rounds(self, problem, options, rng, effort):
        first = problem.space.sample(5, rng)
        while True:
            yield first
            yield problem.space.sample(2, rng)


def test_the_driver_evaluates_nothing_twice_and_returns_nothing_over_a_limit():
    asked = []

    def evaluate(archs):
        asked.extend(arch.tobytes() for arch in archs)
        return LAND.accuracies(archs)

    problem = Problem(LAND, BUDGETS["feasible"])
    found = explore(
        Forgetful(), None, problem, evaluate, np.random.default_rng(0), Effort(60)
    )  # fmt: skip
    assert len(asked) == len(set(asked)) == 60
    assert problem.admits(found.archs).all()
    assert 0 < len(found.archs) < 60
    np.testing.assert_allclose(found.accuracies, LAND.accuracies(found.archs))


@pytest.mark.long
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
        "[s.finds_the_top(n, 0) for n in s.DISTINCT if n != 'predictor']"
    )
    package = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": package}
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_predictor_spends_few_evaluations_too():
    for num in (4, 14):
        assert (
            len(bench.explored("predictor", Problem(LAND), LAND.accuracies, 0, num).archs) == num
        )


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

    options = EvolutionOptions(population=20, tournament=20)
    problem, rng = Problem(LAND), np.random.default_rng(0)
    history = explore(EVOLUTION, options, problem, evaluate, rng, Effort(160))
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
    problem = Problem(LAND, BUDGETS["feasible"])
    options = EvolutionOptions(soft_latency=0.5)
    asked = []

    def evaluate(archs):
        asked.append(problem.admits(archs))
        return LAND.accuracies(archs)

    rng = np.random.default_rng(0)
    history = explore(EVOLUTION, options, problem, evaluate, rng, Effort(120))
    assert not np.concatenate(asked).all()
    assert problem.admits(history.archs).all()
    rows = LAND.everything[::4096]
    excess = np.maximum(0, LAND.upper_ms(rows) / problem.limits["latency_ms"] - 1)
    scores = LAND.accuracies(rows)
    np.testing.assert_allclose(options.fitness(rows, scores, problem), scores - 0.5 * excess)


@pytest.mark.slow
def test_pareto_under_two_costs_keeps_both():
    costs, sizes = ("latency_ms", "params"), []
    options = PARETO.options_from({"costs": ",".join(costs)})
    for seed in range(6):
        rng, problem = np.random.default_rng(seed), Problem(LAND)
        history = explore(PARETO, options, problem, LAND.accuracies, rng, Effort(60))
        assert len(history.archs) == 60
        values = problem.values(history.archs, costs)
        sizes.append(len(history.front(values)))
        assert sizes[-1] >= max(len(history.front(cost)) for cost in values.T)
    assert np.mean(sizes) > 2


@pytest.mark.parametrize(
    ("name", "typed", "said"),
    [
        ("evolution", {"population": "1"}, "population.*greater than or equal to 2"),
        ("evolution", {"population": "many"}, "population.*integer"),
        ("evolution", {"costs": "macs"}, "option of evolution 'costs'"),
        ("evolution", {"populaton": "5"}, "did you mean 'population'"),
        ("random", {"population": "5"}, "it has none"),
        ("pareto", {"costs": "latency_ms,mac"}, "did you mean 'macs'"),
        ("pareto", {"costs": "macs,macs"}, "named once"),
        ("proxyless", {"latency_weight": "0.3"}, "goes with latency_loss"),
        ("proxyless", {"update": "two"}, "update"),
        ("darts", {"prune": "1.0"}, "prune"),
        ("darts", {"max_skips": "-1"}, "max_skips"),
        ("darts", {"order": "third"}, "order"),
    ],
)
def test_wrong_options_end_in_a_line(name, typed, said):
    with pytest.raises((InvalidInputError, UnknownNameError), match=said) as caught:
        STRATEGIES.load(name).options_from(typed)
    assert "\n" not in str(caught.value)


def test_options_from_text():
    options = STRATEGIES.load("evolution").options_from({"population": "50", "soft_flops": "0.2"})
    assert (options.population, options.tournament, options.soft_flops) == (50, 10, 0.2)
    options = STRATEGIES.load("proxyless").options_from({"share_weights": "false"})
    assert options.share_weights is False
