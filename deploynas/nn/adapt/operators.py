"""What the operators of an exported graph do to channels, by their names in ``torch.ops.aten``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

POINTWISE = frozenset(
    """relu relu_ relu6 relu6_ hardtanh hardtanh_ hardswish hardswish_ hardsigmoid hardsigmoid_
    silu silu_ gelu gelu_ sigmoid sigmoid_ tanh tanh_ mish mish_ leaky_relu leaky_relu_ elu elu_
    selu selu_ softplus clamp clamp_ clamp_min clamp_max abs neg exp log sqrt rsqrt square
    reciprocal erf dropout dropout_ feature_dropout alpha_dropout clone contiguous to _to_copy
    detach detach_ alias lift_fresh_copy type_as float half bfloat16 zeros_like ones_like
    _assert_tensor_metadata""".split()
)
"""One value, element by element; further arguments are no values."""

BINARY = frozenset(
    """add add_ sub sub_ mul mul_ div div_ minimum maximum pow atan2 rsub true_divide""".split()
)
"""Two values, element by element, broadcast."""

MOVING = frozenset(
    """view reshape _unsafe_view flatten unflatten permute transpose t numpy_T swapaxes movedim
    unsqueeze squeeze expand expand_as repeat flip roll cat concat stack split chunk
    split_with_sizes unbind slice select narrow index_select pixel_shuffle pixel_unshuffle
    channel_shuffle tile repeat_interleave""".split()
)
"""What places elements elsewhere and changes none."""

POOLING = frozenset(
    """max_pool2d max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d
    adaptive_max_pool2d avg_pool1d adaptive_avg_pool1d max_pool1d upsample_nearest2d
    upsample_bilinear2d upsample_bicubic2d upsample_nearest1d interpolate pad constant_pad_nd
    reflection_pad2d replication_pad2d _upsample_bilinear2d_aa lp_pool2d""".split()
)
"""What changes places, channel by channel: the second dimension."""

REDUCING = frozenset("""mean sum amax amin max min std var norm logsumexp""".split())
"""What goes over dimensions, which may not be those of channels."""


def name_of(node: fx.Node) -> str:
    """``conv2d`` of ``aten.conv2d.default``."""
    target: Any = node.target
    return str(getattr(target, "__name__", target)).split(".")[0]


def shape_of(node: Any) -> tuple[int, ...]:
    """Of what a node computes; empty of what is no single tensor."""
    value = node.meta.get("val")
    return tuple(int(side) for side in value.shape) if isinstance(value, Tensor) else ()
