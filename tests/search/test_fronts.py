"""Fronts and what they are worth: against brute force, and with as many networks as are met."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import strategies as bench

from deploynas.cli.search import front_lines
from deploynas.search.fronts import front, hypervolume, knee
from deploynas.search.problem import Problem
from deploynas.search.run import History, front_of

LAND = bench.Landscape(0)


def few_values(seed, n=40, num_costs=3, values=5):
    """Costs and accuracies among which many are equal."""
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, values, (n, num_costs)).astype(float)
    return costs, rng.integers(0, values, n) * 1.0


@pytest.mark.parametrize("num_costs", [1, 2, 3])
def test_the_front_by_brute_force(num_costs):
    for seed in range(20):
        costs, scores = few_values(seed, num_costs=num_costs)
        found = front(costs, scores)
        points = np.column_stack([costs, -scores])
        expected = [
            i
            for i, point in enumerate(points)
            if not any(
                (other <= point).all() and ((other < point).any() or j < i)
                for j, other in enumerate(points)
            )
        ]
        assert sorted(found) == expected  # of equal ones the first
        assert found == sorted(found, key=lambda i: tuple(costs[i]))
        if num_costs == 1:
            assert front(costs[:, 0], scores) == found


@pytest.mark.parametrize("num_costs", [1, 2, 3])
def test_the_hypervolume_by_brute_force(num_costs):
    """Against a count of the unit boxes that something dominates."""
    axes = [np.arange(5) + 0.5] * num_costs + [np.arange(5) - 0.5]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    for seed in range(10):
        costs, scores = few_values(seed, 12, num_costs)
        dominated = np.zeros(grid.shape[:-1], bool)
        for cost, score in zip(costs, scores, strict=True):
            dominated |= (grid[..., :-1] > cost).all(axis=-1) & (grid[..., -1] < score)
        inside = dominated[..., axes[-1] > 0]  # the corner's accuracy is 0
        found = hypervolume(costs, scores, (5.0,) * num_costs + (0.0,))
        assert found == pytest.approx(inside.sum())
        rows = front(costs, scores)
        worst = (4.0,) * num_costs + (1.0,)  # some lie on it or beyond
        assert hypervolume(costs[rows], scores[rows], worst) == hypervolume(costs, scores, worst)


def test_hypervolume_of_known_sets():
    costs = np.array([[1.0], [2.0], [3.0], [2.5]])
    scores = np.array([1.0, 2.0, 3.0, 0.5])
    assert hypervolume(costs, scores, (4, 0)) == pytest.approx(1 * 1 + 1 * 2 + 1 * 3)
    assert hypervolume(costs, scores, (2, 1)) == 0.0
    assert hypervolume(costs[:0], scores[:0], (4, 0)) == 0.0


def test_the_knee_is_above_the_line():
    assert knee(np.array([0.0, 1.0, 10.0]), np.array([0.0, 0.9, 1.0])) == 1


def test_thousands_on_a_front_of_three_costs_take_seconds():
    """Every one of 5,000 is on it, 15,000 are behind: before, hours."""
    rng = np.random.default_rng(0)
    ahead = np.abs(rng.standard_normal((5_000, 4)))
    ahead = 1 - ahead / np.linalg.norm(ahead, axis=1)[:, None]
    points = np.concatenate([ahead, 1 - (1 - np.tile(ahead, (3, 1))) * 0.9])
    costs, scores = points[:, :3], -points[:, 3]
    started = time.monotonic()
    assert sorted(front(costs, scores)) == list(range(5_000))
    found = hypervolume(costs, scores, (1.0, 1.0, 1.0, -1.0))
    assert time.monotonic() - started < 5
    assert found == pytest.approx(np.pi**2 / 32, rel=0.15)  # of the ball, an eighth of a half


@pytest.mark.parametrize("equal", [(), ("cost",), ("accuracy",)])
def test_a_trade_off_is_a_share_of_the_box_from_its_best_to_the_worst(equal):
    """Of what is equal everywhere it is no part; before, that made it perfect."""
    archs = LAND.space.sample(200, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    macs = 1e8 * (np.ones(200) if "cost" in equal else 1 + rng.random(200))
    scores = np.full(200, 0.5) if "accuracy" in equal else LAND.accuracies(archs)
    space = SimpleNamespace(
        decode=LAND.space.decode, totals=lambda name, rows: macs[: len(rows)],
    )  # fmt: skip
    model = SimpleNamespace(space=space, predict_ms=LAND.predict_ms, upper_ms=LAND.upper_ms)
    points, found = front_of(History(archs, scores), Problem(model), ("latency_ms", "macs"))
    ms = LAND.predict_ms(archs)
    if equal and len(points) == 1:
        assert found is None
        return
    assert found.worst == (ms.max(), macs.max())
    assert found.worst_accuracy == scores.min()
    draws = np.random.default_rng(2).random((20_000, 3))
    draws[:, 0] = ms.min() + draws[:, 0] * np.ptp(ms)
    draws[:, 1] = macs.min() + draws[:, 1] * np.ptp(macs)
    draws[:, 2] = scores.min() + draws[:, 2] * np.ptp(scores)
    rows = front(np.stack([ms, macs], axis=1), scores)
    beaten = np.zeros(len(draws), bool)
    for i in rows:
        beaten |= (ms[i] <= draws[:, 0]) & (macs[i] <= draws[:, 1]) & (scores[i] >= draws[:, 2])
    assert found.hypervolume == pytest.approx(beaten.mean(), abs=0.015)
    assert 0 < found.hypervolume < 1


def test_the_corner_is_said():
    archs = LAND.space.sample(100, np.random.default_rng(0))
    points, found = front_of(
        History(archs, LAND.accuracies(archs)), Problem(LAND), ("latency_ms", "params")
    )
    title = front_lines(SimpleNamespace(front=points), found)[0]
    assert title == (
        f"the front has {len(points)} networks, hypervolume {found.hypervolume:.3f} (share of the "
        f"box between its best values and the worst evaluated: {found.worst[0]:.4g} ms "
        f"{found.worst[1] / 1e3:.4g} k params {found.worst_accuracy:.2%}):"
    )
