"""What every space, layer kind, ... promises, as functions that raise AssertionError.

For the tests of other packages as of our own: none of these needs a test runner.
"""

from __future__ import annotations

from deploynas.testing.layers import check_layer, check_slices

__all__ = ["check_layer", "check_slices"]
