"""Verdicts on measured models: budgets and regressions. No torch."""
