"""Verdicts on measured models: budgets, regressions, accuracy. No torch."""

from __future__ import annotations

from deploynas.check.accuracy import Examples, Recipe
from deploynas.check.across import Across, Standing, across
from deploynas.check.regression import Baseline, LatencyRecord, percentage
from deploynas.check.summary import junit, markdown
from deploynas.check.verdict import EXIT_CODES, CheckResult, Gate, check

__all__ = [
    "EXIT_CODES",
    "Across",
    "Baseline",
    "CheckResult",
    "Examples",
    "Gate",
    "LatencyRecord",
    "Recipe",
    "Standing",
    "across",
    "check",
    "junit",
    "markdown",
    "percentage",
]
