"""What every network of shared weights offers, whatever the family of its space."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from deploynas.nn.lending import Lender, Loan
from deploynas.nn.static import StaticNetwork
from deploynas.spaces.base import Archs, SearchSpace


class WeightSharing(nn.Module):
    """One set of weights for every architecture of a space; one architecture runs at a time.

    Attributes:
        space: As given.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space

    def forward(self, x: Tensor, arch: Archs) -> Tensor:
        """Logits ``(n, num_classes)`` of images ``(n, c, r, r)`` under one architecture."""
        raise NotImplementedError

    def lend(self, arch: Archs, lender: Lender) -> Loan:
        """The network of ``arch`` on these weights, in training mode; trains as ``forward``."""
        return Loan(partial(self, arch=arch))

    def extract(self, arch: Archs) -> StaticNetwork:
        """The static network of ``arch``, with copies of its weights, in eval mode.

        Batch norms hold statistics of no one architecture: :func:`deploynas.nn.recalibrate` them.
        """
        raise NotImplementedError

    def sort_channels(self) -> None:
        """Bring important channels to where narrow architectures find them; here nothing to do."""
