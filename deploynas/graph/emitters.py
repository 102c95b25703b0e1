"""The operators of each kind of layer.

One function a kind, named in :data:`EMITTERS`, writes a layer's operators into a graph; the names
under which it asks for weights are those of the torch modules in :mod:`deploynas.nn.static`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from deploynas.errors import InvalidInputError
from deploynas.spaces.layers import Activation, Layer, halves

INT64_MAX = 2**63 - 1
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

    def norm(self, name: str, channels: int, *, eps: float) -> tuple[Float, Float]:
        """Scale and shift of batch norm ``name``, each ``(channels, 1, 1)``."""
        ...


@dataclass(frozen=True, slots=True)
class Window:
    """Shape of a convolution."""

    in_channels: int
    out_channels: int
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1
    dilation: int = 1


class GraphBuilder:
    """Operators and initializers under construction; most methods return their output's name."""

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
        """Write a layer that reads ``sources``."""
        if layer.kind not in EMITTERS:
            raise InvalidInputError(f"unknown layer kind {layer.kind!r}")
        self._layer, self._first = name, len(self.nodes)
        return EMITTERS[layer.kind](self, layer, name, sources)

    def conv(
        self, name: str, x: str, window: Window, *, eps: float | None = None, bias: bool = False,
        ends: tuple[int, int] | None = None,
    ) -> str:  # fmt: skip
        """A convolution padded to keep the side, or at its ends alone by ``ends``."""
        w = window
        border = [w.dilation * (w.kernel_size // 2)] * 2
        dilated = {"dilations": [w.dilation] * 2} if w.dilation != 1 else {}
        shape = (w.out_channels, w.in_channels // w.groups, w.kernel_size, w.kernel_size)
        weight, offset = self._weights.conv(name, shape, eps=eps, bias=bias)
        return self.op(
            "Conv", [x, *self._constants(name, weight, offset)],
            kernel_shape=[w.kernel_size] * 2, strides=[w.stride] * 2,
            pads=[*border, *border] if ends is None else [0, 0, *ends], group=w.groups, **dilated,
        )  # fmt: skip

    def linear(self, name: str, x: str, in_features: int, out_features: int) -> str:
        """A linear map with bias."""
        shape = (out_features, in_features)
        weight, bias = self._weights.conv(name, shape, eps=None, bias=True)
        return self.op("Gemm", [x, *self._constants(name, weight, bias)], transB=1)

    def norm(self, name: str, x: str, channels: int, *, eps: float) -> str:
        """A batch norm that stands alone."""
        scale, shift = self._weights.norm(name, channels, eps=eps)
        x = self.op("Mul", [x, self.constant(f"{name}.scale", scale)])
        return self.op("Add", [x, self.constant(f"{name}.shift", shift)])

    def activation(self, x: str, activation: Activation) -> str:
        """An activation by name; ``x`` itself for none."""
        if activation == "relu":
            return self.op("Relu", [x])
        if activation == "relu6":
            low, high = np.float32(0), np.float32(6)
            return self.op(
                "Clip", [x, *self._constants(f"{x}.clip", np.array(low), np.array(high))]
            )
        return self.op("HardSwish", [x]) if activation == "h_swish" else x

    def _constants(self, name: str, weight: Float, bias: Float | None) -> list[str]:
        arrays = {"weight": weight} | ({} if bias is None else {"bias": bias})
        return [self.constant(f"{name}.{suffix}", array) for suffix, array in arrays.items()]

    def constant(self, name: str, array: npt.NDArray[np.generic]) -> str:
        """A tensor that the file holds."""
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """An operator of one output."""
        output = f"{self._layer}.{kind}_{len(self.nodes) - self._first}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output


Emitter = Callable[[GraphBuilder, Layer, str, list[str]], str]


def _conv(graph: GraphBuilder, layer: Layer, name: str, sources: list[str]) -> str:
    # A lone convolution and its batch norm are siblings: layers.0.conv, layers.0.bn
    x = graph.conv(
        f"{name}.conv",
        sources[0],
        Window(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride),
        eps=layer.batch_norm_eps if layer.batch_norm else None,
        bias=layer.bias,
    )
    return graph.activation(x, layer.activation)


def _mbconv(graph: GraphBuilder, layer: Layer, name: str, sources: list[str]) -> str:
    eps, mid, x = layer.batch_norm_eps, layer.mid_channels, sources[0]
    if layer.expand:
        x = graph.conv(f"{name}.expand.conv", x, Window(layer.in_channels, mid), eps=eps)
        x = graph.activation(x, layer.activation)
    x = graph.conv(
        f"{name}.depthwise.conv",
        x,
        Window(mid, mid, layer.kernel_size, layer.stride, groups=mid),
        eps=eps,
    )
    x = graph.activation(x, layer.activation)
    if layer.se_channels:
        squeezed = graph.op("GlobalAveragePool", [x])
        squeezed = graph.conv(
            f"{name}.se.reduce", squeezed, Window(mid, layer.se_channels), bias=True
        )
        squeezed = graph.op("Relu", [squeezed])
        squeezed = graph.conv(
            f"{name}.se.expand", squeezed, Window(layer.se_channels, mid), bias=True
        )
        gate = graph.op("HardSigmoid", [squeezed], alpha=1 / 6, beta=0.5)
        x = graph.op("Mul", [x, gate])
    x = graph.conv(f"{name}.project.conv", x, Window(mid, layer.out_channels), eps=eps)
    return graph.op("Add", [x, sources[0]]) if layer.residual else x


def _uib(graph: GraphBuilder, layer: Layer, name: str, sources: list[str]) -> str:
    eps, cin, mid, x = layer.batch_norm_eps, layer.in_channels, layer.mid_channels, sources[0]
    if layer.start_kernel_size:
        stride = 1 if layer.kernel_size else layer.stride
        x = graph.conv(
            f"{name}.start.conv",
            x,
            Window(cin, cin, layer.start_kernel_size, stride, groups=cin),
            eps=eps,
        )
    x = graph.activation(
        graph.conv(f"{name}.expand.conv", x, Window(cin, mid), eps=eps), layer.activation
    )
    if layer.kernel_size:
        x = graph.conv(
            f"{name}.depthwise.conv",
            x,
            Window(mid, mid, layer.kernel_size, layer.stride, groups=mid),
            eps=eps,
        )
        x = graph.activation(x, layer.activation)
    x = graph.conv(f"{name}.project.conv", x, Window(mid, layer.out_channels), eps=eps)
    return graph.op("Add", [x, sources[0]]) if layer.residual else x


def _head(graph: GraphBuilder, layer: Layer, name: str, sources: list[str]) -> str:
    (x,), channels = sources, layer.mid_channels or layer.in_channels
    if layer.mid_channels:
        x = graph.conv(
            f"{name}.expand.conv", x, Window(layer.in_channels, channels), eps=layer.batch_norm_eps
        )
        x = graph.activation(x, layer.activation)
    x = graph.op("GlobalAveragePool", [x])
    if layer.feature_channels:
        x = graph.conv(f"{name}.features", x, Window(channels, layer.feature_channels))
        x = graph.activation(x, layer.activation)
        channels = layer.feature_channels
    x = graph.op("Flatten", [x])
    return graph.linear(f"{name}.classifier", x, channels, layer.out_channels)


def _relu_conv(graph: GraphBuilder, layer: Layer, name: str, sources: list[str]) -> str:
    x = graph.op("Relu", [sources[0]])
    return graph.conv(
        f"{name}.conv",
        x,
        Window(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride),
        eps=layer.batch_norm_eps,
    )


def _factorised_reduce(graph: GraphBuilder, layer: Layer, name: str, sources: list[str]) -> str:
    eps, cin = layer.batch_norm_eps, layer.in_channels
    first, second = halves(layer.out_channels)
    x = graph.op("Relu", [sources[0]])
    a = graph.conv(f"{name}.first.conv", x, Window(cin, first, stride=2), eps=eps)
    # from one pixel further down and right; what lies past an odd side is zero
    slices = {"starts": [1, 1], "ends": [INT64_MAX] * 2, "axes": [2, 3]}
    constants = [
        graph.constant(f"{name}.shift.{what}", np.array(values, np.int64))
        for what, values in slices.items()
    ]
    shifted = graph.op("Slice", [x, *constants])
    ends = (layer.height % 2, layer.width % 2)
    b = graph.conv(
        f"{name}.second.conv", shifted, Window(cin, second, stride=2), eps=eps, ends=ends
    )
    return graph.op("Concat", [a, b], axis=1)


def _relu_separable(
    graph: GraphBuilder, layer: Layer, name: str, x: str, stride: int, out_channels: int
) -> str:
    cin = layer.in_channels
    x = graph.op("Relu", [x])
    x = graph.conv(
        f"{name}.depthwise.conv",
        x,
        Window(cin, cin, layer.kernel_size, stride, groups=cin, dilation=layer.dilation),
    )
    return graph.conv(
        f"{name}.pointwise.conv", x, Window(cin, out_channels), eps=layer.batch_norm_eps
    )


def _sep_conv(graph: GraphBuilder, layer: Layer, name: str, sources: list[str]) -> str:
    x = _relu_separable(graph, layer, f"{name}.first", sources[0], layer.stride, layer.in_channels)
    return _relu_separable(graph, layer, f"{name}.second", x, 1, layer.out_channels)


def _dil_conv(graph: GraphBuilder, layer: Layer, name: str, sources: list[str]) -> str:
    return _relu_separable(graph, layer, name, sources[0], layer.stride, layer.out_channels)


def _pool(kind: str, **extra: int) -> Emitter:
    def emit(graph: GraphBuilder, layer: Layer, name: str, sources: list[str]) -> str:
        pads = [(layer.kernel_size - 1) // 2] * 4
        if layer.kernel_size % 2 == 0:  # an odd side's last pixels are met alone
            pads[2:] = [layer.height % layer.stride, layer.width % layer.stride]
        return graph.op(
            kind, sources, kernel_shape=[layer.kernel_size] * 2, strides=[layer.stride] * 2,
            pads=pads, **extra,
        )  # fmt: skip

    return emit


def _add(graph: GraphBuilder, layer: Layer, name: str, sources: list[str]) -> str:
    return functools.reduce(lambda a, b: graph.op("Add", [a, b]), sources)


def _concat(graph: GraphBuilder, layer: Layer, name: str, sources: list[str]) -> str:
    return graph.op("Concat", sources, axis=1)


def _bn_relu(graph: GraphBuilder, layer: Layer, name: str, sources: list[str]) -> str:
    x = graph.norm(f"{name}.bn", sources[0], layer.out_channels, eps=layer.batch_norm_eps)
    return graph.op("Relu", [x])


def _zeros(graph: GraphBuilder, layer: Layer, name: str, sources: list[str]) -> str:
    return graph.op("Sub", sources * 2)


EMITTERS: dict[str, Emitter] = {
    "conv": _conv,
    "mbconv": _mbconv,
    "uib": _uib,
    "head": _head,
    "relu_conv": _relu_conv,
    "factorised_reduce": _factorised_reduce,
    "sep_conv": _sep_conv,
    "dil_conv": _dil_conv,
    "avg_pool": _pool("AveragePool", count_include_pad=0),
    "max_pool": _pool("MaxPool"),
    "add": _add,
    "concat": _concat,
    "bn_relu": _bn_relu,
    "zeros": _zeros,
}
