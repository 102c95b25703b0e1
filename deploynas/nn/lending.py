"""Networks on somebody else's weights: what trains many subnets of one set of weights in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from deploynas.spaces.layers import Layer


@dataclass(frozen=True)
class Loan:
    """A network on somebody else's weights: training it trains those.

    Attributes:
        run: ``(n, c, h, w)`` -> the output.
        sources: The parameters that get their gradients through the :class:`Lender`; where none is
            named, autograd gives them as usual.
    """

    run: Callable[[Tensor], Tensor]
    sources: tuple[nn.Parameter, ...] = ()


class Elastic(Protocol):
    """Full weights that smaller layers use a part of."""

    def lend(self, layer: Layer, lender: Lender) -> Loan:
        """One of them, in training mode."""
        ...


class Lender:
    """Layers and gradients of subnets that train in turn, each made once.

    The gradients have fixed places, in whose slices the backward passes of a step add up. Good
    while weights change in place alone.
    """

    def __init__(self) -> None:
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._loans: dict[tuple[Elastic, Layer], Loan] = {}

    def gradient(self, parameter: nn.Parameter) -> Tensor:
        """Where a parameter's gradient is."""
        if parameter not in self._gradients:
            self._gradients[parameter] = torch.zeros_like(parameter, requires_grad=False)
        return self._gradients[parameter]

    def layer(self, elastic: Elastic, layer: Layer) -> Loan:
        """One layer."""
        if (elastic, layer) not in self._loans:
            self._loans[elastic, layer] = elastic.lend(layer, self)
        return self._loans[elastic, layer]

    def chain(self, loans: Sequence[Loan]) -> Loan:
        """One after the other."""

        def run(x: Tensor) -> Tensor:
            for loan in loans:
                x = loan.run(x)
            return x

        return Loan(run, tuple(p for loan in loans for p in loan.sources))

    def open(self, loan: Loan) -> None:
        """Before a pass: gradients of a step's first pass start at zero."""
        fresh = [p for p in loan.sources if p.grad is None]
        if fresh:
            gradients = [self.gradient(p) for p in fresh]
            torch._foreach_zero_(gradients)
            for parameter, gradient in zip(fresh, gradients, strict=True):
                parameter.grad = gradient
