"""Layers -> ONNX: the one exporter.

The same code writes the single layers that a profile measures and the network that is
deployed, so that a profiled layer is the deployed graph by construction. It needs neither
torch nor a tracer: a board without torch can profile, and an export takes milliseconds.
:mod:`deploynas.graph.parity` proves each export against the PyTorch network.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploynas.errors import InvalidInputError
from deploynas.onboard.parts import draw
from deploynas.spaces.layers import RELU_FIRST, Activation, Layer, Node, halves

DEFAULT_OPSET = 17
MIN_OPSET = 14  # HardSwish
INT64_MAX = 2**63 - 1
RANDOM_SEED = "random_weights_seed"  # metadata of models for timing
Float = npt.NDArray[np.float32]


class Weights(Protocol):
    """Where the emitter takes a convolution's numbers from."""

    def conv(
        self, name: str, shape: tuple[int, ...], *, eps: float | None, bias: bool
    ) -> tuple[Float, Float | None]:
        """Weight of ``shape`` and bias of convolution ``name``.

        A following batch norm (``eps`` not None) is folded into both.
        """
        ...


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
        norm = name.removesuffix(".conv") + ".bn"
        scale = self._get(f"{norm}.weight") / np.sqrt(self._get(f"{norm}.running_var") + eps)
        shift = self._get(f"{norm}.bias") - self._get(f"{norm}.running_mean") * scale
        return _f32(weight * scale.reshape(-1, *[1] * (len(shape) - 1))), _f32(shift)

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
    graph = _Graph(weights)
    outputs: list[str] = []
    for i, node in enumerate(nodes):
        sources = ["image" if source < 0 else outputs[source] for source in node.inputs]
        outputs.append(graph.layer(f"layers.{i}", node.layer, sources))
    first, last = nodes[0].layer, nodes[-1].layer
    is_network = last.kind == "head"
    name = "logits" if is_network else "features"
    graph.rename(outputs[-1], name)
    shape = [1, last.out_channels] + ([] if is_network else [last.out_height, last.out_width])
    image = [1, first.in_channels, first.height, first.width]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "deploynas",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, image)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
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


