"""A network that measures over budget is never returned as a success."""

from __future__ import annotations

import numpy as np
import pytest

from deploynas.errors import InfeasibleBudgetError
from deploynas.search.run import _first_within

FINALISTS = np.array([[2], [1], [0]], np.uint8)


def one_by_one():
    finalists = iter(FINALISTS)
    return lambda share: next(finalists, None)


def test_the_first_that_measures_within_budget_wins() -> None:
    best, upper = _first_within(one_by_one(), 1.5, lambda arch: float(arch[0]))
    assert best.tolist() == [1]
    assert upper == 1.0


def test_none_within_budget_is_an_error() -> None:
    with pytest.raises(InfeasibleBudgetError, match="lowest reaches 5 ms"):
        _first_within(one_by_one(), 1.5, lambda arch: 5.0 + float(arch[0]))


def by_share(share):
    """A network that is predicted to take that share of the budget, in thousandths."""
    return np.array([round(1000 * share)])


def test_what_measured_high_once_does_not_give_the_budget_away() -> None:
    seen = []

    def measure_ms(arch):
        seen.append(int(arch[0]))
        disturbed = 1.12 if len(seen) == 1 else 1.0
        return disturbed * float(arch[0]) / 1000

    first, upper = _first_within(by_share, 1.0, measure_ms)
    assert first[0] == seen[-1] == 888
    assert upper == pytest.approx(0.888)
    seen.clear()
    refined, upper = _first_within(by_share, 1.0, measure_ms, most=1.05)
    assert seen == [1000, 888, 944, 972]
    assert refined[0] == 972
    assert upper == pytest.approx(0.972)


def test_what_measures_below_its_prediction_may_grow_as_far_as_the_prediction_alone() -> None:
    seen = []

    def measure_ms(arch):
        seen.append(int(arch[0]))
        return 0.85 * float(arch[0]) / 1000  # a machine that is quicker than in its profile

    best, upper = _first_within(by_share, 1.0, measure_ms, most=1.05)
    assert seen == [1000, 1050]
    assert upper == pytest.approx(0.85 * 1.05)
    seen.clear()
    best, _ = _first_within(by_share, 1.0, lambda arch: 0.97 * measure_ms(arch) / 0.85, most=1.05)
    assert seen == [1000]
    best, _ = _first_within(by_share, 1.0, lambda arch: measure_ms(arch))
    assert best[0] == 1000


def test_refinement_never_returns_what_measures_over_budget() -> None:
    def measure_ms(arch):
        return 0.5 if arch[0] < 900 else 1.1

    best, upper = _first_within(by_share, 1.0, measure_ms, most=1.05)
    assert best[0] < 900
    assert upper == 0.5
