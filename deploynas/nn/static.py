"""Static networks: plain torch modules built from layers.

Module names are the names under which :mod:`deploynas.graph.emit` looks for weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploynas.artifacts import read_json
from deploynas.errors import InvalidInputError
from deploynas.nn.norm import BatchNorm2d
from deploynas.nn.ofa_weights import load_published
from deploynas.spaces.base import Archs, SearchSpace
from deploynas.spaces.block_lists import parse_net
from deploynas.spaces.layers import Activation, Layer, Node, halves
from deploynas.spaces.resolution import Resolution


def activation(name: Activation) -> nn.Module:
    """The module of an activation name."""
    if name == "h_swish":
        return nn.Hardswish(inplace=True)
    if name == "relu6":
        return nn.ReLU6(inplace=True)
    return nn.ReLU(inplace=True) if name == "relu" else nn.Identity()


def convolution(
    in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, *,
    groups: int = 1, dilation: int = 1, bias: bool = False,
) -> nn.Conv2d:  # fmt: skip
    """A convolution padded to keep the side."""
    border = dilation * (kernel_size // 2)
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, border, dilation, groups, bias
    )  # fmt: skip


class ConvBnAct(nn.Module):
    """Convolution, batch norm, activation: ``(n, c, h, w)`` -> ``(n, out, h', w')``."""

    def __init__(self, conv: nn.Conv2d, act: Activation = "none", *, eps: float | None) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.Identity() if eps is None else BatchNorm2d(conv.out_channels, eps=eps)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation with a hard sigmoid (Howard et al. 2019, section 5.3)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * nn.functional.hardsigmoid(gate)


class MBConv(nn.Module):
    """Inverted-residual block (Sandler et al. 2018, figure 3)."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        mid, eps, act = layer.mid_channels, layer.batch_norm_eps, layer.activation
        self.expand = (
            ConvBnAct(convolution(layer.in_channels, mid), act, eps=eps)
            if layer.expand
            else nn.Identity()
        )
        self.depthwise = ConvBnAct(
            convolution(mid, mid, layer.kernel_size, layer.stride, groups=mid), act, eps=eps
        )
        self.se = SqueezeExcite(mid, layer.se_channels) if layer.se_channels else nn.Identity()
        self.project = ConvBnAct(convolution(mid, layer.out_channels), eps=eps)
        self.residual = layer.residual

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.se(self.depthwise(self.expand(x))))
        return x + out if self.residual else out

    def sort_channels(self) -> None:
        """Sort the middle channels by the L1 norm of the weights that read them."""
        if isinstance(self.expand, nn.Identity):
            return
        importance = self.project.conv.weight.abs().sum((0, 2, 3))
        order = importance.argsort(descending=True, stable=True)
        by_output = [self.expand.conv.weight, self.depthwise.conv.weight]
        for norm in (self.expand.bn, self.depthwise.bn):
            assert isinstance(norm, nn.BatchNorm2d)
            by_output += [norm.weight, norm.bias]
            assert norm.running_mean is not None
            assert norm.running_var is not None
            by_output += [norm.running_mean, norm.running_var]
        by_input = [self.project.conv.weight]
        if isinstance(self.se, SqueezeExcite):
            assert self.se.expand.bias is not None
            by_output += [self.se.expand.weight, self.se.expand.bias]
            by_input.append(self.se.reduce.weight)
        for tensor in by_output:  # in place: others may hold slices of it
            tensor.data.copy_(tensor.data[order])
        for tensor in by_input:
            tensor.data.copy_(tensor.data[:, order])


