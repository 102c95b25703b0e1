"""Cell spaces: a normal and a reduction cell that a network repeats.

``darts`` is the space of DARTS (Liu, Simonyan and Yang 2019, section 3.1.1 and the published
code): a cell has the outputs of the two cells before it as inputs, and nodes that each add up two
of what came before, every one through an operation of its own; what the nodes make, side by side,
is the output. Cells a third and two thirds down the network reduce: there the operations on the
cell's inputs have stride 2, and channels double.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from deploynas.errors import InvalidInputError
from deploynas.spaces.base import ArchDict, Archs, Choice, Graphs, SearchSpace, Slot
from deploynas.spaces.layers import Layer
from deploynas.spaces.resolution import Resolution, ResolutionLike, resolutions_of
from deploynas.spaces.tree import All, Leaf, One, Tree

KINDS = ("normal", "reduction")
NUM_INPUTS = 2  # of a cell, and of a node
NONE, SKIP = "none", "skip_connect"
OPERATIONS = (  # the cheapest first
    SKIP, "max_pool_3x3", "avg_pool_3x3", "dil_conv_3x3", "dil_conv_5x5",
    "sep_conv_3x3", "sep_conv_5x5",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CellTable:
    """All that defines a cell space.

    Attributes:
        channels: Of a node's feature maps in the first cells.
        cells: In a row.
        nodes: A cell.
        stem: Channels of the stem, as multiples of ``channels``.
        operations: To choose from, of :data:`OPERATIONS`.
    """

    channels: int
    cells: int
    nodes: int
    resolutions: tuple[int, ...]
    num_classes: int = 10
    stem: int = 3
    operations: tuple[str, ...] = OPERATIONS


CELL_TABLES: Mapping[str, CellTable] = {
    "darts": CellTable(16, 8, 4, (32,)),
    "darts-small": CellTable(8, 5, 3, (28,)),
}


CHANGEABLE = ("channels", "cells", "nodes", "operations")


def operation(name: str, channels: int, size: ResolutionLike, stride: int) -> Layer | None:
    """The layer of an operation between feature maps of one width.

    Args:
        name: Of :data:`OPERATIONS`, or ``none``.
        channels: In and out.
        size: Of the feature map that enters, px.
        stride: 1 or 2.

    Returns:
        None for ``none``, and for the identity, which no layer does.

    Raises:
        InvalidInputError: No such operation.
    """
    entering = Resolution.of(size).size
    if name == NONE or (name == SKIP and stride == 1):
        return None
    if name == SKIP:
        return Layer("factorised_reduce", channels, channels, *entering, stride=2)
    if name not in OPERATIONS:
        raise InvalidInputError(
            f"no operation {name!r}: there are {', '.join((NONE, *OPERATIONS))}"
        )
    kind, _, kernel = name.rpartition("_")
    assert kind in ("max_pool", "avg_pool", "dil_conv", "sep_conv")
    return Layer(
        kind, channels, channels, *entering,
        kernel_size=int(kernel[0]), stride=stride, dilation=2 if kind == "dil_conv" else 1,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a network.

    Attributes:
        is_reduction: Whether operations on its inputs have stride 2.
        channels: Of its nodes.
        entering: Size of its inputs, once brought to one; one a resolution.
        size: Of its nodes' feature maps; one a resolution.
        states: The slots whose outputs a node can take: the two inputs, then the nodes.
    """

    is_reduction: bool
    channels: int
    entering: tuple[Resolution, ...]
    size: tuple[Resolution, ...]
    states: list[int] = field(default_factory=list)

    def stride(self, source: int) -> int:
        """Of an operation on a state."""
        return 2 if self.is_reduction and source < NUM_INPUTS else 1

    def size_of(self, source: int) -> tuple[Resolution, ...]:
        """Of a state, one a resolution."""
        return self.entering if source < NUM_INPUTS else self.size


