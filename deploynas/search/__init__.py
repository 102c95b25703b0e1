"""Budgets, evaluators, and one module a strategy."""
