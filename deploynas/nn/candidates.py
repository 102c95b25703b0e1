"""The over-parameterised network of ProxylessNAS (Cai et al. 2019, section 3.1).

Every candidate operation of a block has an architecture parameter whose softmax is the
probability of its path, and weights of its own, or, where candidates differ in kernel size and
width alone, its part of common weights (Stamoulis et al. 2019, "Single-Path NAS", section 3). One
path runs at a time; a step that learns the architecture runs a second candidate in each block,
for its output alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from deploynas.errors import InvalidInputError
from deploynas.nn.sharing import WeightSharing
from deploynas.nn.static import StaticNetwork, build_layer, initialise
from deploynas.nn.supernet import ElasticLayer
from deploynas.spaces.base import Archs, SearchSpace, Slot
from deploynas.spaces.layers import Layer


class Candidates(nn.Module):
    """What can stand in one slot; an option without a layer is the identity.

    Args:
        space: Whose slot it is.
        slot: Where.
        column: The choice that decides; None where there is nothing to choose.
        shared: Whether candidates that can share weights do.

    Attributes:
        layer_ids: Indices into the space's layer table, -1 for the identity.
        column: As given.
    """

    def __init__(
        self, space: SearchSpace, slot: Slot, column: int | None, *, shared: bool
    ) -> None:
        super().__init__()
        self.column = column
        self.layer_ids = [int(i) for i in slot.layer_ids.ravel()]  # at most one axis is longer
        self._layers = [None if i < 0 else space.layer_table[i] for i in self.layer_ids]
        present = [layer for layer in self._layers if layer is not None]
        kinds = {replace(x, kernel_size=1, mid_channels=0, se_channels=0) for x in present}
        self.elastic: ElasticLayer | None = None
        if shared and len(set(present)) > 1 and len(kinds) == 1 and present[0].mid_channels:
            self.elastic = ElasticLayer(present)
        else:
            self.options = nn.ModuleList(
                nn.Identity() if layer is None else build_layer(layer) for layer in self._layers
            )

    def forward(self, x: Tensor, arch: Archs) -> Tensor:
        """Run what an architecture chooses."""
        layer, option = self._under(arch)
        if layer is None:
            return x
        module = self.options[option] if self.elastic is None else self.elastic
        out: Tensor = module(x) if self.elastic is None else module(x, layer)
        return out

    def state_under(self, arch: Archs) -> dict[str, Tensor] | None:
        """State of the static layer that an architecture chooses; None for the identity."""
        layer, option = self._under(arch)
        if layer is None:
            return None
        if self.elastic is None:
            return self.options[option].state_dict()
        return self.elastic.weights(layer)

    def _under(self, arch: Archs) -> tuple[Layer | None, int]:
        option = 0 if self.column is None else int(arch[self.column])
        return self._layers[option], option


class MixedLayer(Candidates):
    """Candidates to choose from.

    Attributes:
        alpha: ``(num_candidates,)`` architecture parameters.
    """

    column: int

    def __init__(self, space: SearchSpace, slot: Slot, column: int, *, shared: bool) -> None:
        super().__init__(space, slot, column, shared=shared)
        self.alpha = nn.Parameter(torch.zeros(len(self.layer_ids)))

    def gated(self, x: Tensor, active: Archs, other: Archs, gates: Tensor) -> Tensor:
        """Both architectures' candidates times their ``(2,)`` gates.

        No gradient enters the other candidate. With gates (1, 0) the output is the active one's,
        and the gates' gradients are those of Cai et al. 2019, section 3.2.1.
        """
        with torch.no_grad():
            beside = self(x, other)
        out: Tensor = gates[0] * self(x, active) + gates[1] * beside
        return out


class MixedNetwork(WeightSharing):
    """All paths of a space whose choices are candidate operations.

    Args:
        space: At one resolution; every choice decides one block, every block has one choice.
        shared: Whether candidates that differ in kernel size and width alone share weights.

    Attributes:
        mixed: The blocks that have a choice, in order of execution.

    Raises:
        InvalidInputError: The space has several resolutions, or choices of another kind.
    """

    def __init__(self, space: SearchSpace, *, shared: bool = True) -> None:
        super().__init__(space)
        if not space.has_candidates:
            raise InvalidInputError(
                f"the choices of {space.name} are not candidate operations, one a block",
                "search it with --strategy ofa, or search --space proxyless-small",
            )
        require_one_resolution(space)
        self._parts = [
            MixedLayer(space, slot, columns[0], shared=shared)
            if columns
            else Candidates(space, slot, None, shared=shared)
            for slot, columns in ((slot, space.deciding(slot)) for slot in space.slots)
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
            x = part(x, arch)
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
                x = part(x, active)
        return x

    @torch.no_grad()
    def extract(self, arch: Archs) -> StaticNetwork:
        """The static network of ``arch`` with copies of its path's weights."""
        network = StaticNetwork(self.space.layers(arch))
        states = [part.state_under(arch) for part in self._parts]
        present = [state for state in states if state is not None]
        for target, state in zip(network.layers.children(), present, strict=True):
            target.load_state_dict({k: v.detach().clone() for k, v in state.items()})
        device = next(self.parameters()).device
        return network.to(device).eval()

    def options(self, arch: Archs) -> list[int]:
        """The option of every mixed layer; the reverse of :meth:`row`."""
        return [int(arch[layer.column]) for layer in self.mixed]

    def row(self, options: Sequence[int]) -> Archs:
        """``(num_choices,)`` the architecture of one option a mixed layer; not canonical.

        The resolution is the space's one.
        """
        arch = np.zeros(len(self.space.choices), self.space.row_type)
        for layer, option in zip(self.mixed, options, strict=True):
            arch[layer.column] = option
        return arch

    def digits(self, arch: Archs) -> str:
        """An architecture in one line: the digits of each block's operation, - for none."""
        names = []
        for layer in self.mixed:
            name = str(self.space.choices[layer.column].options[arch[layer.column]])
            names.append("".join(filter(str.isdigit, name)) or "-")
        return " ".join(names)


def require_one_resolution(space: SearchSpace) -> None:
    """Check what every gradient search needs.

    Raises:
        InvalidInputError: The space has several.
    """
    if len(space.resolutions) != 1:
        raise InvalidInputError(
            f"a gradient search has one resolution, and {space.name} comes with "
            f"{len(space.resolutions)}: take one of {list(space.resolutions)}"
        )
