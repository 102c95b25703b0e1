"""What a model file answers to fixed inputs, so that it can be asked again elsewhere. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploynas.errors import InvalidInputError
from deploynas.onboard.parts import draw
from deploynas.onboard.worker import random_input

NUM_PROBES = 2
TOLERANCE = 1e-3  # of the largest answer: other processors add in another order


def probe(model: Path | bytes, name: str = "the model") -> list[npt.NDArray[np.float64]]:
    """Answers to :data:`NUM_PROBES` inputs of noise, flat: the outputs one after the other.

    Raises:
        InvalidInputError: ONNX Runtime cannot load or run it.
    """
    session = open_session(model, name)
    answers = []
    try:
        for number in range(NUM_PROBES):
            feeds = {
                value.name: _noise(value, number, i)
                for i, value in enumerate(session.get_inputs())
            }
            outputs = session.run(None, feeds)
            flat = [np.ravel(x).astype(np.float64) for x in outputs if isinstance(x, np.ndarray)]
            answers.append(np.concatenate(flat))
    except Exception as error:  # the runtime's errors share no class of their own
        raise _refused(error, name) from None
    return answers


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


def _noise(value: Any, number: int, index: int) -> Any:
    """The same bits on every machine, where the input is of floats."""
    if value.type == "tensor(float)" and all(isinstance(s, int) for s in value.shape):
        count = int(np.prod(value.shape))
        return draw(number, index, count, 1.0).reshape(value.shape)
    return random_input(np, np.random.default_rng(number), value)
