"""Pillow's antialiased bilinear filter on whole batches, on any device, to the same bytes.

What :func:`deploynas.data.resize` does to a square, image by image. Both passes, columns first,
are products with integer weights and a rounding, as in Pillow's ``Resample.c``; float64 holds
them exactly.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_BITS = 22  # of Pillow's fixed point


def resized(pixels_nhwc: Tensor, side: int) -> Tensor:
    """Images at ``side`` px, uint8 as they come."""
    height, width = pixels_nhwc.shape[1:3]
    if height == width == side:
        return pixels_nhwc
    x = pixels_nhwc.permute(0, 3, 1, 2).double()
    across, down = (
        torch.from_numpy(_weights(n, side)).to(pixels_nhwc.device) for n in (width, height)
    )
    x = _rounded(down @ _rounded(x @ across.T))
    return x.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _rounded(sums: Tensor) -> Tensor:
    levels: Tensor = (sums + 2 ** (_BITS - 1)) / 2**_BITS
    return levels.floor_().clamp_(0, 255)


@lru_cache
def _weights(source: int, target: int) -> np.ndarray:
    """``(target, source)`` integers, as float64."""
    scale = source / target
    reach = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    first = np.maximum(0, (centres - reach + 0.5).astype(int))
    last = np.minimum(source, (centres + reach + 0.5).astype(int))
    places = np.arange(source)
    distance = np.abs(places[None] - centres[:, None] + 0.5) * (1 / reach)
    weights = np.maximum(0.0, 1 - distance)
    weights[(places[None] < first[:, None]) | (places[None] >= last[:, None])] = 0
    weights /= weights.sum(1, keepdims=True)
    fixed: np.ndarray = np.floor(weights * 2**_BITS + 0.5)
    return fixed
