"""Budgets, strategies, and the one result format."""

from __future__ import annotations

from deploynas.search.budget import Budget
from deploynas.search.result import Candidate, DataRecord, SearchResult
from deploynas.search.run import search
from deploynas.search.strategies import DEFAULT_STRATEGY, STRATEGIES

__all__ = [
    "DEFAULT_STRATEGY",
    "STRATEGIES",
    "Budget",
    "Candidate",
    "DataRecord",
    "SearchResult",
    "search",
]
