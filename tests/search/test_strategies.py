"""What every strategy promises: budgets hold, draws are the seed's, the search is bounded."""

from __future__ import annotations

import numpy as np
import pytest

from deploynas import spaces
from deploynas.errors import InfeasibleBudgetError
from deploynas.profile import LatencyModel
from deploynas.search import STRATEGIES, Budget, Effort, Problem, explore
from deploynas.search.drawing import admitted_samples, uniform_samples
from deploynas.search.predictor import fit_predictor
from deploynas.search.run import History

SPACE = spaces.space("mobile-small", resolutions=[20, 28])
EVALUATING = [name for name, one in STRATEGIES.all().items() if one.weights == "any"]


def explored(name, problem, evaluate, seed, num):
    strategy, rng = STRATEGIES.load(name), np.random.default_rng(seed)
    return explore(strategy, strategy.options(), problem, evaluate, rng, Effort(num))


def upper(name, archs, model):
    return Problem(model).cost(name).upper(archs)


@pytest.fixture(scope="module")
def model(board_profile):
    return LatencyModel(SPACE, board_profile(SPACE))


def accuracy(archs):
    """More MACs are better, and every choice has a say of its own."""
    weights = np.random.default_rng(7).normal(size=len(SPACE.choices))
    return 0.4 + SPACE.macs(archs) / 1e8 + 0.002 * (archs @ weights)


