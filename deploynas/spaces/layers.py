"""Layers: the units that are profiled, priced and built.

A network is a list of :class:`Node`. MACs count the multiply-adds of convolutions and linear
layers only, the number that papers call FLOPs; params count every trainable number
(convolutions, biases, batch norms' scale and shift, linear layers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

from deploynas.errors import InvalidInputError
from deploynas.spaces.resolution import Resolution

Activation = Literal["none", "relu", "relu6", "h_swish"]
FLOAT_BYTES = 4


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round channels to a multiple of ``divisor``, never losing more than 10 %.

    The rule of MobileNetV2 (Sandler et al. 2018), as every network of that family uses it.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


@dataclass(frozen=True, slots=True)
class Layer:
    """One building block with everything that fixes its shape and its cost.

    What a kind is stands in three records, one a package: its shapes and costs in :data:`KINDS`,
    its torch module in :data:`deploynas.nn.static.MODULES` and its operators in
    :data:`deploynas.graph.emitters.EMITTERS`.

    Kinds:
        ``conv``: convolution, batch norm, activation.
        ``mbconv``: inverted residual (Sandler et al. 2018; SE as in MobileNetV3, Howard et
            al. 2019): 1x1 expansion (absent where ``expand`` is false), depthwise, optional
            squeeze-and-excitation, 1x1 projection, optional identity shortcut.
        ``uib``: universal inverted bottleneck (Qin et al. 2024, "MobileNetV4", section 3): a
            depthwise of ``start_kernel_size``, 1x1 expansion, a depthwise of ``kernel_size``, 1x1
            projection, optional identity shortcut; either depthwise may be absent (0), and the
            last of them strides.
        ``head``: 1x1 convolution to ``mid_channels`` with batch norm (absent where those are 0),
            global average pooling, optional bias-free linear map to ``feature_channels`` with
            activation, classifier.

    Kinds of cells (Liu, Simonyan and Yang 2019, "DARTS", section 3.2 and the published code):
        ``relu_conv``: ReLU, convolution, batch norm.
        ``factorised_reduce``: ReLU, two 1x1 convolutions of stride 2, the second one pixel
            further down and right, side by side, batch norm.
        ``sep_conv``: twice ReLU, depthwise, 1x1, batch norm; the first depthwise has the stride.
        ``dil_conv``: ReLU, depthwise of dilation 2, 1x1, batch norm.
        ``avg_pool``, ``max_pool``: padding does not count in the average.
        ``add``, ``concat``: of ``num_inputs`` feature maps of ``in_channels`` each.
        ``bn_relu``: batch norm, ReLU.
        ``zeros``: a feature map of zeros, as large as what enters.

    Attributes:
        height, width: Input feature map in pixels.
        kernel_size: In pixels; 0 of a ``uib`` without that convolution.
        dilation: Of a depthwise convolution.
        num_inputs: Feature maps that enter.
        se_channels: Hidden channels of squeeze-and-excitation; 0 means none.
        batch_norm_eps: As trained; folded away on export.
    """

    kind: str
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel_size: int = 1
    stride: int = 1
    mid_channels: int = 0
    expand: bool = True
    se_channels: int = 0
    feature_channels: int = 0
    activation: Activation = "none"
    residual: bool = False
    bias: bool = False
    batch_norm: bool = True
    batch_norm_eps: float = 1e-5
    dilation: int = 1
    num_inputs: int = 1
    start_kernel_size: int = 0

    @property
    def size(self) -> Resolution:
        """Of the input feature map."""
        return Resolution(self.height, self.width)

    @property
    def out_height(self) -> int:
        """Rows of the output feature map (1 for a head)."""
        return 1 if kind_of(self).ends_network else -(-self.height // self.stride)

    @property
    def out_width(self) -> int:
        """Columns of the output feature map (1 for a head)."""
        return 1 if kind_of(self).ends_network else -(-self.width // self.stride)

    @property
    def key(self) -> str:
        """A stable, readable key for files; ``batch_norm_eps`` is left out: it has no cost."""
        parts = [f"{self.kind}:{self.in_channels}-{self.out_channels}@{self.height}x{self.width}"]
        if kind_of(self).has_kernel:
            parts.append(f"k{self.kernel_size}s{self.stride}")
        if self.start_kernel_size:
            parts.append(f"b{self.start_kernel_size}")
        if self.dilation != 1:
            parts.append(f"d{self.dilation}")
        if self.num_inputs != 1:
            parts.append(f"n{self.num_inputs}")
        if self.mid_channels:
            parts.append(f"m{self.mid_channels}")
        if self.se_channels:
            parts.append(f"se{self.se_channels}")
        if self.feature_channels:
            parts.append(f"f{self.feature_channels}")
        if self.activation != "none":
            parts.append(self.activation)
        flags = (("noexpand", not self.expand), ("residual", self.residual), ("bias", self.bias))
        parts += [name for name, present in flags if present]
        parts += [] if self.batch_norm else ["nobn"]
        return ",".join(parts)

    def asdict(self) -> dict[str, object]:
        """The fields that differ from their defaults, for files."""
        defaults = {f.name: f.default for f in fields(self)}
        return {k: v for k, v in asdict(self).items() if v != defaults[k]}


@dataclass(frozen=True, slots=True)
class Node:
    """A layer in a network and the earlier nodes that feed it (-1 is the network's input)."""

    layer: Layer
    inputs: tuple[int, ...]


def chain(layers: Sequence[Layer]) -> list[Node]:
    """Nodes of a network without branches between layers.

    A layer that takes several feature maps, alone, gets the same one several times.
    """
    return [Node(layer, (i - 1,) * layer.num_inputs) for i, layer in enumerate(layers)]


@dataclass(frozen=True, slots=True)
class Conv:
    """One convolution or linear map inside a layer, with its output feature map.

    Attributes:
        height, width: Of the output.
        squeeze: Whether it works on a squeezed vector, beside the layer's feature maps.
    """

    in_channels: int
    out_channels: int
    kernel_size: int
    groups: int
    height: int
    width: int
    bias: bool
    batch_norm: bool
    squeeze: bool = False

    @property
    def weights(self) -> int:
        """Numbers of its weight."""
        return self.out_channels * (self.in_channels // self.groups) * self.kernel_size**2

    @property
    def out_size(self) -> int:
        """Numbers of its output feature map."""
        return self.out_channels * self.height * self.width


def _maps_of_convs(layer: Layer) -> list[int]:
    return [c.out_size for c in convs(layer) if not c.squeeze]


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What shapes and costs need to know of a kind of layer.

    Attributes:
        convs: Its convolutions and linear maps, in order: what MACs and params add up.
        maps: Sizes of the feature maps that it makes, each of the one before it, in numbers.
        has_kernel: Whether kernel size and stride are told apart in :attr:`Layer.key`.
        ends_network: Whether its output are a network's logits, one pixel.
        norms: Channels of batch norms that stand alone, and cannot be folded into a convolution.
    """

    convs: Callable[[Layer], list[Conv]]
    maps: Callable[[Layer], list[int]] = _maps_of_convs
    has_kernel: bool = True
    ends_network: bool = False
    norms: Callable[[Layer], int] = lambda layer: 0


def kind_of(layer: Layer) -> LayerKind:
    """The record of a layer's kind.

    Raises:
        InvalidInputError: There is none.
    """
    if layer.kind not in KINDS:
        raise InvalidInputError(f"unknown layer kind {layer.kind!r}")
    return KINDS[layer.kind]


def convs(layer: Layer) -> list[Conv]:
    """Every convolution and linear map of a layer, in order."""
    return kind_of(layer).convs(layer)


def _conv(layer: Layer) -> list[Conv]:
    return [
        Conv(
            layer.in_channels, layer.out_channels, layer.kernel_size, 1, layer.out_height,
            layer.out_width, layer.bias, layer.batch_norm,
        )
    ]  # fmt: skip


def _mbconv(layer: Layer) -> list[Conv]:
    h, w, oh, ow = layer.height, layer.width, layer.out_height, layer.out_width
    mid, squeezed = layer.mid_channels, layer.se_channels
    found = [Conv(layer.in_channels, mid, 1, 1, h, w, False, True)] if layer.expand else []
    found.append(Conv(mid, mid, layer.kernel_size, mid, oh, ow, False, True))
    if squeezed:
        found.append(Conv(mid, squeezed, 1, 1, 1, 1, True, False, squeeze=True))
        found.append(Conv(squeezed, mid, 1, 1, 1, 1, True, False, squeeze=True))
    return [*found, Conv(mid, layer.out_channels, 1, 1, oh, ow, False, True)]


def _uib(layer: Layer) -> list[Conv]:
    cin, mid, oh, ow = layer.in_channels, layer.mid_channels, layer.out_height, layer.out_width
    found, (h, w) = [], (layer.height, layer.width)
    if layer.start_kernel_size:
        h, w = (h, w) if layer.kernel_size else (oh, ow)
        found.append(Conv(cin, cin, layer.start_kernel_size, cin, h, w, False, True))
    found.append(Conv(cin, mid, 1, 1, h, w, False, True))
    if layer.kernel_size:
        found.append(Conv(mid, mid, layer.kernel_size, mid, oh, ow, False, True))
    return [*found, Conv(mid, layer.out_channels, 1, 1, oh, ow, False, True)]


def _head(layer: Layer) -> list[Conv]:
    last, found = layer.in_channels, []
    if layer.mid_channels:
        found.append(Conv(last, layer.mid_channels, 1, 1, layer.height, layer.width, False, True))
        last = layer.mid_channels
    if layer.feature_channels:
        found.append(Conv(last, layer.feature_channels, 1, 1, 1, 1, False, False))
        last = layer.feature_channels
    return [*found, Conv(last, layer.out_channels, 1, 1, 1, 1, True, False)]


def _head_maps(layer: Layer) -> list[int]:
    pooled = [] if layer.mid_channels else [layer.in_channels]
    return pooled + _maps_of_convs(layer)


def _maps_after_relu(layer: Layer) -> list[int]:
    """What it begins with cannot work in place: others may read the input."""
    return [layer.in_channels * layer.height * layer.width, *_maps_of_convs(layer)]


def halves(channels: int) -> tuple[int, int]:
    """Channels of the two convolutions of a factorised reduction."""
    return channels // 2, channels - channels // 2


def _factorised_reduce(layer: Layer) -> list[Conv]:
    return [
        Conv(layer.in_channels, c, 1, 1, layer.out_height, layer.out_width, False, True)
        for c in halves(layer.out_channels)
    ]


def _factorised_reduce_maps(layer: Layer) -> list[int]:
    """Both halves, then what joins them."""
    entering = layer.in_channels * layer.height * layer.width
    return [entering, *[_out_size(layer)] * 2]


def _separable(layer: Layer, *turns: int) -> list[Conv]:
    """So many times depthwise and 1x1, to so many channels."""
    cin, oh, ow = layer.in_channels, layer.out_height, layer.out_width
    found = []
    for out_channels in turns:
        found.append(Conv(cin, cin, layer.kernel_size, cin, oh, ow, False, False))
        found.append(Conv(cin, out_channels, 1, 1, oh, ow, False, True))
    return found


def _out_size(layer: Layer) -> int:
    return layer.out_channels * layer.out_height * layer.out_width


def _without_weights(*, has_kernel: bool) -> LayerKind:
    return LayerKind(lambda layer: [], lambda layer: [_out_size(layer)], has_kernel=has_kernel)


KINDS: dict[str, LayerKind] = {
    "conv": LayerKind(_conv),
    "mbconv": LayerKind(_mbconv),
    "uib": LayerKind(_uib),
    "head": LayerKind(_head, _head_maps, has_kernel=False, ends_network=True),
    "relu_conv": LayerKind(
        lambda layer: _conv(replace(layer, bias=False, batch_norm=True)), _maps_after_relu
    ),
    "factorised_reduce": LayerKind(_factorised_reduce, _factorised_reduce_maps),
    "sep_conv": LayerKind(
        lambda layer: _separable(layer, layer.in_channels, layer.out_channels), _maps_after_relu
    ),
    "dil_conv": LayerKind(lambda layer: _separable(layer, layer.out_channels), _maps_after_relu),
    "avg_pool": _without_weights(has_kernel=True),
    "max_pool": _without_weights(has_kernel=True),
    "add": _without_weights(has_kernel=False),
    "concat": _without_weights(has_kernel=False),
    "bn_relu": replace(_without_weights(has_kernel=False), norms=lambda layer: layer.out_channels),
    "zeros": _without_weights(has_kernel=False),
}


def macs(layer: Layer) -> int:
    """Multiply-adds of the layer's convolutions and linear maps for one image."""
    return sum(c.weights * c.height * c.width for c in convs(layer))


def params(layer: Layer) -> int:
    """Trainable parameters, batch norms included."""
    own = sum(c.weights + c.out_channels * (c.bias + 2 * c.batch_norm) for c in convs(layer))
    return own + 2 * kind_of(layer).norms(layer)


def weight_bytes(layer: Layer) -> int:
    """Bytes of the deployed float32 weights: batch norms of convolutions folded into a bias."""
    own = sum(c.weights + c.out_channels * (c.bias or c.batch_norm) for c in convs(layer))
    return FLOAT_BYTES * (own + 2 * kind_of(layer).norms(layer))


def peak_activation_bytes(layer: Layer, *, keeps_input: bool = False) -> int:
    """Peak bytes of live float32 feature maps while one image passes the layer.

    Schedule assumed: convolutions run in order, each holding its input and its output;
    activations work in place, but for one that a layer begins with, whose input others may read;
    a residual layer's input lives until the addition.

    Args:
        layer: Passed.
        keeps_input: Whether a later layer reads the input too.
    """
    entering = layer.num_inputs * layer.in_channels * layer.height * layer.width
    maps = [entering, *kind_of(layer).maps(layer)]
    held = entering if layer.residual or keeps_input else 0
    steps = [
        before + after + (held if i else 0)
        for i, (before, after) in enumerate(zip(maps, maps[1:], strict=False))
    ]
    if layer.se_channels:  # the squeezed vectors are live beside the depthwise output
        steps.append(maps[-2] + layer.mid_channels + layer.se_channels + held)
    return FLOAT_BYTES * max(steps)


def peak_memory_bytes(nodes: Sequence[Node]) -> int:
    """Weight bytes of the whole network plus the peak bytes of live feature maps.

    Layers run in order; a feature map lives until the last of those that read it.
    """
    last = {source: i for i, node in enumerate(nodes) for source in node.inputs}
    sizes: dict[int, int] = {}  # of what lives
    first = nodes[0].layer
    sizes[-1] = FLOAT_BYTES * first.in_channels * first.height * first.width
    peak = 0
    for i, node in enumerate(nodes):
        layer = node.layer
        beside = sum(size for source, size in sizes.items() if source not in node.inputs)
        kept = sum(sizes[s] for s in set(node.inputs) if last[s] > i)
        own = peak_activation_bytes(layer, keeps_input=kept > 0)
        peak = max(peak, beside + own)
        sizes[i] = FLOAT_BYTES * layer.out_channels * layer.out_height * layer.out_width
        sizes = {s: size for s, size in sizes.items() if s == i or last.get(s, i) > i}
    return sum(weight_bytes(n.layer) for n in nodes) + peak
