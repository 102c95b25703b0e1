"""Batch norm whose statistics are those of the whole batch, also when processes share it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch import distributed as dist


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm over ``(n, c, h, w)``; in a distributed training over all processes' images.

    Every process must then run it equally often. Torch's own synchronised batch norm needs a GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not is_distributed():
            out: Tensor = super().forward(x)
            return out
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # also under autocast
        count = torch.full((1,), float(x.numel() // x.shape[1]), device=x.device).double()
        sums = torch.cat([wide.sum((0, 2, 3), dtype=torch.float64), count])
        total: Tensor = _SumOverProcesses.apply(sums)
        mean = (total[:-1] / total[-1]).to(wide.dtype)
        # deviations from the mean, for E[x^2] - E[x]^2 cancels where the mean is large
        centred = wide - mean[:, None, None]
        squares: Tensor = _SumOverProcesses.apply(centred.square().sum((0, 2, 3)))
        variance = squares / total[-1].to(wide.dtype)
        if self.running_mean is not None:
            self._track(mean.detach(), variance.detach(), float(total[-1]))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normed: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normed.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: float) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = self.momentum
        if momentum is None:  # a cumulative average
            momentum = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / max(1.0, count - 1), momentum)


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
