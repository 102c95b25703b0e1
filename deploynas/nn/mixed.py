"""The over-parameterised network of ProxylessNAS (Cai et al. 2019, section 3.1).

Every candidate operation of a block has weights of its own, and an architecture parameter whose
softmax is the probability of its path. One path runs at a time; a step that learns the
architecture runs a second candidate in each block, for its output alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from deploynas.errors import InvalidInputError
from deploynas.nn.static import StaticNetwork, build_layer, initialise
from deploynas.spaces.base import Archs, SearchSpace, Slot


class Candidates(nn.Module):
    """What can stand in one slot; an option without a layer is the identity.

    Attributes:
        layer_ids: Indices into the space's layer table, -1 for the identity.
        column: The choice that decides; None where there is nothing to choose.
    """

    def __init__(self, space: SearchSpace, slot: Slot, column: int | None) -> None:
        super().__init__()
        self.column = column
        self.layer_ids = [int(i) for i in slot.layer_ids.ravel()]  # at most one axis is longer
        self.options = nn.ModuleList(
            nn.Identity() if i < 0 else build_layer(space.layer_table[i]) for i in self.layer_ids
        )

    def under(self, arch: Archs) -> nn.Module:
        """The layer that an architecture chooses."""
        return self.options[0 if self.column is None else int(arch[self.column])]


class MixedLayer(Candidates):
    """Candidates to choose from.

    Attributes:
        alpha: ``(num_candidates,)`` architecture parameters.
    """

    column: int

    def __init__(self, space: SearchSpace, slot: Slot, column: int) -> None:
        super().__init__(space, slot, column)
        self.alpha = nn.Parameter(torch.zeros(len(self.layer_ids)))

    def gated(self, x: Tensor, active: Archs, other: Archs, gates: Tensor) -> Tensor:
        """Both architectures' candidates times their ``(2,)`` gates.

        No gradient enters the other candidate. With gates (1, 0) the output is the active one's,
        and the gates' gradients are those of Cai et al. 2019, section 3.2.1.
        """
        with torch.no_grad():
            beside = self.under(other)(x)
        out: Tensor = gates[0] * self.under(active)(x) + gates[1] * beside
        return out


class MixedNetwork(nn.Module):
    """All paths of a space whose choices are candidate operations.

    Args:
        space: At one resolution; every choice decides one block, every block has one choice.

    Attributes:
        mixed: The blocks that have a choice, in order of execution.

    Raises:
        InvalidInputError: The space has several resolutions, or choices of another kind.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        deciding = [_deciding(space, slot) for slot in space.slots]
        taken = [column for columns in deciding for column in columns]
        if len(taken) != len(set(taken)) or max(map(len, deciding)) > 1:
            raise InvalidInputError(
                f"the choices of {space.name} are not candidate operations, one a block",
                "search it with --strategy ofa, or search --space proxyless-small",
            )
        if len(space.resolutions) != 1:
            raise InvalidInputError(
                f"a gradient search has one resolution, and {space.name} comes with "
                f"{len(space.resolutions)}: take one of {list(space.resolutions)}"
            )
        self._parts = [
            MixedLayer(space, slot, columns[0]) if columns else Candidates(space, slot, None)
            for slot, columns in zip(space.slots, deciding, strict=True)
        ]
        self.slots = nn.ModuleList(self._parts)
        self.mixed = [part for part in self._parts if isinstance(part, MixedLayer)]
        initialise(self)

    @property
    def alphas(self) -> list[nn.Parameter]:
        """Architecture parameters, a vector a mixed layer."""
        return [layer.alpha for layer in self.mixed]

    @property
    def weights(self) -> list[nn.Parameter]:
        """Every other parameter."""
        mine = {id(alpha) for alpha in self.alphas}
        return [p for p in self.parameters() if id(p) not in mine]

    @property
    def fixed_layer_ids(self) -> list[int]:
        """Indices into the space's layer table of what is in every network."""
        return [part.layer_ids[0] for part in self._parts if part.column is None]

    def forward(self, x: Tensor, arch: Archs) -> Tensor:
        """Logits ``(n, num_classes)`` of images ``(n, c, r, r)`` along one path."""
        for part in self._parts:
            x = part.under(arch)(x)
        return x

    def forward_gated(self, x: Tensor, active: Archs, other: Archs, gates: Tensor) -> Tensor:
        """Logits along one path, with the gates of a second candidate in every block.

        Args:
            x: ``(n, c, r, r)``.
            active: ``(num_choices,)`` the path.
            other: ``(num_choices,)`` the second candidates.
            gates: ``(num_mixed, 2)``.
        """
        own = iter(gates)
        for part in self._parts:
            if isinstance(part, MixedLayer):
                x = part.gated(x, active, other, next(own))
            else:
                x = part.under(active)(x)
        return x

    @torch.no_grad()
    def extract(self, arch: Archs) -> StaticNetwork:
        """The static network of ``arch`` with copies of its path's weights."""
        network = StaticNetwork(self.space.layers(arch))
        chosen = [part.under(arch) for part in self._parts]
        present = [layer for layer in chosen if not isinstance(layer, nn.Identity)]
        for target, source in zip(network.layers.children(), present, strict=True):
            target.load_state_dict(source.state_dict())
        device = next(self.parameters()).device
        return network.to(device).eval()

    def options(self, arch: Archs) -> list[int]:
        """The option of every mixed layer; the reverse of :meth:`row`."""
        return [int(arch[layer.column]) for layer in self.mixed]

    def row(self, options: Sequence[int]) -> Archs:
        """``(num_choices,)`` the architecture of one option a mixed layer; not canonical.

        The resolution is the space's one.
        """
        arch = np.zeros(len(self.space.choices), np.uint8)
        for layer, option in zip(self.mixed, options, strict=True):
            arch[layer.column] = option
        return arch


def _deciding(space: SearchSpace, slot: Slot) -> list[int]:
    """The choices beside the resolution that decide what stands in a slot."""
    return [
        column
        for column in slot.columns
        if len(space.choices[column].options) > 1 and space.choices[column].name != "resolution"
    ]
