"""What the writers of other formats ask of an ONNX file."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import onnx
from onnx import numpy_helper

from deploynas.errors import InvalidInputError
from deploynas.onboard.runtime import Array

SINGLE_AXIS = 13  # opset from which Softmax is along one axis


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators; 1 where a file does not say."""
    return max(
        (one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=1
    )


def array_of(tensor: onnx.TensorProto) -> Array:
    """A constant.

    Raises:
        InvalidInputError: It is damaged.
    """
    with refusing(lambda reason: InvalidInputError(f"the constant {tensor.name!r} {reason}")):
        array: Array = numpy_helper.to_array(tensor)
        return array


def softmax_axis(shape: Sequence[int], axis: int | None, opset: int) -> int | None:
    """The axis of a Softmax, from 0, or of what is None by default; None for several axes."""
    if axis is None:
        axis = -1 if opset >= SINGLE_AXIS else 1
    axis %= len(shape)
    return axis if opset >= SINGLE_AXIS or math.prod(shape[axis + 1 :]) == 1 else None


@contextlib.contextmanager
def refusing(refusal: Callable[[str], InvalidInputError]) -> Iterator[None]:
    """Whatever goes wrong with a part of a file that nobody thought of, as its refusal.

    Raises:
        InvalidInputError: What ``refusal`` makes of a reason.
    """
    try:
        yield
    except (InvalidInputError, ImportError):
        raise
    except Exception as error:  # no answer is better than a wrong one
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise refusal(f"cannot be converted: {lines[0]}") from error
