"""A model in a runtime's own format, which answers as its ONNX file does. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deploynas.device import Device, LocalDevice
from deploynas.errors import ParityError
from deploynas.export.manifest import ONNX_NAME, Converted
from deploynas.export.probe import flat, probe_answers, probes
from deploynas.graph.model_file import ModelFile
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.runtime import Runtime

TOLERANCE = 1e-4  # of the outputs' deviation
INT8_TOLERANCE = 0.25  # runtimes and processors round differently: 0.11 was seen
NUM_PROBES = 5


def in_format(runtime: Runtime, model: bytes) -> tuple[dict[str, bytes], Converted]:
    """The files of a model in a runtime's own format, by name, and what is known of them.

    Args:
        runtime: It must run here: what it answers is compared.
        model: Its ONNX file.

    Raises:
        InvalidInputError: The runtime lacks an operator; names it and its node.
        MissingDependencyError: The runtime is not installed here.
        ParityError: It answers something else.
    """
    device = LocalDevice(next(iter(runtime.devices)))
    with temporary_folder() as folder:
        source = folder / ONNX_NAME
        source.write_bytes(model)
        path = runtime.convert(source, folder)
        difference = difference_of(device, path, source)
        allowed = tolerance(quantized=ModelFile(source).is_quantized)
        if not difference <= allowed:
            raise ParityError(
                f"{path.name} answers otherwise than {ONNX_NAME}, by {difference:.3g} of the "
                f"outputs' deviation (tolerance {allowed:g}): nothing was exported"
            )
        files = {file.name: file.read_bytes() for file in runtime.files(path)}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return files, Converted(runtime=device.identity.runtime, files=digests, difference=difference)


def difference_of(device: Device, path: Path, model: Path) -> float:
    """How far a file's answers on ``device`` are from its ONNX file's by ONNX Runtime.

    Over :data:`NUM_PROBES` inputs of noise; see :func:`difference_between`.
    """
    feeds = probes(ModelFile(model).inputs, NUM_PROBES)
    answers = [flat(outputs) for outputs in device.answers(path, feeds)]
    return difference_between(answers, probe_answers(model, feeds))


def difference_between(
    answers: Sequence[npt.NDArray[np.float64]], expected: Sequence[npt.NDArray[np.float64]]
) -> float:
    """The largest difference, relative to the deviation of what is expected, where that is not 0.

    Infinite where the outputs have other shapes, not a number where one of them is none.
    """
    if [a.shape for a in answers] != [e.shape for e in expected]:
        return float("inf")
    found, wanted = np.concatenate(answers), np.concatenate(expected)
    if not wanted.size:
        return 0.0
    return float(np.abs(found - wanted).max() / (wanted.std() or 1.0))


def tolerance(*, quantized: bool) -> float:
    """What :func:`difference_between` may be; see :attr:`ModelFile.is_quantized`."""
    return INT8_TOLERANCE if quantized else TOLERANCE
