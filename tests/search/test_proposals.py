"""What is proposed for evaluation: within budget, new, and promising."""

from __future__ import annotations

import numpy as np
import pytest

from deploynas import spaces
from deploynas.profile import LatencyModel
from deploynas.search import Budget, Problem
from deploynas.search.drawing import uniform_samples
from deploynas.search.proposals import Proposals

SPACE = spaces.space("mobile-small", resolutions=[20, 28])


@pytest.fixture(scope="module")
def model(board_profile):
    return LatencyModel(SPACE, board_profile(SPACE))


def accuracy(archs):
    weights = np.random.default_rng(7).normal(size=len(SPACE.choices))
    return 0.4 + SPACE.macs(archs) / 1e8 + 0.002 * (archs @ weights)


@pytest.mark.parametrize(
    "kind", ["process", "ridge", pytest.param("best", marks=pytest.mark.slow)]
)
def test_proposals_are_new_within_budget_and_better(kind, model):
    rng = np.random.default_rng(0)
    drawn = SPACE.sample_networks(400, rng)
    budget = Budget(macs=float(np.median(SPACE.macs(drawn))))
    problem = Problem(model, budget)
    inside = drawn[problem.admits(drawn)]
    archs = inside[:60]
    found = Proposals(problem, rng, kind).next(8, archs, accuracy(archs))
    assert len(np.unique(found, axis=0)) == len(found) == 8
    assert problem.admits(found).all()
    assert np.array_equal(SPACE.canonical(found), found)
    known = {arch.tobytes() for arch in archs}
    assert not any(arch.tobytes() in known for arch in found)
    assert accuracy(found).mean() > np.quantile(accuracy(inside), 0.95)


@pytest.mark.slow
def test_nothing_is_left_of_a_corner_that_is_known(model):
    smallest = float(model.upper_ms(SPACE.smallest())[0])
    budget, rng = Budget(latency_ms=smallest * 1.08), np.random.default_rng(0)
    problem = Problem(model, budget)
    inside = uniform_samples(1_000, problem, rng)
    assert 12 <= len(inside) < 200
    proposals = Proposals(problem, rng)
    found = proposals.next(5, inside[2:], accuracy(inside[2:]))
    assert {a.tobytes() for a in found} == {a.tobytes() for a in inside[:2]}
    assert len(proposals.next(5, inside, accuracy(inside))) == 0
