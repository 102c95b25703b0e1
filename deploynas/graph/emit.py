"""Layers -> ONNX: the one exporter.

The same code writes the single layers that a profile measures and the network that is
deployed, so that a profiled layer is the deployed graph by construction. It needs neither
torch nor a tracer: a board without torch can profile, and an export takes milliseconds.
:mod:`deploynas.graph.parity` proves each export against the PyTorch network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from deploynas.errors import InvalidInputError
from deploynas.graph.emitters import Float, GraphBuilder, Weights
from deploynas.onboard.parts import draw
from deploynas.spaces.layers import Node, kind_of

DEFAULT_OPSET = 17
MIN_OPSET = 14  # HardSwish
RANDOM_SEED = "random_weights_seed"  # metadata of models for timing


class RandomWeights:
    """He-initialised weights for timing; activations stay in a normal range.

    The model's metadata name the seed, so that a device elsewhere draws them itself.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._num_drawn = 0

    def conv(
        self, name: str, shape: tuple[int, ...], *, eps: float | None, bias: bool
    ) -> tuple[Float, Float | None]:
        """Draw the weight; the bias is small noise."""
        weight = self._draw(shape)
        return weight, None if eps is None and not bias else self._draw(shape[:1])

    def norm(self, name: str, channels: int, *, eps: float) -> tuple[Float, Float]:
        """Draw both."""
        return self._draw((channels, 1, 1)), self._draw((channels, 1, 1))

    def _draw(self, shape: tuple[int, ...]) -> Float:
        self._num_drawn += 1
        return draw(self.seed, self._num_drawn, math.prod(shape), random_range(shape)).reshape(
            shape
        )


def random_range(shape: Sequence[int]) -> float:
    """Half the range that :class:`RandomWeights` draws a tensor of ``shape`` from."""
    deviation = math.sqrt(2.0 / math.prod(shape[1:])) if len(shape) > 1 else 0.1
    return deviation * math.sqrt(3.0)


class StateWeights:
    """Weights of a trained static network: its ``state_dict`` as float arrays.

    A convolution ``x.conv`` with batch norm has its statistics under ``x.bn``.
    """

    def __init__(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        self._state = state

    def conv(
        self, name: str, shape: tuple[int, ...], *, eps: float | None, bias: bool
    ) -> tuple[Float, Float | None]:
        """Read, and fold the batch norm in double precision."""
        weight = self._get(f"{name}.weight").reshape(shape)
        if eps is None:
            offset = self._get(f"{name}.bias") if bias else None
            return weight.astype(np.float32), None if offset is None else _f32(offset)
        scale, shift = self._norm(name.removesuffix(".conv") + ".bn", eps)
        return _f32(weight * scale.reshape(-1, *[1] * (len(shape) - 1))), _f32(shift)

    def norm(self, name: str, channels: int, *, eps: float) -> tuple[Float, Float]:
        """Read."""
        scale, shift = self._norm(name, eps)
        return _f32(scale.reshape(channels, 1, 1)), _f32(shift.reshape(channels, 1, 1))

    def _norm(
        self, name: str, eps: float
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        scale = self._get(f"{name}.weight") / np.sqrt(self._get(f"{name}.running_var") + eps)
        return scale, self._get(f"{name}.bias") - self._get(f"{name}.running_mean") * scale

    def _get(self, name: str) -> npt.NDArray[np.float64]:
        if name not in self._state:
            raise InvalidInputError(f"the weights lack the tensor {name!r}")
        return self._state[name].astype(np.float64)


def emit(
    nodes: Sequence[Node],
    weights: Weights,
    *,
    opset: int = DEFAULT_OPSET,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Build the ONNX model of a network or of a single layer.

    The input is ``image``, float32 ``(1, channels, height, width)``; the output is ``logits``,
    ``(1, num_classes)``, after a head and a feature map otherwise. Shapes are fixed.

    Raises:
        InvalidInputError: ``opset`` is older than the operators need or newer than what is known
            here, or weights are missing.
    """
    if opset < MIN_OPSET:
        raise InvalidInputError(f"opset {opset} is too old: HardSwish needs {MIN_OPSET}")
    if opset > onnx.defs.onnx_opset_version():
        newest = onnx.defs.onnx_opset_version()
        raise InvalidInputError(f"opset {opset} is newer than the onnx here knows, {newest}")
    graph = GraphBuilder(weights)
    outputs: list[str] = []
    for i, node in enumerate(nodes):
        sources = ["image" if source < 0 else outputs[source] for source in node.inputs]
        outputs.append(graph.layer(f"layers.{i}", node.layer, sources))
    first, last = nodes[0].layer, nodes[-1].layer
    is_network = kind_of(last).ends_network
    name = "logits" if is_network else "features"
    graph.rename(outputs[-1], name)
    shape = [1, last.out_channels] + ([] if is_network else [last.out_height, last.out_width])
    image = [1, first.in_channels, first.height, first.width]
    return finished(graph, image, {name: shape}, weights, opset=opset, metadata=metadata)


def finished(
    graph: GraphBuilder,
    image: Sequence[int],
    outputs: Mapping[str, Sequence[int]],
    weights: Weights,
    *,
    opset: int = DEFAULT_OPSET,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """The model of a graph that is built.

    Args:
        graph: Reads ``image``.
        image: Shape of that input.
        outputs: Name -> shape.
        weights: Of the graph.
        opset: Of the operators.
        metadata: Further properties.
    """
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "deploynas",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, image)],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in outputs.items()
            ],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        # The oldest file format that carries the opset, for old runtimes.
        ir_version=helper.find_min_ir_version_for([helper.make_opsetid("", opset)]),
        producer_name="deploynas",
    )
    properties = dict(metadata or {})
    if isinstance(weights, RandomWeights):
        properties[RANDOM_SEED] = str(weights.seed)
    helper.set_model_props(model, properties)
    return model


def write_model(path: Path, nodes: Sequence[Node], weights: Weights) -> Path:
    """Write the ONNX model of ``nodes``; returns ``path``."""
    path.write_bytes(emit(nodes, weights).SerializeToString())
    return path


def _f32(array: npt.NDArray[np.float64]) -> Float:
    return np.ascontiguousarray(array, np.float32)
