"""The convolution that all layers use."""

from __future__ import annotations

from torch import Tensor, nn

AS_PRODUCT = True  # a GPU's convolutions of 1x1 px


class Conv2d(nn.Conv2d):
    """A convolution; on a GPU one of 1x1 px is a matrix product over channels-last images.

    cuDNN makes a plan for every shape when it first sees it, which takes longer than the pass
    where subnets differ from step to step; and it copies weights that are slices of larger ones.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (x.is_cuda and AS_PRODUCT and self._is_product):
            return super().forward(x)
        out_nhwc = nn.functional.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return out_nhwc.permute(0, 3, 1, 2)

    @property
    def _is_product(self) -> bool:
        sides = (*self.kernel_size, *self.stride, self.groups)
        return sides == (1, 1, 1, 1, 1) and self.padding == (0, 0)