class _Graph:
    """Nodes and initializers under construction; each method returns its output's name."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._layer, self._first = "", 0  # names of nodes say which layer they are of

    def rename(self, old: str, new: str) -> None:
        """Rename the output of the last node."""
        outputs = self.nodes[-1].output
        outputs[list(outputs).index(old)] = new

    def layer(self, name: str, layer: Layer, sources: list[str]) -> str:
        self._layer, self._first = name, len(self.nodes)
        eps, x = layer.batch_norm_eps, sources[0]
        if layer.kind == "add":
            return functools.reduce(lambda a, b: self._op("Add", [a, b]), sources)
        if layer.kind == "concat":
            return self._op("Concat", sources, axis=1)
        if layer.kind in ("avg_pool", "max_pool"):
            return self._pool(layer, x)
        if layer.kind in RELU_FIRST:
            return self._relu_first(name, layer, x)
        if layer.kind == "conv":
            # A lone convolution and its batch norm are siblings: layers.0.conv, layers.0.bn
            x = self._conv(
                f"{name}.conv", x, layer.in_channels, layer.out_channels, layer.kernel_size,
                layer.stride, eps=eps if layer.batch_norm else None, bias=layer.bias,
            )  # fmt: skip
            return self._activation(x, layer.activation)
        if layer.kind == "mbconv":
            return self._mbconv(name, layer, x)
        channels = layer.mid_channels or layer.in_channels
        if layer.mid_channels:
            x = self._conv(f"{name}.expand.conv", x, layer.in_channels, channels, eps=eps)
            x = self._activation(x, layer.activation)
        x = self._op("GlobalAveragePool", [x])
        if layer.feature_channels:
            x = self._conv(f"{name}.features", x, channels, layer.feature_channels)
            x = self._activation(x, layer.activation)
            channels = layer.feature_channels
        x = self._op("Flatten", [x])
        weight, bias = self._weights.conv(
            f"{name}.classifier", (layer.out_channels, channels), eps=None, bias=True
        )
        return self._op(
            "Gemm", [x, *self._constants(f"{name}.classifier", weight, bias)], transB=1
        )

    def _pool(self, layer: Layer, x: str) -> str:
        kind = "MaxPool" if layer.kind == "max_pool" else "AveragePool"
        extra = {} if kind == "MaxPool" else {"count_include_pad": 0}
        return self._op(
            kind, [x], kernel_shape=[layer.kernel_size] * 2, strides=[layer.stride] * 2,
            pads=[layer.kernel_size // 2] * 4, **extra,
        )  # fmt: skip

    def _relu_first(self, name: str, layer: Layer, x: str) -> str:
        eps, cin, cout = layer.batch_norm_eps, layer.in_channels, layer.out_channels
        x = self._op("Relu", [x])
        if layer.kind == "relu_conv":
            return self._conv(f"{name}.conv", x, cin, cout, layer.kernel_size, eps=eps)
        if layer.kind == "factorised_reduce":
            first, second = halves(cout)
            a = self._conv(f"{name}.first.conv", x, cin, first, stride=2, eps=eps)
            # from one pixel further down and right; what lies past an odd side is zero
            ints = [np.array(v, np.int64) for v in ([1, 1], [INT64_MAX] * 2, [2, 3])]
            names = [f"{name}.shift.{what}" for what in ("starts", "ends", "axes")]
            for initializer, values in zip(names, ints, strict=True):
                self.initializers.append(numpy_helper.from_array(values, initializer))
            shifted = self._op("Slice", [x, *names])
            ends = (layer.height % 2, layer.width % 2)
            b = self._conv(
                f"{name}.second.conv", shifted, cin, second, stride=2, eps=eps, ends=ends
            )
            return self._op("Concat", [a, b], axis=1)
        turns = [("", layer.stride, cout)]
        if layer.kind == "sep_conv":
            turns = [("first.", layer.stride, cin), ("second.", 1, cout)]
        for number, (turn, stride, channels) in enumerate(turns):
            x = self._op("Relu", [x]) if number else x
            x = self._conv(
                f"{name}.{turn}depthwise.conv", x, cin, cin, layer.kernel_size, stride,
                groups=cin, dilation=layer.dilation,
            )  # fmt: skip
            x = self._conv(f"{name}.{turn}pointwise.conv", x, cin, channels, eps=eps)
        return x

    def _mbconv(self, name: str, layer: Layer, source: str) -> str:
        eps, mid, x = layer.batch_norm_eps, layer.mid_channels, source
        if layer.expand:
            x = self._conv(f"{name}.expand.conv", x, layer.in_channels, mid, eps=eps)
            x = self._activation(x, layer.activation)
        x = self._conv(
            f"{name}.depthwise.conv", x, mid, mid, layer.kernel_size, layer.stride,
            groups=mid, eps=eps,
        )  # fmt: skip
        x = self._activation(x, layer.activation)
        if layer.se_channels:
            squeezed = self._op("GlobalAveragePool", [x])
            squeezed = self._conv(f"{name}.se.reduce", squeezed, mid, layer.se_channels, bias=True)
            squeezed = self._op("Relu", [squeezed])
            squeezed = self._conv(f"{name}.se.expand", squeezed, layer.se_channels, mid, bias=True)
            gate = self._op("HardSigmoid", [squeezed], alpha=1 / 6, beta=0.5)
            x = self._op("Mul", [x, gate])
        x = self._conv(f"{name}.project.conv", x, mid, layer.out_channels, eps=eps)
        return self._op("Add", [x, source]) if layer.residual else x

    def _conv(
        self, name: str, x: str, in_channels: int, out_channels: int, kernel_size: int = 1,
        stride: int = 1, groups: int = 1, *, eps: float | None = None, bias: bool = False,
        dilation: int = 1, ends: tuple[int, int] | None = None,
    ) -> str:  # fmt: skip
        """A convolution padded to keep the side, or at its ends alone by ``ends``."""
        border = [dilation * (kernel_size // 2)] * 2
        dilated = {"dilations": [dilation] * 2} if dilation != 1 else {}
        shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        weight, offset = self._weights.conv(name, shape, eps=eps, bias=bias)
        return self._op(
            "Conv", [x, *self._constants(name, weight, offset)],
            kernel_shape=[kernel_size] * 2, strides=[stride] * 2,
            pads=[*border, *border] if ends is None else [0, 0, *ends], group=groups, **dilated,
        )  # fmt: skip

    def _activation(self, x: str, activation: Activation) -> str:
        if activation == "relu":
            return self._op("Relu", [x])
        if activation == "relu6":
            low, high = np.float32(0), np.float32(6)
            return self._op(
                "Clip", [x, *self._constants(f"{x}.clip", np.array(low), np.array(high))]
            )
        return self._op("HardSwish", [x]) if activation == "h_swish" else x

    def _constants(self, name: str, weight: Float, bias: Float | None) -> list[str]:
        arrays = {"weight": weight} | ({} if bias is None else {"bias": bias})
        for suffix, array in arrays.items():
            self.initializers.append(numpy_helper.from_array(array, f"{name}.{suffix}"))
        return [f"{name}.{suffix}" for suffix in arrays]

    def _op(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{self._layer}.{kind}_{len(self.nodes) - self._first}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output


def _f32(array: npt.NDArray[np.float64]) -> Float:
    return np.ascontiguousarray(array, np.float32)
