"""The over-parameterised network of a cell space (Liu et al. 2019, "DARTS", section 2).

Every edge of a cell has every operation, each with weights of its own. One architecture runs at a
time (single-path one-shot), or all of them, weighted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from deploynas.nn.sharing import WeightSharing
from deploynas.nn.static import StaticNetwork, build_layer, initialise
from deploynas.spaces.base import Archs, Slot
from deploynas.spaces.cells import KINDS, NUM_INPUTS, Cell, CellSpace, operation
from deploynas.spaces.layers import Layer

NodeInputs = Callable[[int, int, list[Tensor], "CellModule"], Tensor]


class CellModule(nn.Module):
    """One cell's modules.

    Attributes:
        prepare: What brings each input to the cell's channels and size.
        edges: ``edges[node][source][option]``: the operation on the edge from a state to a node.
    """

    def __init__(self, space: CellSpace, cell: Cell, prepare: list[Layer]) -> None:
        super().__init__()
        self.prepare = nn.ModuleList(build_layer(layer) for layer in prepare)
        self.edges = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleList(_operation(name, cell, source) for name in space.table.operations)
                for source in range(NUM_INPUTS + node)
            )
            for node in range(space.table.nodes)
        )
        self.is_reduction = cell.is_reduction

    def edge(self, node: int, source: int) -> nn.ModuleList:
        """The operations on one edge."""
        found = self.edges[node][source]  # type: ignore[index]
        assert isinstance(found, nn.ModuleList)
        return found


def _operation(name: str, cell: Cell, source: int) -> nn.Module:
    layer = operation(name, cell.channels, cell.size_of(source)[0], cell.stride(source))
    return nn.Identity() if layer is None else build_layer(layer)


def _layer_of(space: CellSpace, slot: Slot) -> Layer:
    """What stands in a slot without a choice; its weights are those of every resolution."""
    return space.layer_table[int(slot.layer_ids[0])]


class CellNetwork(WeightSharing):
    """All operations on all edges of a cell space.

    Weights do not depend on the resolution; batch norms hold the statistics of all paths mixed, so
    that what is extracted needs :func:`deploynas.nn.recalibrate`.
    """

    space: CellSpace

    def __init__(self, space: CellSpace) -> None:
        super().__init__(space)
        first, *_, last = space.slots
        self.stem = build_layer(_layer_of(space, first))
        self.cells = nn.ModuleList(
            CellModule(
                space,
                cell,
                [_layer_of(space, space.slots[state]) for state in cell.states[:NUM_INPUTS]],
            )
            for cell in space.cells
        )
        self.head = build_layer(_layer_of(space, last))
        initialise(self)

    def forward(self, x: Tensor, arch: Archs) -> Tensor:
        """Logits ``(n, num_classes)`` of images ``(n, c, r, r)`` under one architecture."""

        def add(kind: int, node: int, states: list[Tensor], cell: CellModule) -> Tensor:
            first, second = (
                cell.edge(node, source)[option](states[source])
                for source, option in self.chosen_edges(arch, kind, node)
            )
            total: Tensor = first + second
            return total

        return self.run(x, add)

    def run(self, x: Tensor, node_of: NodeInputs) -> Tensor:
        """Logits, each node being made by ``node_of(kind, node, states, cell)``."""
        x = self.stem(x)
        before = [x] * NUM_INPUTS
        for cell in self.cells:
            assert isinstance(cell, CellModule)
            states = [one(b) for one, b in zip(cell.prepare, before, strict=True)]
            for node in range(self.space.table.nodes):
                states.append(node_of(int(cell.is_reduction), node, states, cell))
            before = [before[-1], torch.cat(states[NUM_INPUTS:], dim=1)]
        logits: Tensor = self.head(before[-1])
        return logits

    def chosen_edges(self, arch: Archs, kind: int, node: int) -> list[tuple[int, int]]:
        """A node's sources and the options on their edges."""
        column = self.space.column(kind, node)
        pair = self.space.pairs[node][int(arch[column])]
        return [(source, int(arch[column + 1 + i])) for i, source in enumerate(pair)]

    def _path(self, arch: Archs) -> Iterator[nn.Module]:
        """The modules of an architecture, in order of execution."""
        yield self.stem
        for cell in self.cells:
            assert isinstance(cell, CellModule)
            yield from cell.prepare
            for node in range(self.space.table.nodes):
                for source, option in self.chosen_edges(arch, int(cell.is_reduction), node):
                    yield cell.edge(node, source)[option]
        yield self.head

    @torch.no_grad()
    def extract(self, arch: Archs) -> StaticNetwork:
        """The static network of ``arch`` with copies of its operations' weights."""
        network = StaticNetwork(self.space.layers(arch))
        targets = [module for module in network.layers if module.state_dict()]
        present = [module for module in self._path(arch) if module.state_dict()]
        for target, source in zip(targets, present, strict=True):
            target.load_state_dict(source.state_dict())
        return network.to(next(self.parameters()).device).eval()


assert KINDS == ("normal", "reduction")  # the order that a cell's ``is_reduction`` counts in
