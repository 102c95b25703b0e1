"""Which channels of a group matter: the order in which narrower networks lose them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from deploynas.nn.adapt.answers import first_output
from deploynas.nn.adapt.cutting import Group
from deploynas.nn.adapt.reading import Reading

TINY = 1e-12


def by_magnitude(reading: Reading) -> list[list[int]]:
    """Group -> its channels, the largest weights first.

    A channel's size is the sum over the tensors that it has a place in of the squares of its
    weights there, each tensor's over its own mean (group norms as in Fang et al. 2023, "DepGraph",
    section 3.3).
    """
    tensors = dict(reading.module.named_parameters())
    return _orders(reading, {name: tensor.detach().square() for name, tensor in tensors.items()})


def by_taylor(
    reading: Reading, batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> list[list[int]]:  # fmt: skip
    """Group -> its channels, those first whose loss would be missed most.

    What the loss changes by without a channel, to first order: the square of the sum of weights
    times gradients over what makes it, a mean over batches (Molchanov et al. 2019, "Importance
    estimation for neural network pruning", section 3.1).

    Args:
        reading: Of the network, whose batch norms stay as they are.
        batches: Images and what is wanted for them.
        loss: Of the network's outputs and what is wanted.
    """
    module = reading.module.eval()
    named = dict(module.named_parameters())
    asked = {name: one.requires_grad for name, one in named.items()}
    for one in named.values():
        one.requires_grad_(True)
    totals: dict[str, Tensor] = {}
    try:
        for images, wanted in batches:
            module.zero_grad(set_to_none=True)
            loss(first_output(module(images)), wanted).backward()
            for name, one in named.items():
                if one.grad is not None:
                    found = (one.detach() * one.grad).square()
                    totals[name] = totals[name] + found if name in totals else found
    finally:
        module.zero_grad(set_to_none=True)
        for name, one in named.items():
            one.requires_grad_(asked[name])
    return _orders(reading, totals)


def _orders(reading: Reading, values: Mapping[str, Tensor]) -> list[list[int]]:
    return [_order(group, values) for group in reading.groups]


def _order(group: Group, values: Mapping[str, Tensor]) -> list[int]:
    total = torch.zeros(group.size, dtype=torch.float64)
    for slot in group.slots:
        if slot.tensor not in values:
            continue
        moved = values[slot.tensor].double().movedim(slot.dim, 0)
        each = moved.reshape(len(moved), -1).sum(1)
        own = torch.stack([each[list(places)].sum() for places in slot.places])
        total += own / (own.mean() + TINY)
    return [int(i) for i in torch.argsort(total, descending=True, stable=True)]
