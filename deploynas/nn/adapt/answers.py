"""What a network answers, and whether two answers are equal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

TOLERANCE = 1e-3  # of the outputs' deviation, between a network and what it is changed to


def outputs_of(found: Any) -> list[Tensor]:
    """The tensors that a forward returns."""
    if isinstance(found, Tensor):
        return [found]
    values = found.values() if isinstance(found, dict) else found
    return [x for one in values for x in ([one] if isinstance(one, Tensor) else outputs_of(one))]


def equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether answers are equal, but for the order in which numbers were added."""
    if [x.shape for x in found] != [x.shape for x in expected]:
        return False
    for one, other in zip(found, expected, strict=True):
        scale = float(other.std()) if other.numel() > 1 else 0.0
        scale = scale if math.isfinite(scale) and scale else 1.0
        if not bool((one - other).abs().max() <= TOLERANCE * scale):
            return False
    return True
