"""Groups of channels, and how a module loses some of them: by slices of its own tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Slot:
    """Places of a parameter or buffer that go with the channels of a group.

    Attributes:
        tensor: Its name in the module.
        dim: Its dimension.
        places: One list a channel of the group: the indices that are this channel's.
        begins, reads: See :class:`~deploynas.nn.adapt.labels.Use`.
    """

    tensor: str
    dim: int
    places: tuple[tuple[int, ...], ...]
    begins: bool
    reads: bool


@dataclass(frozen=True)
class Group:
    """Channels that are kept or left out together with all that makes, scales and reads them.

    Attributes:
        name: Of the layer that makes them, the first.
        slots: Where they are.
        size: How many channels there are.
        is_normalised: Whether they are normalised with each other, so that without one the others
            change.
    """

    name: str
    slots: tuple[Slot, ...]
    size: int
    is_normalised: bool

    @property
    def layers(self) -> list[str]:
        """Names of the layers that make these channels."""
        return [slot.tensor.rpartition(".")[0] for slot in self.slots if slot.begins]


def take(module: nn.Module, chosen: Sequence[tuple[Group, Sequence[int]]]) -> None:
    """Leave the chosen channels of groups in a module, in their order, and nothing else."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    left: dict[tuple[str, int], list[int]] = {}
    ordered: dict[tuple[str, int], dict[int, int]] = {}
    for group, channels in chosen:
        for slot in group.slots:
            key = (slot.tensor, slot.dim)
            size = tensors[slot.tensor].shape[slot.dim]
            indices = left.setdefault(key, list(range(size)))
            mine = {place for places in slot.places for place in places}
            moved = ordered.setdefault(key, {})
            # a channel's places go where those of the channel before it in order were
            targets = _targets(slot, channels)
            left[key] = [i for i in indices if i not in mine or i in targets]
            moved.update(targets)
    holders = _holders(module)
    for (name, dim), indices in left.items():
        moved = ordered[(name, dim)]
        taken = torch.tensor([moved.get(i, i) for i in indices], dtype=torch.long)
        value = tensors[name].detach().index_select(dim, taken)
        tensors[name] = _replace(holders.pop(id(tensors[name])), value, holders)
    _restate(module)


def _targets(slot: Slot, channels: Sequence[int]) -> dict[int, int]:
    """Place that stays -> the place whose values it takes.

    What stays are the places of as many channels, the first ones in the order of the group; they
    take the values of ``channels``, rank by rank.
    """
    found = {}
    for channel, stays in zip(channels, sorted(channels), strict=True):
        for source, target in zip(slot.places[channel], slot.places[stays], strict=True):
            found[target] = source
    return found


def tensor_of(module: nn.Module, name: str) -> Any:
    """A parameter or buffer by its name."""
    owner, _, own = name.rpartition(".")
    return getattr(module.get_submodule(owner), own)


Holders = list[tuple[nn.Module, str]]  # modules, and what they call a tensor


def _holders(module: nn.Module) -> dict[int, Holders]:
    """Identity of a parameter or buffer -> who holds it: several where it is tied."""
    found: dict[int, Holders] = {}
    for owner in module.modules():
        for own, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                found.setdefault(id(tensor), []).append((owner, own))
    return found


def _replace(held: Holders, value: Tensor, holders: dict[int, Holders]) -> Tensor:
    """Put a tensor in the place of another, wherever that was held."""
    owner, own = held[0]
    old = owner._parameters.get(own)
    new = value if old is None else nn.Parameter(value, requires_grad=old.requires_grad)
    for owner, own in held:
        where: Any = owner._parameters if own in owner._parameters else owner._buffers
        where[own] = new
    holders[id(new)] = held
    return new


def _restate(module: nn.Module) -> None:
    """What modules say of their sizes, after their parameters."""
    for one in module.modules():
        weight: Any = one._parameters.get("weight")
        if weight is None:
            continue
        stated: dict[str, Any] = {}
        if isinstance(one, nn.modules.conv._ConvNd):
            depthwise = one.groups > 1 and one.groups == one.in_channels
            stated["out_channels"] = weight.shape[0]
            if depthwise:
                multiplier = one.out_channels // one.in_channels
                stated["in_channels"] = stated["groups"] = weight.shape[0] // multiplier
            else:
                stated["in_channels"] = weight.shape[1] * one.groups
        elif isinstance(one, nn.Linear):
            stated = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
        elif isinstance(one, nn.modules.batchnorm._NormBase):
            stated["num_features"] = weight.shape[0]
        elif isinstance(one, nn.LayerNorm):
            stated["normalized_shape"] = tuple(weight.shape)
        elif isinstance(one, nn.GroupNorm):
            stated["num_channels"] = weight.shape[0]
        for name, value in stated.items():
            setattr(one, name, value)
