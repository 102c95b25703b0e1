"""Verdicts on measured models: budgets and accuracy. No torch."""

from __future__ import annotations

from deploynas.check.verdict import EXIT_CODES, CheckResult, Examples, check

__all__ = ["EXIT_CODES", "CheckResult", "Examples", "check"]
