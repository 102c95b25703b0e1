"""What everything that ships promises, as functions that raise AssertionError.

For the tests of other packages as of our own; no test runner is needed.
"""

from __future__ import annotations

from deploynas.testing.costs import check_cost
from deploynas.testing.executors import check_executor
from deploynas.testing.layers import check_layer, check_slices
from deploynas.testing.runtimes import check_runtime
from deploynas.testing.sources import check_reader, check_source
from deploynas.testing.spaces import check_costs, check_networks, check_rows, check_space
from deploynas.testing.strategies import check_strategy

__all__ = [
    "check_cost",
    "check_costs",
    "check_executor",
    "check_layer",
    "check_networks",
    "check_reader",
    "check_rows",
    "check_runtime",
    "check_slices",
    "check_source",
    "check_space",
    "check_strategy",
]
