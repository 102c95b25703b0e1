"""Limits, strategies, the driver that runs them, and the one result format."""

from __future__ import annotations

from deploynas.search.budget import Budget
from deploynas.search.problem import Problem
from deploynas.search.result import Candidate, DataRecord, SearchResult
from deploynas.search.run import Plan, explore, search
from deploynas.search.strategy import DEFAULT, STRATEGIES, Effort

__all__ = [
    "DEFAULT", "STRATEGIES", "Budget", "Candidate", "DataRecord", "Effort", "Plan", "Problem",
    "SearchResult", "explore", "search",
]  # fmt: skip
