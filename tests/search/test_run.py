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
