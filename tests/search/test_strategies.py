"""What every strategy promises: budgets hold, draws are the seed's, the search is bounded."""

from __future__ import annotations

import numpy as np
import pytest

from deploynas import spaces
from deploynas.profile import LatencyModel
from deploynas.search import STRATEGIES, Budget
from deploynas.search.strategies import History, admitted_samples

SPACE = spaces.space("mobile-small", resolutions=[20, 28])


@pytest.fixture(scope="module")
def model(board_profile):
    return LatencyModel(SPACE, board_profile(SPACE))


def accuracy(archs):
    """More MACs are better, and every choice has a say of its own."""
    weights = np.random.default_rng(7).normal(size=len(SPACE.choices))
    return SPACE.macs(archs) / 1e7 + 0.02 * (archs @ weights)


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


def test_evolution_beats_random_search(model):
    budget = budgets(model)["latency"]
    best = {
        name: [
            strategy(budget, model, accuracy, np.random.default_rng(seed), 400).accuracies.max()
            for seed in range(5)
        ]
        for name, strategy in STRATEGIES.items()
    }
    assert np.median(best["ofa"]) > np.median(best["random"])


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
