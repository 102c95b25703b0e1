"""The space of NAS-Bench-201: one cell, repeated in three stages.

Dong and Yang 2020, "NAS-Bench-201: extending the scope of reproducible neural architecture
search", sections 2.1 and 2.2, and the published code. A cell is a graph of four nodes, every one
joined to all before it by an edge with an operation of its own; a node is the sum of its edges. A
residual block of stride 2 stands between two stages, and doubles the channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from deploynas.errors import InvalidInputError
from deploynas.spaces.base import ArchDict, Archs, Choice, SearchSpace, Slot
from deploynas.spaces.layers import Layer
from deploynas.spaces.resolution import Resolution, ResolutionLike, resolutions_of
from deploynas.spaces.tree import All, Leaf, One, Tree

NONE = "none"
OPERATIONS = (NONE, "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3")
NUM_NODES, NUM_STAGES = 4, 3
EDGES = tuple((node, source) for node in range(1, NUM_NODES) for source in range(node))


@dataclass(frozen=True, slots=True)
class StagedCellTable:
    """All that defines a space of one cell.

    Attributes:
        channels: Of the stem and of the first stage.
        cells: A stage.
    """

    channels: int
    cells: int
    resolutions: tuple[int, ...]
    num_classes: int = 10


NASBENCH_TABLES = {"nasbench201": StagedCellTable(16, 5, (32,))}


CHANGEABLE = ("channels", "cells")


def staged_cell_space(
    base: str, changes: Mapping[str, object], **arguments: Any
) -> StagedCellSpace:
    """A space by the name of its table and what differs from it.

    Args:
        base: Of :data:`NASBENCH_TABLES`.
        changes: ``channels``, ``cells``, as numbers or as text.
        arguments: Of :class:`StagedCellSpace`.

    Raises:
        InvalidInputError: No such argument, or not a number of one or more.
    """
    for key, value in changes.items():
        if key not in CHANGEABLE:
            raise InvalidInputError(
                f"{base} has no argument {key!r}", f"it has {', '.join(CHANGEABLE)}"
            )
        if not str(value).isdigit() or int(str(value)) < 1:
            raise InvalidInputError(f"{key} of {base} is a number of 1 or more, got {value!r}")
    known = NASBENCH_TABLES[base]
    numbers = {key: int(str(value)) for key, value in changes.items()}
    table = replace(known, **numbers)  # type: ignore[arg-type]
    different = [
        f"{key}={numbers[key]}"
        for key in CHANGEABLE
        if key in numbers and numbers[key] != getattr(known, key)
    ]
    name = f"{base}:{','.join(different)}" if different else base
    return StagedCellSpace(name, table, **arguments)


def operation(name: str, channels: int, size: Resolution) -> Layer | None:
    """The layer of an operation on an edge.

    Args:
        name: Of :data:`OPERATIONS`.
        channels: In and out.
        size: Of the feature map.

    Returns:
        None for ``none`` and for the identity, which no layer does.
    """
    if name in (NONE, "skip_connect"):
        return None
    kind = "avg_pool" if name.startswith("avg_pool") else "relu_conv"
    return Layer(kind, channels, channels, *size.size, kernel_size=int(name[-1]))


class StagedCellSpace(SearchSpace):
    """A space of one cell.

    Columns of an architecture: resolution, then the operation on each edge, in the order of
    :data:`EDGES`. Every row is an architecture of its own, as in the published tables, also where
    what an operation computes is not read, or where two rows compute the same; what is not read
    is built and counted, as there.

    Dict form: ``resolution``, and ``ops``, the operations of the edges 0 to 1, 0 to 2, 1 to 2,
    0 to 3, 1 to 3, 2 to 3.
    """

    def __init__(
        self,
        name: str,
        table: StagedCellTable,
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
        edges = (Choice(f"edge{source}-{node}", OPERATIONS) for node, source in EDGES)
        self.choices = (self.resolution_choice(), *edges)
        self.slots, self.layer_table = _Walk(self).done()

    def _build_tree(self) -> Tree:
        """Nodes are independent."""
        nodes = [
            Leaf.free({1 + EDGES.index((node, s)): len(OPERATIONS) for s in range(node)})
            for node in range(1, NUM_NODES)
        ]
        options = range(len(self.resolutions))
        return One(tuple(All((Leaf.fixed({0: r}), *nodes)) for r in options))

    def canonical(self, archs: Archs) -> Archs:
        """Every choice counts: a copy."""
        return self._checked(archs).copy()

    def encode(self, dicts: Sequence[ArchDict]) -> Archs:
        """Dict form -> option indices.

        Raises:
            InvalidInputError: No such resolution or operation, or not one an edge.
        """
        rows = []
        for arch in dicts:
            resolution, ops = arch.get("resolution"), arch.get("ops")
            option = self.choices[0].index(resolution, self.name)
            if not isinstance(ops, list | tuple) or len(ops) != len(EDGES):
                raise InvalidInputError(
                    f"an architecture of {self.name} needs a list 'ops' of {len(EDGES)} operations"
                )
            for op in ops:
                if op not in OPERATIONS:
                    raise InvalidInputError(
                        f"{self.name} has no operation {op!r}", f"it has {', '.join(OPERATIONS)}"
                    )
            rows.append([option, *map(OPERATIONS.index, ops)])
        return self.as_rows(rows)

    def decode(self, archs: Archs) -> list[dict[str, object]]:
        """Option indices -> resolution, ops."""
        return [
            {
                "resolution": self.resolutions[row[0]].plain,
                "ops": [OPERATIONS[op] for op in row[1:]],
            }
            for row in self._checked(archs)
        ]

    def with_resolutions(self, resolutions: Sequence[ResolutionLike]) -> Self:
        """The same space at other resolutions."""
        return type(self)(
            self.name, self.table, num_classes=self.num_classes, in_channels=self.in_channels,
            resolutions=resolutions,
        )  # fmt: skip

    def uniform(self) -> Archs:
        """Every network with one operation on all edges."""
        return self.as_rows(
            [
                [r] + [op] * len(EDGES)
                for r in range(len(self.resolutions))
                for op in range(len(OPERATIONS))
            ]
        )


class _Walk:
    """The shape walk over every option."""

    def __init__(self, space: StagedCellSpace) -> None:
        self._index: dict[Layer, int] = {}
        self._slots: list[Slot] = []
        table, channels, sizes = space.table, space.table.channels, space.resolutions
        x = self._fixed(
            [Layer("conv", space.in_channels, channels, *s.size, kernel_size=3) for s in sizes], -1
        )
        for stage in range(NUM_STAGES):
            if stage:
                x, sizes = self._reduction(x, channels, sizes)
                channels *= 2
            for _ in range(table.cells):
                x = self._cell(x, channels, sizes)
        x = self._fixed([Layer("bn_relu", channels, channels, *s.size) for s in sizes], x)
        self._fixed([Layer("head", channels, space.num_classes, *s.size) for s in sizes], x)

    def done(self) -> tuple[tuple[Slot, ...], tuple[Layer, ...]]:
        """Slots and layer table."""
        return tuple(self._slots), tuple(self._index)

    def _reduction(
        self, x: int, channels: int, sizes: tuple[Resolution, ...]
    ) -> tuple[int, tuple[Resolution, ...]]:
        """The residual block between two stages, and the size of what it makes."""
        wide, smaller = 2 * channels, tuple(s.strided(2) for s in sizes)
        first = self._fixed(
            [Layer("relu_conv", channels, wide, *s.size, kernel_size=3, stride=2) for s in sizes],
            x,
        )
        second = self._fixed(
            [Layer("relu_conv", wide, wide, *s.size, kernel_size=3) for s in smaller], first
        )
        pooled = self._fixed(
            [
                Layer("avg_pool", channels, channels, *s.size, kernel_size=2, stride=2)
                for s in sizes
            ],
            x,
        )
        short = self._fixed(
            [Layer("conv", channels, wide, *s.size, batch_norm=False) for s in smaller], pooled
        )
        add = [Layer("add", wide, wide, *s.size, num_inputs=2) for s in smaller]
        return self._fixed(add, second, short), smaller

    def _cell(self, x: int, channels: int, sizes: tuple[Resolution, ...]) -> int:
        """Edges with their operations, and what adds them up; a node without any is zero."""
        states = [x]
        for node in range(1, NUM_NODES):
            columns = [1 + EDGES.index((node, source)) for source in range(node)]
            edges = [
                self._slot(
                    (0, column),
                    [[operation(op, channels, s) for op in OPERATIONS] for s in sizes],
                    (states[source],),
                    silent=[[op == NONE for op in OPERATIONS] for _ in sizes],
                )
                for source, column in enumerate(columns)
            ]
            num_present = (np.indices((len(OPERATIONS),) * node) != OPERATIONS.index(NONE)).sum(0)
            zeros = [
                [
                    None if n else Layer("zeros", channels, channels, *s.size)
                    for n in num_present.flat
                ]
                for s in sizes
            ]
            sums = [
                [
                    Layer("add", channels, channels, *s.size, num_inputs=int(n)) if n > 1 else None
                    for n in num_present.flat
                ]
                for s in sizes
            ]
            zero = self._slot(
                (0, *columns), zeros, (x,), silent=[(num_present > 0).ravel()] * len(sizes)
            )
            states.append(self._slot((0, *columns), sums, (*edges, zero)))
        return states[-1]

    def _fixed(self, layers: Sequence[Layer], *inputs: int) -> int:
        return self._slot((0,), [[layer] for layer in layers], inputs)

    def _slot(
        self,
        columns: tuple[int, ...],
        layers: Sequence[Sequence[Layer | None]],
        inputs: tuple[int, ...],
        *,
        silent: Sequence[Sequence[bool]] | None = None,
    ) -> int:
        """The number of a new slot.

        Args:
            columns: The resolution's, then those of operations.
            layers: ``layers[resolution][option]``; an option of several columns is flat.
            inputs: Slots.
            silent: The same, whether nothing is handed on.
        """
        shape = (len(layers), *(len(OPERATIONS),) * (len(columns) - 1))
        ids = [
            -1 if layer is None else self._index.setdefault(layer, len(self._index))
            for row in layers
            for layer in row
        ]
        quiet = None if silent is None else np.array(silent, bool).reshape(shape)
        self._slots.append(Slot(columns, np.array(ids).reshape(shape), inputs, quiet))
        return len(self._slots) - 1


def cell_text(arch: ArchDict) -> str:
    """A cell as the published tables write it: ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``.

    Args:
        arch: Dict form.
    """
    ops = iter(arch["ops"])  # type: ignore[call-overload]
    nodes = [[f"{next(ops)}~{source}" for source in range(node)] for node in range(1, NUM_NODES)]
    return "+".join(f"|{'|'.join(node)}|" for node in nodes)


def parse_cell(text: str) -> dict[str, object]:
    """The reverse of :func:`cell_text`; the resolution is not in it.

    Raises:
        InvalidInputError: Not a cell; what the operations are is checked by
            :meth:`StagedCellSpace.encode`.
    """
    edges = [edge.rpartition("~") for edge in text.replace("+", "").split("|") if edge]
    arch: dict[str, object] = {"ops": [op for op, _, _ in edges]}
    if len(edges) != len(EDGES) or cell_text(arch) != text:
        raise InvalidInputError(
            f"not a cell: {text!r}", "it is written like |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
        )
    return arch