class Universal(nn.Module):
    """Universal inverted bottleneck (Qin et al. 2024, figure 4)."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        cin, mid, eps, act = (
            layer.in_channels, layer.mid_channels, layer.batch_norm_eps, layer.activation
        )  # fmt: skip
        start, kernel_size = layer.start_kernel_size, layer.kernel_size
        first_stride = 1 if kernel_size else layer.stride
        self.start = (
            ConvBnAct(convolution(cin, cin, start, first_stride, groups=cin), eps=eps)
            if start
            else nn.Identity()
        )
        self.expand = ConvBnAct(convolution(cin, mid), act, eps=eps)
        self.depthwise = (
            ConvBnAct(convolution(mid, mid, kernel_size, layer.stride, groups=mid), act, eps=eps)
            if kernel_size
            else nn.Identity()
        )
        self.project = ConvBnAct(convolution(mid, layer.out_channels), eps=eps)
        self.residual = layer.residual

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.depthwise(self.expand(self.start(x))))
        return x + out if self.residual else out


class Head(nn.Module):
    """Last convolution, pooling, feature layer, classifier: -> ``(n, num_classes)``."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        cin, mid, act = layer.in_channels, layer.mid_channels, layer.activation
        self.expand = (
            ConvBnAct(convolution(cin, mid), act, eps=layer.batch_norm_eps)
            if mid
            else nn.Identity()
        )
        features, mid = layer.feature_channels, mid or cin
        self.features = nn.Conv2d(mid, features, 1, bias=False) if features else nn.Identity()
        self.act = activation(act) if features else nn.Identity()
        self.classifier = nn.Linear(features or mid, layer.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.expand(x).mean((2, 3), keepdim=True)
        logits: Tensor = self.classifier(self.act(self.features(pooled)).flatten(1))
        return logits


class ReluConv(nn.Module):
    """ReLU, convolution, batch norm; the convolution's input stays as it was."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        own = convolution(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride
        )  # fmt: skip
        conv = ConvBnAct(own, eps=layer.batch_norm_eps)
        self.conv, self.bn = conv.conv, conv.bn

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(torch.relu(x)))
        return out


class FactorisedReduce(nn.Module):
    """ReLU, two 1x1 convolutions of stride 2, one pixel apart, side by side, batch norm."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        first, second = halves(layer.out_channels)
        cin, eps = layer.in_channels, layer.batch_norm_eps
        self.first = ConvBnAct(convolution(cin, first, stride=2), eps=eps)
        self.second = ConvBnAct(convolution(cin, second, stride=2), eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        bottom, right = x.shape[2] % 2, x.shape[3] % 2
        shifted = nn.functional.pad(x, (0, right, 0, bottom))[:, :, 1:, 1:]
        return torch.cat([self.first(x), self.second(shifted)], dim=1)


class ReluSeparable(nn.Module):
    """ReLU, depthwise convolution, 1x1 convolution, batch norm."""

    def __init__(self, layer: Layer, stride: int, out_channels: int) -> None:
        super().__init__()
        cin = layer.in_channels
        own = convolution(
            cin, cin, layer.kernel_size, stride, groups=cin, dilation=layer.dilation
        )  # fmt: skip
        self.depthwise = ConvBnAct(own, eps=None)
        self.pointwise = ConvBnAct(convolution(cin, out_channels), eps=layer.batch_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pointwise(self.depthwise(torch.relu(x)))
        return out


class SepConv(nn.Module):
    """Two of :class:`ReluSeparable` in a row."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.first = ReluSeparable(layer, layer.stride, layer.in_channels)
        self.second = ReluSeparable(layer, 1, layer.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out


class Add(nn.Module):
    """The sum of its inputs."""

    def forward(self, *inputs: Tensor) -> Tensor:
        total, *rest = inputs
        for x in rest:
            total = total + x
        return total


class Concat(nn.Module):
    """Its inputs' channels side by side."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, dim=1)


class BnRelu(nn.Module):
    """Batch norm, ReLU."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.bn = BatchNorm2d(layer.out_channels, eps=layer.batch_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.relu(self.bn(x))
        return out


class Zeros(nn.Module):
    """Zeros of its input's shape."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def _pool(kind: type[nn.Module], **extra: bool) -> Callable[[Layer], nn.Module]:
    """A kernel of even size meets an odd side's last pixels alone."""
    return lambda layer: kind(
        layer.kernel_size, layer.stride, (layer.kernel_size - 1) // 2,
        ceil_mode=layer.kernel_size % 2 == 0, **extra,
    )  # fmt: skip


def _conv(layer: Layer) -> nn.Module:
    own = convolution(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, bias=layer.bias
    )  # fmt: skip
    eps = layer.batch_norm_eps if layer.batch_norm else None
    return ConvBnAct(own, layer.activation, eps=eps)


@dataclass(frozen=True)
class ModuleKind:
    """What a network of torch modules needs to know of a kind of layer.

    A smaller layer of a kind uses the first channels of a larger one's tensors, and the centre of
    its kernels.

    Attributes:
        build: The module of a layer.
        sort_channels: Sorts the middle channels of such a module by importance; None for kinds
            whose middle channels are never sliced.
    """

    build: Callable[[Layer], nn.Module]
    sort_channels: Callable[[Any], None] | None = None


MODULES: dict[str, ModuleKind] = {
    "conv": ModuleKind(_conv),
    "mbconv": ModuleKind(MBConv, MBConv.sort_channels),
    "uib": ModuleKind(Universal),
    "head": ModuleKind(Head),
    "relu_conv": ModuleKind(ReluConv),
    "factorised_reduce": ModuleKind(FactorisedReduce),
    "sep_conv": ModuleKind(SepConv),
    "dil_conv": ModuleKind(lambda layer: ReluSeparable(layer, layer.stride, layer.out_channels)),
    "avg_pool": ModuleKind(_pool(nn.AvgPool2d, count_include_pad=False)),
    "max_pool": ModuleKind(_pool(nn.MaxPool2d)),
    "add": ModuleKind(lambda layer: Add()),
    "concat": ModuleKind(lambda layer: Concat()),
    "bn_relu": ModuleKind(BnRelu),
    "zeros": ModuleKind(lambda layer: Zeros()),
}


def build_layer(layer: Layer) -> nn.Module:
    """The torch module of a layer."""
    if layer.kind not in MODULES:
        raise InvalidInputError(f"unknown layer kind {layer.kind!r}")
    return MODULES[layer.kind].build(layer)


class Graph:
    """Runs modules that feed each other, and forgets what none needs any more.

    Args:
        inputs: What feeds each module: earlier modules, -1 being the graph's own input.
    """

    def __init__(self, inputs: Sequence[Sequence[int]]) -> None:
        self._inputs = [tuple(one) for one in inputs]
        last = {source: i for i, one in enumerate(inputs) for source in one}
        self._done: list[list[int]] = [[] for _ in inputs]
        for source, i in last.items():
            self._done[i].append(source)

    def __call__(self, modules: Iterable[nn.Module], x: Tensor) -> Tensor:
        """The last module's output."""
        outputs = {-1: x}
        for i, (module, inputs) in enumerate(zip(modules, self._inputs, strict=True)):
            x = module(*(outputs[source] for source in inputs))
            for source in self._done[i]:
                del outputs[source]
            outputs[i] = x
        return x


class StaticNetwork(nn.Module):
    """A graph of layers: images ``(n, c, h, w)`` -> logits ``(n, num_classes)``."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(build_layer(node.layer) for node in nodes))
        self.nodes = list(nodes)
        self._graph = Graph([node.inputs for node in nodes])

    @property
    def resolution(self) -> Resolution:
        """Of its input."""
        return self.nodes[0].layer.size

    def forward(self, x: Tensor) -> Tensor:
        return self._graph(self.layers, x)

    def load_ofa(self, path: str | Path) -> None:
        """Take the weights of a published specialised network.

        Raises:
            MissingFileError, InvalidInputError: See :func:`load_published`.
        """
        load_published(Path(path), self, "layers.{}.", len(self.layers))


def build(space: SearchSpace, arch: Archs) -> StaticNetwork:
    """The static network of one architecture, freshly initialised."""
    network = StaticNetwork(space.layers(arch))
    initialise(network)
    return network


def load_net(path: str | Path) -> StaticNetwork:
    """The static network of a published block list (``net.config``), freshly initialised.

    Raises:
        MissingFileError: No such file.
        InvalidInputError: Not a once-for-all or ProxylessNAS block list.
    """
    network = StaticNetwork(parse_net(read_json(Path(path))))
    initialise(network)
    return network


def initialise(module: nn.Module) -> None:
    """He initialisation of convolutions (fan out), small normal for linear layers.

    A residual block's last batch norm starts at zero, so that the block starts as the identity
    (Goyal et al. 2017, section 5.1); supernets learn far faster for it.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels // part.groups
            nn.init.normal_(part.weight, 0.0, (2.0 / fan_out) ** 0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0.0, 0.01)
            nn.init.zeros_(part.bias)
        elif isinstance(part, MBConv | Universal) and part.residual:
            norm = part.project.bn
            assert isinstance(norm, nn.BatchNorm2d)
            nn.init.zeros_(norm.weight)