def budgets(model):
    predicted = model.upper_ms(SPACE.sample(500, np.random.default_rng(0)))
    macs = SPACE.macs(SPACE.sample(500, np.random.default_rng(0)))
    return {
        "latency": Budget(latency_ms=float(np.quantile(predicted, 0.3))),
        "tight": Budget(latency_ms=float(predicted.min() * 0.9)),
        "both": Budget(latency_ms=float(np.median(predicted)), macs=float(np.median(macs))),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", EVALUATING)
@pytest.mark.parametrize("limit", ["latency", "tight", "both"])
@pytest.mark.parametrize("num", [4, 60, pytest.param(3_000, marks=pytest.mark.long)])
def test_promises(name, limit, num, model):
    if name == "predictor" and num > 100:
        pytest.skip("a predictor is for few evaluations, and takes its time over them")
    problem = Problem(model, budgets(model)[limit])
    calls = []

    def evaluate(archs):
        calls.append(len(archs))
        return accuracy(archs)

    history = explored(name, problem, evaluate, 0, num)
    assert 0 < len(history.archs) == sum(calls) <= num
    assert problem.admits(history.archs).all()
    assert len(np.unique(history.archs, axis=0)) == len(history.archs)
    assert np.array_equal(SPACE.canonical(history.archs), history.archs)
    assert np.allclose(history.accuracies, accuracy(history.archs))
    again = explored(name, problem, accuracy, 0, num)
    assert np.array_equal(again.archs, history.archs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num"), [("ofa", 400), ("predictor", 60)])
def test_beats_random_search(name, num, model):
    problem = Problem(model, budgets(model)["latency"])
    best = {
        name: [
            explored(name, problem, accuracy, seed, num).accuracies.max()
            for seed in range(1 if num < 100 else 3)
        ]
        for name in (name, "random")
    }
    assert np.median(best[name]) > np.median(best["random"])


@pytest.mark.slow
def test_the_best_kind_of_predictor_is_used(model):
    archs = SPACE.sample(150, np.random.default_rng(0))
    predictor = fit_predictor(SPACE, archs[:100], accuracy(archs[:100]))
    assert set(predictor.held_out) == {"ridge", "mlp", "trees", "process"}
    best = min(predictor.held_out.values(), key=lambda error: error.rmse)
    assert predictor.held_out[predictor.kind] == best
    assert best.kendall_tau > 0.7
    error = predictor.predict(archs[100:]) - accuracy(archs[100:])
    assert np.sqrt(np.mean(error**2)) < 3 * best.rmse


def test_the_front_holds_what_nothing_beats():
    rng = np.random.default_rng(0)
    costs = rng.integers(0, 20, 300).astype(float)
    history = History(np.arange(300)[:, None], rng.integers(0, 20, 300).astype(float))
    front = history.front(costs)
    scores = history.accuracies
    assert (np.diff(costs[front]) > 0).all()
    assert (np.diff(scores[front]) > 0).all()
    for i in range(300):
        beaten = (costs <= costs[i]) & (scores >= scores[i])
        assert beaten[front].any()


def test_as_many_samples_as_the_corner_holds(model):
    smallest = float(model.upper_ms(SPACE.smallest())[0])
    problem = Problem(model, Budget(latency_ms=smallest * 1.0001))
    found = admitted_samples(50, problem, np.random.default_rng(0))
    assert found.tolist() == SPACE.smallest().tolist()


TINY = "darts-small:channels=4,cells=3,nodes=2,operations=skip_connect+max_pool_3x3+sep_conv_3x3"


def chi_square(drawn, everything):
    """Of how often each admitted network was drawn, over its degrees of freedom."""
    places = {row.tobytes(): i for i, row in enumerate(everything)}
    counts = np.bincount([places[row.tobytes()] for row in drawn], minlength=len(everything))
    expected = len(drawn) / len(everything)
    return float(((counts - expected) ** 2 / expected).sum()) / (len(everything) - 1)


@pytest.mark.parametrize("name", ["mobile-small", "proxyless-small"])
def test_draws_of_networks_do_not_prefer_shallow_ones(name):
    """Every choice drawn uniformly, a stage of one block would be as likely as one of three."""
    space = spaces.space(name, resolutions=[28])
    drawn = space.sample_networks(4_000, np.random.default_rng(0))
    assert np.array_equal(space.canonical(drawn), drawn)
    depths, _, _ = space.unpacked(drawn)
    deepest = (depths[:, 0] == depths[:, 0].max()).mean()
    per_block = 9 if name == "mobile-small" else 6
    own = per_block ** np.arange(3)
    assert deepest == pytest.approx(own[-1] / own.sum(), abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("limits", [("latency_ms",), ("latency_ms", "params"), ("macs",)])
def test_the_random_baseline_is_uniform_over_the_admitted(limits, board_profile):
    space = spaces.space(TINY, resolutions=[16])
    model = LatencyModel(space, board_profile(space))
    everything = space.everything()
    budget = Budget(
        **{name: float(np.quantile(upper(name, everything, model), 0.1)) for name in limits}
    )
    problem = Problem(model, budget)
    inside = everything[problem.admits(everything)]
    drawn = np.concatenate(
        [uniform_samples(20, problem, np.random.default_rng(seed)) for seed in range(600)]
    )
    assert problem.admits(drawn).all()
    assert 0.8 < chi_square(drawn, inside) < 1.2


def test_a_corner_that_draws_hardly_meet_is_drawn_from_evenly(model):
    lowest = float(upper("latency_ms", SPACE.smallest(), model)[0])
    problem = Problem(model, Budget(latency_ms=1.3 * lowest))
    drawn = SPACE.sample_networks(50_000, np.random.default_rng(0))
    met = np.unique(drawn[problem.admits(drawn)], axis=0)
    inside = uniform_samples(300, problem, np.random.default_rng(0))
    assert problem.admits(inside).all()
    assert len(inside) == 300 > 20 * len(met)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["latency_ms", "macs", "params", "peak_memory_bytes"])
@pytest.mark.parametrize("space_name", ["mobile-small", "proxyless-small", "ofa-mbv3-w1.0"])
def test_the_lowest_reachable_value_is_exact(name, space_name, board_profile):
    space = spaces.space(space_name)
    if space_name == "ofa-mbv3-w1.0":
        space = space.with_resolutions([128, 224])
    model = LatencyModel(space, board_profile(space))
    drawn = space.sample(20_000, np.random.default_rng(1))
    row = space.smallest()  # of every cost, with positive costs of layers
    lowest = float(upper(name, row, model)[0])
    assert lowest <= upper(name, drawn, model).min()
    rng = np.random.default_rng(0)
    assert Problem(model, Budget(**{name: lowest})).require_reachable(rng) == []
    with pytest.raises(InfeasibleBudgetError, match="lowest reachable"):
        Problem(model, Budget(**{name: lowest * (1 - 1e-6)})).require_reachable(rng)
    highest = float(upper(name, space.largest(), model)[0])
    assert Problem(model, Budget(**{name: highest})).require_reachable(rng) == [name]
    assert Problem(model, Budget(**{name: highest * (1 - 1e-6)})).require_reachable(rng) == []


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["random", "ofa", "evolution", "pareto"])
def test_the_smallest_reachable_budget_is_reached(strategy, model):
    lowest = float(upper("latency_ms", SPACE.smallest(), model)[0])
    history = explored(strategy, Problem(model, Budget(latency_ms=lowest)), accuracy, 0, 8)
    assert np.array_equal(history.archs, SPACE.smallest())
