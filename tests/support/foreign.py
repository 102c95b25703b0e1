"""Small networks as somebody else would write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EXAMPLE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def conv(inputs, outputs, side=1, **how):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False, **how),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Residual(nn.Module):
    """A stem whose channels a block adds to, and a block that can be left out."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8, 3)
        self.block = Block(8, 12)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width, middle):
        super().__init__()
        self.expand = conv(width, middle)
        self.spatial = conv(middle, middle, 5, groups=middle)
        self.squeeze = nn.Conv2d(middle, 4, 1)
        self.excite = nn.Conv2d(4, middle, 1)
        self.project = nn.Sequential(nn.Conv2d(middle, width, 1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.spatial(self.expand(x))
        gate = self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        return x + self.project(y * gate)


class Concatenated(nn.Module):
    """Two branches behind each other, flattened into a linear layer."""

    def __init__(self):
        super().__init__()
        self.left, self.right = conv(3, 4), conv(3, 6)
        self.both = conv(10, 5)
        self.head = nn.Linear(5 * 4 * 4, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.both(torch.cat([self.left(x), self.right(x)], 1))
        return self.head(F.adaptive_avg_pool2d(x, 4).flatten(1))


class Shuffled(nn.Module):
    """Halves, one of which is worked on, and a shuffle of channels (ShuffleNetV2)."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 16)
        self.inner, self.outer = conv(8, 12), conv(12, 8)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat([left, self.outer(self.inner(right))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x.mean((2, 3)))
