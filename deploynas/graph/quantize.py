"""ONNX -> INT8: static, per channel, by ONNX Runtime's own quantizer. No torch."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from deploynas.onboard.folders import temporary_folder

Images = npt.NDArray[np.float32]


def layer_names(model: bytes) -> list[str]:
    """The layers of a model of ours that quantization can change, in order: ``layers.3``, ..."""
    nodes = onnx.load_from_string(model).graph.node
    names = [_layer(node.name) for node in nodes if node.op_type in ("Conv", "Gemm", "MatMul")]
    return list(dict.fromkeys(names))


def quantize(model: bytes, images: Images, float_layers: Collection[str] = ()) -> bytes:
    """A model with 8-bit weights and activations (QDQ), scales from real images.

    Activations are unsigned and weights signed, a scale a channel: what processors with 8-bit dot
    products run fastest.

    Args:
        model: Its ONNX file.
        images: ``(n, c, h, w)``, normalised: what activations are calibrated on.
        float_layers: Layers that keep their precision, as :func:`layer_names` calls them.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    whole = onnx.load_from_string(model)
    metadata = {entry.key: entry.value for entry in whole.metadata_props}
    (image,) = whole.graph.input
    with temporary_folder() as folder, _quiet():
        source, prepared, target = (folder / f"{n}.onnx" for n in ("float", "prepared", "int8"))
        source.write_bytes(model)
        # shapes alone: batch norms are folded, and its optimizer would take HardSwish apart
        quant_pre_process(
            str(source), str(prepared), skip_symbolic_shape=True, skip_optimization=True
        )
        nodes = onnx.load(prepared).graph.node
        quantization.quantize_static(
            str(prepared),
            str(target),
            _reader(image.name, images),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=[node.name for node in nodes if _layer(node.name) in float_layers],
        )
        quantized = onnx.load(target)
    used = {node.domain for node in quantized.graph.node}
    imports = [entry for entry in quantized.opset_import if entry.domain in used]
    del quantized.opset_import[:]
    quantized.opset_import.extend(imports)
    del quantized.metadata_props[:]
    onnx.helper.set_model_props(quantized, metadata)
    content: bytes = quantized.SerializeToString()
    return content


def _layer(node: str) -> str:
    found = re.match(r"layers\.\d+", node)
    return found[0] if found else node


def _reader(name: str, images: Images) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images = iter(images)

        def get_next(self) -> dict[str, Images] | None:
            image = next(self._images, None)
            return None if image is None else {name: image[None]}

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer prints, and logs advice that was followed."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
