"""Static networks: plain torch modules built from layers.

Module names are the names under which :mod:`deploynas.graph.emit` looks for weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from deploynas.artifacts import read_json
from deploynas.errors import InvalidInputError
from deploynas.nn.norm import BatchNorm2d
from deploynas.nn.published import load_published
from deploynas.spaces.base import Archs, SearchSpace
from deploynas.spaces.layers import Activation, Layer, Node
from deploynas.spaces.published import parse_net


def activation(name: Activation) -> nn.Module:
    """The module of an activation name."""
    if name == "h_swish":
        return nn.Hardswish(inplace=True)
    if name == "relu6":
        return nn.ReLU6(inplace=True)
    return nn.ReLU(inplace=True) if name == "relu" else nn.Identity()


class ConvBnAct(nn.Module):
    """Convolution, batch norm, activation: ``(n, c, h, w)`` -> ``(n, out, h', w')``."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, act: Activation,
        *, groups: int = 1, eps: float = 1e-5, bias: bool = False, batch_norm: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups,
            bias=bias,
        )  # fmt: skip
        self.bn = BatchNorm2d(out_channels, eps=eps) if batch_norm else nn.Identity()
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
            ConvBnAct(layer.in_channels, mid, 1, 1, act, eps=eps)
            if layer.expand
            else nn.Identity()
        )
        self.depthwise = ConvBnAct(
            mid, mid, layer.kernel_size, layer.stride, act, groups=mid, eps=eps
        )
        self.se = SqueezeExcite(mid, layer.se_channels) if layer.se_channels else nn.Identity()
        self.project = ConvBnAct(mid, layer.out_channels, 1, 1, "none", eps=eps)
        self.residual = layer.residual

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.se(self.depthwise(self.expand(x))))
        return x + out if self.residual else out


class Head(nn.Module):
    """Last convolution, pooling, feature layer, classifier: -> ``(n, num_classes)``."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.expand = ConvBnAct(
            layer.in_channels, layer.mid_channels, 1, 1, layer.activation, eps=layer.batch_norm_eps
        )
        features = layer.feature_channels
        self.features = (
            nn.Conv2d(layer.mid_channels, features, 1, bias=False) if features else nn.Identity()
        )
        self.act = activation(layer.activation) if features else nn.Identity()
        self.classifier = nn.Linear(features or layer.mid_channels, layer.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.expand(x).mean((2, 3), keepdim=True)
        logits: Tensor = self.classifier(self.act(self.features(pooled)).flatten(1))
        return logits


def build_layer(layer: Layer) -> nn.Module:
    """The torch module of a layer."""
    if layer.kind == "conv":
        return ConvBnAct(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride,
            layer.activation, eps=layer.batch_norm_eps, bias=layer.bias,
            batch_norm=layer.batch_norm,
        )  # fmt: skip
    if layer.kind == "mbconv":
        return MBConv(layer)
    if layer.kind == "head":
        return Head(layer)
    raise InvalidInputError(f"unknown layer kind {layer.kind!r}")


class StaticNetwork(nn.Module):
    """A chain of layers: images ``(n, c, h, w)`` -> logits ``(n, num_classes)``."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(build_layer(node.layer) for node in nodes))
        self.nodes = list(nodes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits

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
        elif isinstance(part, MBConv) and part.residual:
            norm = part.project.bn
            assert isinstance(norm, nn.BatchNorm2d)
            nn.init.zeros_(norm.weight)
