"""A model that takes one input at a time, made to take several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from deploynas.check.model_file import is_onnx
from deploynas.errors import InvalidInputError
from deploynas.export.formats import difference_between, tolerance
from deploynas.export.probe import answers_of, probes
from deploynas.graph.model_file import ModelFile, inputs_of
from deploynas.onboard.runtime import Feeds, inputs_beside


def batched(model: Path, count: int, folder: Path) -> Path:
    """A model with ``count`` in the place of the 1 that all its inputs begin with.

    What it answers to several inputs is proved to be what the model answers to each.

    Args:
        model: With all shapes fixed.
        count: Inputs at once.
        folder: A temporary one, for the result.

    Raises:
        InvalidInputError: It is no ONNX file, or has its batch of 1 elsewhere too.
    """
    if not is_onnx(model):
        raise InvalidInputError(f"--batch {count}: {model.name} has its own, only ONNX files can")
    if inputs_beside(model).is_file():
        raise InvalidInputError("--batch is timed with noise: leave out --inputs")
    file = ModelFile(model)
    changed = onnx.ModelProto()
    changed.CopyFrom(file.model)
    weights = {tensor.name for tensor in changed.graph.initializer}
    for value in changed.graph.input:
        sides = value.type.tensor_type.shape.dim
        if value.name in weights:
            continue
        if not sides or sides[0].dim_value != 1:
            raise InvalidInputError(
                f"--batch {count}: input {value.name!r} does not begin with a batch of 1"
            )
        sides[0].dim_value = count
    del changed.graph.value_info[:]  # inferred for one
    for value in changed.graph.output:
        value.type.tensor_type.ClearField("shape")
    path = folder / f"{model.stem}-{count}.onnx"
    path.write_bytes(changed.SerializeToString())
    refused = InvalidInputError(
        f"--batch {count}: {model.name} is made for one input at a time",
        "export it with a dynamic batch",
    )
    singles = probes(inputs_of(file.model), count)
    together = {name: np.concatenate([one[name] for one in singles]) for name in singles[0]}
    alone = [_outputs(model, one) for one in singles]
    try:
        found = _outputs(path, together)
        wanted = [np.concatenate(of_each) for of_each in zip(*alone, strict=True)]
        difference = difference_between(found, wanted)
    except (InvalidInputError, ValueError):  # shapes that do not fit
        raise refused from None
    if not difference <= tolerance(quantized=file.is_quantized):
        raise refused
    return path


def _outputs(model: Path, feeds: Feeds) -> list[npt.NDArray[np.float64]]:
    """Every output: a row an input, what it has of that one after the other."""
    rows = len(next(iter(feeds.values())))
    return [
        np.asarray(output, np.float64).reshape(rows, -1) for output in answers_of(model, feeds)
    ]
