"""ResNet-20 for CIFAR-10, as a network of one's own: ``benchmarks/resnet20.py:network``.

Weights come from the file that DEPLOYNAS_RESNET20 names, else they are random; ``benchmarks/gpu.py
--part resnet`` trains them.
"""

from __future__ import annotations

import os

import torch
from torch import nn


class ResNet20(nn.Module):
    """He et al. 2016, section 4.2, n = 3, shortcuts of type A."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        widths = [16] * 4 + [32] * 3 + [64] * 3
        self.blocks = nn.Sequential(
            *(BasicBlock(a, b) for a, b in zip(widths, widths[1:], strict=False))
        )
        self.classifier = nn.Linear(64, num_classes)
        for one in self.modules():
            if isinstance(one, nn.Conv2d):
                nn.init.kaiming_normal_(one.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(n, 3, 32, 32)`` -> ``(n, num_classes)``."""
        x = self.blocks(torch.relu(self.stem(x)))
        return self.classifier(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut, which pads with zeros where channels double."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        stride = 1 if before == width else 2
        self.first = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.stride, self.more = stride, width - before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(n, c, h, w)``."""
        y = self.second_norm(self.second(torch.relu(self.first_norm(self.first(x)))))
        if self.more:
            x = nn.functional.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more)
            )
        return torch.relu(x + y)


def network() -> nn.Module:
    """With its weights, where there are any."""
    module = ResNet20()
    if path := os.environ.get("DEPLOYNAS_RESNET20"):
        module.load_state_dict(torch.load(path, weights_only=True))
    return module.eval()
