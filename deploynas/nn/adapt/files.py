"""A network of one's own as an ONNX file, by torch's own exporter."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import Tensor, nn

from deploynas.errors import DeploynasError
from deploynas.nn.adapt.answers import first_line
from deploynas.onboard.folders import temporary_folder

OPSET = 17
INPUT, OUTPUT = "image", "logits"  # the names that every export here has


class NotExportedError(DeploynasError):
    """Torch cannot write the network."""

    kind = "not-exported"


def onnx_bytes(module: nn.Module, example: Tensor) -> bytes:
    """The ONNX file of a network, its batch norms folded into convolutions.

    Args:
        module: In eval mode.
        example: Its input, of one image.

    Raises:
        NotExportedError: Torch's reason.
    """
    try:
        with _quietly(), torch.no_grad(), temporary_folder() as folder:
            path = folder / "model.onnx"
            torch.onnx.export(
                module, (example,), path, dynamo=False, opset_version=OPSET,
                input_names=[INPUT], output_names=[OUTPUT],
            )  # fmt: skip
            content = path.read_bytes()
    except Exception as error:  # whatever an operator raises that has no counterpart
        raise NotExportedError(
            f"torch cannot write {type(module).__name__} as ONNX: {first_line(error, 300)}"
        ) from None
    onnx.checker.check_model(content)
    return content


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what tracing warns of, which parity is the proof against."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
