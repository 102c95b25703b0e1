"""A search over a cheap and a dear evaluation: what it spends, and what it learns of the cheap."""

from __future__ import annotations

import numpy as np
import pytest

from deploynas import spaces
from deploynas.errors import InvalidInputError
from deploynas.search import Problem
from deploynas.search.fidelities import Spending, predictor_over_fidelities

SPACE = spaces.space("nasbench201")


class Model:
    """Of the space; no latency is limited."""

    space = SPACE


def dear(archs):
    """Grows with size."""
    return 0.2 + 0.03 * np.log(SPACE.macs(archs))


def cheap(archs):
    """Errs: what has skips learns fast."""
    return dear(archs) - 0.2 + 0.006 * (archs[:, 1:] == 1).sum(axis=1)


@pytest.mark.slow
def test_what_is_spent_and_what_it_is_worth():
    spending, spent, seen = Spending(12, 200, 4_000), [0, 0], []
    noise = np.random.default_rng(1)

    def evaluate(archs, fidelity):
        spent[fidelity] += len(archs)
        if not fidelity:
            return cheap(archs)
        seen.extend(archs.tolist())
        return dear(archs) + noise.normal(0, 0.0025, len(archs))

    history = predictor_over_fidelities(
        Problem(Model()), evaluate, np.random.default_rng(0), spending
    )
    assert spent == [spending.num_cheap, spending.num_dear] == [210, 7]
    assert 12 * spent[0] + 200 * spent[1] <= 4_000
    assert history.archs.tolist() == seen
    assert len(np.unique(history.archs, axis=0)) == len(seen)
    assert np.abs(history.accuracies - dear(history.archs)).max() < 0.006
    best = dear(SPACE.everything()).max()
    assert dear(history.archs[history.best(1)])[0] > best - 0.01


@pytest.mark.slow
def test_the_dear_ones_go_where_the_cheap_one_did_not_lead():
    """The cheap one says the opposite among the best; the third dear evaluation shows it."""

    def evaluate(archs, fidelity):
        size = 0.01 * np.log(SPACE.macs(archs))
        skips = (archs[:, 1:] == 1).sum(axis=1)
        return size + (-0.01 if fidelity else 0.003) * skips

    spending = Spending(1, 10, 200)
    history = predictor_over_fidelities(
        Problem(Model()), evaluate, np.random.default_rng(0), spending
    )
    true = evaluate(history.archs, 1)
    assert true[history.best(1)][0] > true[:3].max()


@pytest.mark.parametrize(
    ("spending", "counts"),
    [
        (Spending(1, 1, 10), (6, 4)),
        (Spending(1, 100, 310), (10, 3)),
        (Spending(10, 20, 100), (4, 3)),
    ],
)
def test_how_it_is_shared_out(spending, counts):
    assert (spending.num_cheap, spending.num_dear) == counts


def test_too_little_to_spend():
    with pytest.raises(InvalidInputError, match="601 is too little|600 is too little"):
        predictor_over_fidelities(
            Problem(Model()), lambda archs, fidelity: cheap(archs), np.random.default_rng(0),
            Spending(12, 200, 600),
        )  # fmt: skip
