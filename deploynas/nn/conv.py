"""The convolution that all layers use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

AS_PRODUCT = True  # a GPU's convolutions of 1x1 px
WIDE_DEPTHWISE = True  # a GPU's depthwise convolutions under autocast


class Conv2d(nn.Conv2d):
    """A convolution; on a GPU one of 1x1 px is a matrix product over channels-last images.

    cuDNN plans every shape when it first sees it, which takes longer than the pass where subnets
    differ from step to step, and copies weights that are slices of larger ones. Depthwise
    convolutions stay float32 under autocast, for it compiles the narrow ones shape by shape.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and AS_PRODUCT and self._is_product:
            x_nhwc = x.permute(0, 2, 3, 1)
            out_nhwc = nn.functional.linear(x_nhwc, self.weight.flatten(1), self.bias)
            return out_nhwc.permute(0, 3, 1, 2)
        if x.is_cuda and WIDE_DEPTHWISE and self.groups > 1 and torch.is_autocast_enabled("cuda"):
            with torch.autocast("cuda", enabled=False):
                return super().forward(x.float())
        return super().forward(x)

    @property
    def _is_product(self) -> bool:
        sides = (*self.kernel_size, *self.stride, self.groups)
        return sides == (1, 1, 1, 1, 1) and self.padding == (0, 0)
