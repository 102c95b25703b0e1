"""Block lists of published once-for-all and ProxylessNAS networks -> layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from deploynas.errors import InvalidInputError
from deploynas.spaces.layers import Activation, Layer, Node, chain, params
from deploynas.spaces.resolution import MIN_SIDE, Resolution, ResolutionLike
from deploynas.spaces.staged import inverted_residual

MOST = 1 << 16  # of whatever is counted
MOST_PARAMS = 1_000_000_000
_ACTIVATIONS: Mapping[str, Activation] = {
    "relu": "relu", "relu6": "relu6", "h_swish": "h_swish",
}  # fmt: skip


def parse_net(document: object, resolution: ResolutionLike | None = None) -> list[Node]:
    """Nodes of a published network.

    Args:
        document: A ``net.config`` as published (``name``, ``first_conv``, ``blocks``, ...), or
            that under ``net`` beside a ``resolution``.
        resolution: Of the input; where the document has none, 224 px by default.

    Raises:
        InvalidInputError: Not such a block list, or one with an unknown part (which is named).
    """
    if not isinstance(document, dict):
        raise InvalidInputError("a published block list is a JSON object")
    net = document.get("net", document)
    size = Resolution.of(document.get("resolution", 224) if resolution is None else resolution)
    if min(size.size) < MIN_SIDE:
        raise InvalidInputError(f"a block list's resolution is {MIN_SIDE} px or more, got {size}")
    try:
        layers = _layers(net, size)
        _require_fit(layers)
        return chain(layers)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(
            f"not a once-for-all or ProxylessNAS block list: {type(error).__name__} {error}"
        ) from None


def _layers(net: Mapping[str, Any], size: Resolution) -> list[Layer]:
    eps = float(net["bn"]["eps"])
    if not 0 <= eps < 1:
        raise InvalidInputError(f"the block list's eps is {eps}")
    stem = net["first_conv"]
    layers = [
        Layer(
            "conv", _count(stem, "in_channels"), _count(stem, "out_channels"), *size.size,
            kernel_size=_count(stem, "kernel_size"), stride=_count(stem, "stride"),
            activation=_activation(stem["act_func"]), batch_norm_eps=eps,
        )
    ]  # fmt: skip
    for block in net["blocks"]:
        conv = block["mobile_inverted_conv"]
        if conv is None or conv["name"] == "ZeroLayer":
            continue  # the identity: no node
        if conv["name"] != "MBInvertedConvLayer":
            raise InvalidInputError(f"unknown block {conv['name']!r} in the block list")
        before = layers[-1]
        own = Layer(
            "mbconv", _count(conv, "in_channels"), _count(conv, "out_channels"),
            before.out_height, before.out_width,
            kernel_size=_count(conv, "kernel_size"), stride=_count(conv, "stride"),
            activation=_activation(conv.get("act_func", "relu6")), batch_norm_eps=eps,
        )  # fmt: skip
        wide = conv.get("mid_channels") or round(
            _count(conv, "in_channels") * conv["expand_ratio"]
        )
        layer = inverted_residual(
            own, wide, expand=conv["expand_ratio"] != 1, se=conv.get("use_se", False)
        )
        if layer.residual != (block["shortcut"] is not None):
            raise InvalidInputError("a block's shortcut does not fit its shape")
        layers.append(layer)
    expand = net.get("final_expand_layer")
    mix, classifier = net["feature_mix_layer"], net["classifier"]
    wide = expand or mix  # ProxylessNAS has the one layer before the pooling only
    layers.append(
        Layer(
            "head", _count(wide, "in_channels"), _count(classifier, "out_features"),
            layers[-1].out_height, layers[-1].out_width, mid_channels=_count(wide, "out_channels"),
            feature_channels=_count(mix, "out_channels") if expand else 0,
            activation=_activation(wide["act_func"]), batch_norm_eps=eps,
        )
    )  # fmt: skip
    return layers


def _count(part: Mapping[str, Any], key: str) -> int:
    value = part[key]
    if type(value) is not int or not 0 < value <= MOST:
        raise InvalidInputError(f"{key} of the block list is {value!r:.40}, not 1 to {MOST:,}")
    return value


def _require_fit(layers: Sequence[Layer]) -> None:
    """Channels are those of the layer before, and it is a network that somebody trained."""
    for before, layer in pairwise(layers):
        if layer.in_channels != before.out_channels:
            raise InvalidInputError(
                f"a {layer.kind} of the block list takes {layer.in_channels} channels, the layer "
                f"before it gives {before.out_channels}"
            )
    if not all(layer.mid_channels > 0 for layer in layers if layer.kind == "mbconv"):
        raise InvalidInputError("a block of the block list has no channels")
    if (found := sum(map(params, layers))) > MOST_PARAMS:
        raise InvalidInputError(f"the block list has {found:,} params, more than {MOST_PARAMS:,}")


def _activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise InvalidInputError(f"unknown activation {name!r} in the block list")
    return _ACTIVATIONS[name]
