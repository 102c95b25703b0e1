"""What a network answers, whether two answers are equal, and which changes keep them so."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from deploynas.errors import InvalidInputError

T = TypeVar("T")
TOLERANCE = 1e-3  # of the outputs' deviation, between a network and what it is changed to


def outputs_of(found: Any) -> list[Tensor]:
    """The tensors that a forward returns."""
    if isinstance(found, Tensor):
        return [found]
    values = found.values() if isinstance(found, dict) else found
    return [x for one in values for x in ([one] if isinstance(one, Tensor) else outputs_of(one))]


def answered(module: nn.Module, example: Tensor) -> list[Tensor]:
    """What a network answers to an input.

    Raises:
        InvalidInputError: It does not take the input, or its answer is no finite tensor.
    """
    try:
        found = outputs_of(module(example))
    except Exception as error:  # whatever a forward raises
        raise InvalidInputError(
            f"the network does not take an input of {list(example.shape)}: {first_line(error)}"
        ) from None
    if not found or not all(bool(torch.isfinite(x).all()) for x in found):
        what = "numbers" if found else "a tensor"
        raise InvalidInputError(f"what {type(module).__name__} returns is not {what}")
    return found


def first_output(outputs: Any) -> Tensor:
    """What a network answers, the first where there are several."""
    return outputs_of(outputs)[0]


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


def sifted(
    items: Sequence[T], fault: Callable[[Sequence[T]], str | None]
) -> tuple[list[T], list[tuple[T, str]]]:
    """The items that have no fault, and the others with theirs.

    All are tried at once; where that fails, half of them, and so on.
    """
    accepted: list[T] = []
    refused: list[tuple[T, str]] = []
    waiting = [list(items)] if items else []
    while waiting:
        some = waiting.pop()
        reason = fault(some)
        if reason is None:
            accepted += some
        elif len(some) == 1:
            refused.append((some[0], reason))
        else:
            middle = len(some) // 2
            waiting += [some[middle:], some[:middle]]
    return accepted, refused


def first_line(error: BaseException, length: int = 200) -> str:
    """Of what an error says."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:length]
