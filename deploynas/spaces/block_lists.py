"""Block lists of published once-for-all and ProxylessNAS networks -> layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploynas.errors import InvalidInputError
from deploynas.spaces.layers import Activation, Layer, Node, chain
from deploynas.spaces.resolution import MIN_SIDE, Resolution, ResolutionLike
from deploynas.spaces.staged import inverted_residual

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
        return chain(_layers(net, size))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(
            f"not a once-for-all or ProxylessNAS block list: {type(error).__name__} {error}"
        ) from None


def _layers(net: Mapping[str, Any], size: Resolution) -> list[Layer]:
    eps = float(net["bn"]["eps"])
    stem = net["first_conv"]
    layers = [
        Layer(
            "conv", stem["in_channels"], stem["out_channels"], *size.size,
            kernel_size=stem["kernel_size"], stride=stem["stride"],
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
            "mbconv", conv["in_channels"], conv["out_channels"],
            before.out_height, before.out_width,
            kernel_size=conv["kernel_size"], stride=conv["stride"],
            activation=_activation(conv.get("act_func", "relu6")), batch_norm_eps=eps,
        )  # fmt: skip
        wide = conv.get("mid_channels") or round(conv["in_channels"] * conv["expand_ratio"])
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
            "head", wide["in_channels"], classifier["out_features"],
            layers[-1].out_height, layers[-1].out_width, mid_channels=wide["out_channels"],
            feature_channels=mix["out_channels"] if expand else 0,
            activation=_activation(wide["act_func"]), batch_norm_eps=eps,
        )
    )  # fmt: skip
    return layers


def _activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise InvalidInputError(f"unknown activation {name!r} in the block list")
    return _ACTIVATIONS[name]
