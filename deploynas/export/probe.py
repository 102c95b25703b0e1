"""What a model file answers to fixed inputs, so that it can be asked again elsewhere. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from deploynas.errors import InvalidInputError
from deploynas.graph.model_file import inputs_of
from deploynas.onboard.parts import draw
from deploynas.onboard.runtime import Array, Feeds, Input, numbers
from deploynas.onboard.worker import random_input

NUM_PROBES = 2
TOLERANCE = 1e-3  # of the largest answer: other processors add in another order


def probes(inputs: Sequence[Input], count: int = NUM_PROBES) -> list[Feeds]:
    """Inputs of noise: the same bits on every machine where they are floats.

    Raises:
        ValueError: An input has a dynamic shape, or a type that is not drawn.
    """
    return [
        {one.name: _noise(one, number, i) for i, one in enumerate(inputs)}
        for number in range(count)
    ]


def flat(outputs: Sequence[Array]) -> npt.NDArray[np.float64]:
    """The outputs of one answer one after the other; none where none are numbers."""
    return np.concatenate([np.zeros(0), *(np.ravel(x).astype(np.float64) for x in outputs)])


def probe(content: bytes) -> list[npt.NDArray[np.float64]]:
    """Flat answers of a model to :func:`probes`, by ONNX Runtime on this machine.

    Raises:
        InvalidInputError: ONNX Runtime cannot load or run it.
    """
    return probe_answers(content, probes(inputs_of(onnx.load_from_string(content))))


def probe_answers(model: Path | bytes, feeds: Sequence[Feeds]) -> list[npt.NDArray[np.float64]]:
    """Flat answers of a model, by ONNX Runtime on this machine.

    Raises:
        InvalidInputError: ONNX Runtime cannot load or run it.
    """
    session = open_session(model)
    return [flat(_run(session, one)) for one in feeds]


def answers_of(model: Path | bytes, feeds: Feeds) -> list[Array]:
    """What a model answers, by ONNX Runtime on this machine: its outputs that are arrays.

    Raises:
        InvalidInputError: ONNX Runtime cannot load or run it.
    """
    return _run(open_session(model), feeds)


def _run(session: Any, feeds: Feeds) -> list[Array]:
    try:
        return numbers(session.run(None, dict(feeds)))
    except Exception as error:  # the runtime's errors share no class of their own
        raise _refused(error, "the model") from None


def open_session(model: Path | bytes, name: str = "the model") -> Any:
    """A session of ONNX Runtime on this machine's processor.

    Raises:
        InvalidInputError: It cannot load the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    content = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _refused(error, name) from None


def _refused(error: Exception, name: str) -> InvalidInputError:
    import onnxruntime

    reason = " ".join(str(error).split())
    return InvalidInputError(f"onnxruntime {onnxruntime.__version__} cannot run {name}: {reason}")


def _noise(one: Input, number: int, index: int) -> Array:
    if one.type == "float32" and all(isinstance(side, int) for side in one.shape):
        return draw(number, index, int(np.prod(one.shape)), 1.0).reshape(one.shape)
    drawn: Array = random_input(np.random.default_rng(number), one)
    return drawn
