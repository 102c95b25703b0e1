"""What every strategy promises: budgets hold, draws are the seed's, the search is bounded."""

from __future__ import annotations

import numpy as np
import pytest

from deploynas import spaces
from deploynas.profile import LatencyModel
from deploynas.search import STRATEGIES, Budget
from deploynas.search.predictor import fit_predictor
from deploynas.search.strategies import History, admitted_samples

SPACE = spaces.space("mobile-small", resolutions=[20, 28])


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


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("limit", ["latency", "tight", "both"])
@pytest.mark.parametrize("num", [4, 60, 3_000])
def test_promises(name, limit, num, model):
    if name == "predictor" and (num > 100 or limit == "both"):
        pytest.skip("a predictor is for few evaluations, and takes its time over them")
    budget = budgets(model)[limit]
    calls = []

    def evaluate(archs):
        calls.append(len(archs))
        return accuracy(archs)

    history = STRATEGIES[name](budget, model, evaluate, np.random.default_rng(0), num)
    assert 0 < len(history.archs) == sum(calls) <= num
    assert budget.admits(history.archs, model).all()
    assert len(np.unique(history.archs, axis=0)) == len(history.archs)
    assert np.array_equal(SPACE.canonical(history.archs), history.archs)
    assert np.allclose(history.accuracies, accuracy(history.archs))
    again = STRATEGIES[name](budget, model, accuracy, np.random.default_rng(0), num)
    assert np.array_equal(again.archs, history.archs)


@pytest.mark.parametrize(("name", "num"), [("ofa", 400), ("predictor", 60)])
def test_beats_random_search(name, num, model):
    budget = budgets(model)["latency"]
    best = {
        name: [
            STRATEGIES[name](
                budget, model, accuracy, np.random.default_rng(seed), num
            ).accuracies.max()
            for seed in range(1 if num < 100 else 3)
        ]
        for name in (name, "random")
    }
    assert np.median(best[name]) > np.median(best["random"])


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
    found = admitted_samples(
        50, Budget(latency_ms=smallest * 1.0001), model, np.random.default_rng(0)
    )
    assert found.tolist() == SPACE.smallest().tolist()