def cell_space(base: str, changes: Mapping[str, object], **arguments: Any) -> CellSpace:
    """A cell space by the name of its table and what differs from it.

    Args:
        base: Of :data:`CELL_TABLES`.
        changes: ``channels``, ``cells``, ``nodes``, ``operations``, as values or as text.
        arguments: Of :class:`CellSpace`.

    Raises:
        InvalidInputError: No such argument, or not a number.
    """
    values: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in CHANGEABLE:
            raise InvalidInputError(
                f"{base} has no argument {key!r}", f"it has {', '.join(CHANGEABLE)}"
            )
        if key == "operations":
            values[key] = tuple(value.split("+") if isinstance(value, str) else value)  # type: ignore[arg-type]
        elif str(value).isdigit():
            values[key] = int(str(value))
        else:
            raise InvalidInputError(f"{key} of {base} is a number, got {value!r}")
    known = CELL_TABLES[base]
    table = replace(known, **values)
    different = []
    for key in CHANGEABLE:
        value = getattr(table, key)
        if value != getattr(known, key):
            text = "+".join(value) if isinstance(value, tuple) else str(value)
            different.append(f"{key}={text}")
    name = f"{base}:{','.join(different)}" if different else base
    return CellSpace(name, table, **arguments)


class CellSpace(SearchSpace):
    """A space of two cells.

    Columns of an architecture: resolution, then for each node of the normal and of the reduction
    cell: which two of what came before enter it, and the operation on the first and on the second.
    Every choice counts, so that every row is canonical; cells that differ in the order of their
    nodes alone are different rows.

    Dict form: ``resolution``, and ``normal`` and ``reduction``, the lists of edges of a genotype:
    ``sep_conv_3x3<0`` reads the cell's first input, ``<1`` its second, ``<2`` the first node.
    """

    network = "deploynas.nn.cells:CellNetwork"
    mixture = "deploynas.nn.mixtures:MixedCells"

    def __init__(
        self,
        name: str,
        table: CellTable,
        *,
        num_classes: int | None = None,
        in_channels: int = 3,
        resolutions: Sequence[ResolutionLike] | None = None,
    ) -> None:
        self.name, self.table, self.in_channels = name, table, in_channels
        self.num_classes = table.num_classes if num_classes is None else num_classes
        asked = table.resolutions if resolutions is None else resolutions
        self.resolutions = resolutions_of(asked)
        self.require_possible()
        if min(table.channels, table.cells, table.nodes, table.stem) < 1 or table.channels % 2:
            raise InvalidInputError(
                f"{name} needs an even number of channels, and at least one cell of one node"
            )
        unknown = [op for op in table.operations if op not in OPERATIONS]
        if unknown or not table.operations:
            raise InvalidInputError(
                f"no operation {unknown[0]!r}" if unknown else f"{name} needs an operation",
                f"there are {', '.join(OPERATIONS)}",
            )
        self.pairs = [
            list(itertools.combinations(range(NUM_INPUTS + node), NUM_INPUTS))
            for node in range(table.nodes)
        ]
        self.choices = (self.resolution_choice(), *self._node_choices())
        self.cells: tuple[Cell, ...] = ()
        self.slots, self.layer_table = self._walk()

    def _node_choices(self) -> list[Choice]:
        found = []
        for kind in KINDS:
            for node, pairs in enumerate(self.pairs):
                inputs = tuple(f"{a},{b}" for a, b in pairs)
                found.append(Choice(f"{kind}.node{node + NUM_INPUTS}.inputs", inputs))
                found += [
                    Choice(f"{kind}.node{node + NUM_INPUTS}.op{i + 1}", self.table.operations)
                    for i in range(NUM_INPUTS)
                ]
        return found

    def column(self, kind: int, node: int) -> int:
        """The column of a node's inputs; its two operations follow."""
        return 1 + (kind * self.table.nodes + node) * (1 + NUM_INPUTS)

    def _walk(self) -> tuple[tuple[Slot, ...], tuple[Layer, ...]]:
        """The shape walk over every option; fills ``cells`` on the way."""
        t = self.table
        index: dict[Layer, int] = {}
        slots: list[Slot] = []
        cells = []

        def ids(layers: Sequence[Layer | None]) -> list[int]:
            return [-1 if x is None else index.setdefault(x, len(index)) for x in layers]

        def fixed(layers: Sequence[Layer], *inputs: int) -> int:
            slots.append(Slot((0,), np.array(ids(layers)), inputs))
            return len(slots) - 1

        stem = fixed(
            [
                Layer("conv", self.in_channels, t.stem * t.channels, *one.size, kernel_size=3)
                for one in self.resolutions
            ],
            -1,
        )
        before = [(stem, t.stem * t.channels, self.resolutions)] * NUM_INPUTS
        channels = t.channels
        for number in range(t.cells):
            reduces = number in (t.cells // 3, 2 * t.cells // 3)
            channels *= 2 if reduces else 1
            entering = before[-1][2]
            size = tuple(one.strided(2) for one in entering) if reduces else entering
            cell = Cell(reduces, channels, entering, size)
            for slot, width, sizes in before:
                pairs = zip(sizes, entering, strict=True)
                layers = [self._prepare(width, channels, one, wanted) for one, wanted in pairs]
                cell.states.append(fixed(layers, slot))
            for node in range(t.nodes):
                column = self.column(int(reduces), node)
                for place in range(NUM_INPUTS):
                    sources = [pair[place] for pair in self.pairs[node]]
                    shape = (len(size), len(sources), len(t.operations))
                    slots.append(
                        Slot(
                            (0, column, column + 1 + place),
                            np.array(ids(self._edge(cell, sources))).reshape(shape),
                            ((column, tuple(cell.states[source] for source in sources)),),
                        )
                    )
                layers = [
                    Layer("add", channels, channels, *one.size, num_inputs=2) for one in size
                ]
                cell.states.append(fixed(layers, len(slots) - 2, len(slots) - 1))
            made = cell.states[NUM_INPUTS:]
            out, width = made[0], channels
            if len(made) > 1:
                width = len(made) * channels
                layers = [
                    Layer("concat", channels, width, *one.size, num_inputs=len(made))
                    for one in size
                ]
                out = fixed(layers, *made)
            cells.append(cell)
            before = [before[-1], (out, width, size)]
        slot, width, size = before[-1]
        fixed([Layer("head", width, self.num_classes, *one.size) for one in size], slot)
        self.cells = tuple(cells)
        return tuple(slots), tuple(index)

    def _edge(self, cell: Cell, sources: Sequence[int]) -> list[Layer | None]:
        """Every operation on every state that can be one of a node's inputs."""
        return [
            operation(op, cell.channels, cell.size_of(source)[r], cell.stride(source))
            for r in range(len(self.resolutions))
            for source in sources
            for op in self.table.operations
        ]

    def _prepare(self, width: int, channels: int, size: Resolution, wanted: Resolution) -> Layer:
        """What brings an input of a cell to its channels and its size."""
        if size != wanted:
            return Layer("factorised_reduce", width, channels, *size.size, stride=2)
        return Layer("relu_conv", width, channels, *size.size)

    def _build_tree(self) -> Tree:
        """Nodes are independent."""
        num = len(self.table.operations)
        nodes = []
        for kind in range(len(KINDS)):
            for node, pairs in enumerate(self.pairs):
                column = self.column(kind, node)
                operations = {column + 1 + place: num for place in range(NUM_INPUTS)}
                nodes.append(Leaf.free({column: len(pairs), **operations}))
        options = range(len(self.resolutions))
        return One(tuple(All((Leaf.fixed({0: r}), *nodes)) for r in options))

    def encode(self, dicts: Sequence[ArchDict]) -> Archs:
        """Dict form -> option indices; the two edges of a node in either order.

        Raises:
            InvalidInputError: An operation is unknown, an edge reads a node that is not before its
                own (a cycle), or a node has other than two different inputs.
        """
        rows = []
        for arch in dicts:
            row = [self.choices[0].index(arch.get("resolution"), self.name)]
            for kind in KINDS:
                edges = arch.get(kind)
                expected = NUM_INPUTS * self.table.nodes
                if not isinstance(edges, list | tuple) or len(edges) != expected:
                    raise InvalidInputError(
                        f"an architecture of {self.name} needs a list {kind!r} of {expected} edges"
                    )
                for node, pairs in enumerate(self.pairs):
                    own = [parse_edge(e) for e in edges[2 * node : 2 * node + 2]]
                    own.sort(key=lambda edge: edge[1])
                    inputs = (own[0][1], own[1][1])
                    late = [i for i in inputs if not 0 <= i < NUM_INPUTS + node]
                    if late:
                        raise InvalidInputError(
                            f"node {node + NUM_INPUTS} of the {kind} cell reads {late[0]}, which "
                            "does not come before it: a cell has no cycles"
                        )
                    if inputs not in pairs:
                        raise InvalidInputError(
                            f"node {node + NUM_INPUTS} of the {kind} cell reads {inputs[0]} twice"
                        )
                    row.append(pairs.index(inputs))
                    for name, _ in own:
                        if name not in self.table.operations:
                            raise InvalidInputError(
                                f"{self.name} has no operation {name!r}",
                                f"it has {', '.join(self.table.operations)}",
                            )
                        row.append(self.table.operations.index(name))
            rows.append(row)
        return self.as_rows(rows)

    def decode(self, archs: Archs) -> list[dict[str, object]]:
        """Option indices -> resolution, normal, reduction."""
        found = []
        for row in self._checked(archs):
            arch: dict[str, object] = {"resolution": self.resolutions[row[0]].plain}
            for number, kind in enumerate(KINDS):
                edges = []
                for node, pairs in enumerate(self.pairs):
                    column = self.column(number, node)
                    edges += [
                        f"{self.table.operations[row[column + 1 + place]]}<{source}"
                        for place, source in enumerate(pairs[row[column]])
                    ]
                arch[kind] = edges
            found.append(arch)
        return found

    def with_resolutions(self, resolutions: Sequence[ResolutionLike]) -> Self:
        """The same space at other resolutions."""
        return type(self)(
            self.name,
            self.table,
            num_classes=self.num_classes,
            in_channels=self.in_channels,
            resolutions=resolutions,
        )

    def smallest(self) -> Archs:
        """``(1, num_choices)`` the one with the fewest multiply-adds."""
        return self.ends(self.layer_values("macs"))[:1]

    def largest(self) -> Archs:
        """``(1, num_choices)`` the one with the most multiply-adds."""
        return self.ends(self.layer_values("macs"))[-1:]

    @property
    def candidates_at_once(self) -> float:
        """Layers that a mixture of all candidates runs, over those that one network runs."""
        return len(self.table.operations) * (self.table.nodes + 3) / 4

    def of_nodes(self, nodes: Sequence[Sequence[int]]) -> Archs:
        """``(1, num_choices)`` an architecture at the first resolution.

        Args:
            nodes: Of the normal, then of the reduction cell: the option of the inputs, and of the
                operation on either.
        """
        return self.as_rows([0, *itertools.chain.from_iterable(nodes)])

    def nodes_of(self, arch: Archs) -> list[tuple[int, ...]]:
        """The reverse of :meth:`of_nodes`."""
        parts = arch[1:].reshape(-1, 1 + NUM_INPUTS)
        return [tuple(int(option) for option in part) for part in parts]

    def graphs(self, archs: Archs) -> Graphs:
        """Both cells side by side; an operation is a node between the two that its edge joins."""
        rows_of = self._checked(archs).astype(np.int64)
        table, num = self.table, len(archs)
        per_cell = NUM_INPUTS + table.nodes * (1 + NUM_INPUTS) + 1
        fixed = NUM_INPUTS + 2  # inputs, a node's sum, the output
        num_kinds = fixed + len(table.operations)  # a cell's
        nodes = np.zeros((num, len(KINDS) * per_cell, len(KINDS) * num_kinds))
        edges = np.zeros((num, nodes.shape[1], nodes.shape[1]))
        rows = np.arange(num)
        for number in range(len(KINDS)):
            first, own = number * per_cell, number * num_kinds
            output = first + per_cell - 1
            states = np.empty((num, NUM_INPUTS + table.nodes), np.int64)
            for i in range(NUM_INPUTS):
                states[:, i] = first + i
                nodes[:, first + i, own + i] = 1
            nodes[:, output, own + NUM_INPUTS + 1] = 1
            for node, pairs in enumerate(self.pairs):
                column = self.column(number, node)
                place = first + NUM_INPUTS + node * (1 + NUM_INPUTS)
                states[:, NUM_INPUTS + node] = place
                nodes[:, place, own + NUM_INPUTS] = 1
                edges[:, output, place] = 1
                sources = np.array(pairs)[rows_of[:, column]]
                for i in range(NUM_INPUTS):
                    operation = place + 1 + i
                    nodes[rows, operation, own + fixed + rows_of[:, column + 1 + i]] = 1
                    edges[rows, operation, states[rows, sources[:, i]]] = 1
                    edges[:, place, operation] = 1
        return Graphs(nodes, edges, np.eye(len(self.resolutions))[rows_of[:, 0]])

    def node_costs(self, values: np.ndarray, resolution: int = 0) -> list[np.ndarray]:
        """What each node adds to a sum over layers, in all cells of its kind.

        Args:
            values: ``(len(layer_table),)``.
            resolution: Its index.

        Returns:
            ``(num_pairs, num_operations, num_operations)`` a node of the normal cell, then of the
            reduction cell, in the order of the columns.
        """
        edges = self.edge_costs(values, resolution)
        return [
            np.stack([edges[number][a][:, None] + edges[number][b][None, :] for a, b in pairs])
            for number, pairs in enumerate([*self.pairs, *self.pairs])
        ]

    def constant_of(self, values: np.ndarray) -> float:
        """What no choice of cells changes in a sum over layers, ``values`` as above."""
        (row,) = self.smallest()
        costs = self.node_costs(values)
        own = sum(float(c[n]) for c, n in zip(costs, self.nodes_of(row), strict=True))
        return float(self.sum_over_layers(row[None], values)[0]) - own

    def num_skips(self, arch: Archs, number: int = 0) -> int:
        """Skip connections in the normal cell of an architecture, or in the reduction cell (1)."""
        if SKIP not in self.table.operations:
            return 0
        nodes = self.nodes_of(arch)[number * self.table.nodes : (number + 1) * self.table.nodes]
        skip = self.table.operations.index(SKIP)
        return sum(option == skip for _, *options in nodes for option in options)

    def edge_costs(self, values: np.ndarray, resolution: int = 0) -> list[np.ndarray]:
        """What each edge adds to a sum over layers, in all cells of its kind.

        Args:
            values: ``(len(layer_table),)``.
            resolution: Its index.

        Returns:
            ``(num_sources, num_operations)`` a node of the normal cell, then of the reduction
            cell.
        """
        padded = np.append(values, np.zeros(1, values.dtype))  # index -1: no layer
        totals = [
            np.zeros((NUM_INPUTS + node, len(self.table.operations)), padded.dtype)
            for _ in KINDS
            for node in range(self.table.nodes)
        ]
        for slot in self.slots:
            if len(slot.columns) == 1:
                continue
            _, column, own = slot.columns
            number, place = (column - 1) // (1 + NUM_INPUTS), own - column - 1
            cost = padded[slot.layer_ids[resolution]]
            total = totals[number]
            sources = [pair[place] for pair in self.pairs[number % self.table.nodes]]
            # the last source is only ever the second input, every other one can be the first
            for source in range(len(total) - 1) if place == 0 else [len(total) - 1]:
                total[source] += cost[sources.index(source)]
        return totals

    def uniform(self) -> Archs:
        """Every network with one operation everywhere, of nodes in parallel and in a row.

        The smallest and the largest network are among them.
        """
        rows = []
        for r in range(len(self.resolutions)):
            for op in range(len(self.table.operations)):
                for last in (False, True):
                    row = [r]
                    for _ in KINDS:
                        for pairs in self.pairs:
                            row += [len(pairs) - 1 if last else 0, op, op]
                    rows.append(row)
        ends = self.ends(self.layer_values("macs"))
        return np.unique(np.concatenate([self.as_rows(rows), ends]), axis=0)


def parse_edge(text: object) -> tuple[str, int]:
    """``sep_conv_3x3<0`` as an operation and what it reads.

    Raises:
        InvalidInputError: Not an edge.
    """
    name, mark, source = str(text).partition("<")
    if not mark or not source.isdigit():
        raise InvalidInputError(f"an edge is written like sep_conv_3x3<0, got {text!r}")
    return name, int(source)
