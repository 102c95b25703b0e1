"""Once-for-all spaces of mobile networks (Cai et al. 2020, section 3.1).

Elastic resolution, depth (the first d blocks of a stage), kernel size and expand ratio of
inverted-residual blocks. A space is one stage table: see :mod:`deploynas.spaces.tables`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import cast

import numpy as np

from deploynas.errors import InvalidInputError
from deploynas.spaces.base import ArchDict, Archs, Choice
from deploynas.spaces.layers import Layer
from deploynas.spaces.staged import Block, StagedSpace
from deploynas.spaces.tree import All, Leaf, One, Tree


class MobileSpace(StagedSpace):
    """A once-for-all space built from a stage table.

    Columns of an architecture: resolution, one depth per stage, then kernel size and then
    expand ratio of every block, blocks past their stage's depth holding option 0.
    """

    schedules = ("sandwich", "single-path", "progressive")

    @cached_property
    def _depth_columns(self) -> list[int]:
        return list(range(1, 1 + len(self.stages)))

    @cached_property
    def _kernel_columns(self) -> list[int]:
        return [self._depth_columns[-1] + 1 + i for i in range(len(self.blocks))]

    @cached_property
    def _expand_columns(self) -> list[int]:
        return [self._kernel_columns[-1] + 1 + i for i in range(len(self.blocks))]

    def _block_choices(self) -> Sequence[Choice]:
        of_blocks = [(block.name, self.stages[block.stage]) for block in self.blocks]
        return (
            *(Choice(f"stage{i + 1}.depth", s.depths) for i, s in enumerate(self.stages)),
            *(Choice(f"{name}.kernel_size", stage.kernel_sizes) for name, stage in of_blocks),
            *(Choice(f"{name}.expand_ratio", stage.expand_ratios) for name, stage in of_blocks),
        )

    def _block_options(
        self, number: int, block: Block
    ) -> tuple[tuple[int, ...], Sequence[Layer | None]]:
        stage = self.stages[block.stage]
        columns = (
            0,
            self._depth_columns[block.stage],
            self._kernel_columns[number],
            self._expand_columns[number],
        )
        return columns, [
            self.block_layer(block, side, kernel_size, expand_ratio)
            if block.place < depth
            else None
            for side in block.sides
            for depth in stage.depths
            for kernel_size in stage.kernel_sizes
            for expand_ratio in stage.expand_ratios
        ]

    def _build_tree(self) -> Tree:
        """Stages are independent, and so are a stage's blocks once its depth is known."""
        stages = []
        for number, stage in enumerate(self.stages):
            kernels, ratios = len(stage.kernel_sizes), len(stage.expand_ratios)
            columns = [
                (self._kernel_columns[i], self._expand_columns[i], block.place)
                for i, block in enumerate(self.blocks)
                if block.stage == number
            ]
            branches = []
            for option, depth in enumerate(stage.depths):
                fixed = {self._depth_columns[number]: option}
                fixed |= {c: 0 for k, e, place in columns if place >= depth for c in (k, e)}
                blocks = [
                    Leaf.free({k: kernels, e: ratios}) for k, e, place in columns if place < depth
                ]
                branches.append(All((Leaf.fixed(fixed), *blocks)))
            stages.append(One(tuple(branches)))
        return self._at_each_resolution(stages)

    def canonical(self, archs: Archs) -> Archs:
        """Set kernel size and expand ratio of the blocks past a stage's depth to option 0."""
        archs = self._checked(archs).copy()
        for number, block in enumerate(self.blocks):
            depths = np.array(self.stages[block.stage].depths)
            active = depths[archs[:, self._depth_columns[block.stage]]] > block.place
            archs[:, self._kernel_columns[number]] *= active
            archs[:, self._expand_columns[number]] *= active
        return archs

    def encode(self, dicts: Sequence[ArchDict]) -> Archs:
        """Dict form -> option indices; values of blocks past a stage's depth are ignored."""
        rows = [self._encode_one(d) for d in dicts]
        return self.canonical(self.as_rows(rows))

    def _encode_one(self, arch: ArchDict) -> list[int]:
        num_stages, num_blocks = len(self._depth_columns), len(self._kernel_columns)
        lengths = {"depths": num_stages, "kernel_sizes": num_blocks, "expand_ratios": num_blocks}
        values: list[object] = [arch.get("resolution")]
        for key, length in lengths.items():
            given = arch.get(key)
            if not isinstance(given, list | tuple):
                raise InvalidInputError(f"an architecture of {self.name} needs the list {key!r}")
            given = list(given)
            if key == "depths" and len(given) == num_stages - 1:
                last = self.stages[-1].depths  # published configs leave out a fixed stage
                given += list(last) if len(last) == 1 else []
            if len(given) != length:
                raise InvalidInputError(
                    f"{key!r} of {self.name} has {length} values, got {len(given)}"
                )
            values += given
        active = self._active(cast(list[int], values[1 : 1 + num_stages]))
        row = []
        for column, (choice, value) in enumerate(zip(self.choices, values, strict=True)):
            if column > num_stages and not active[(column - 1 - num_stages) % num_blocks]:
                row.append(0)
            else:
                row.append(choice.index(value, self.name))
        return row

    def _active(self, depths: Sequence[int]) -> list[bool]:
        return [
            isinstance(depths[block.stage], int) and block.place < depths[block.stage]
            for block in self.blocks
        ]

    def decode(self, archs: Archs) -> list[dict[str, object]]:
        """Option indices -> resolution, depths, kernel_sizes, expand_ratios."""
        archs = self._checked(archs)

        def values(row: Archs, columns: Sequence[int]) -> list[object]:
            return [self.choices[c].options[row[c]] for c in columns]

        return [
            {
                "resolution": self.resolutions[row[0]],
                "depths": values(row, self._depth_columns),
                "kernel_sizes": values(row, self._kernel_columns),
                "expand_ratios": values(row, self._expand_columns),
            }
            for row in archs
        ]

    def unpacked(self, archs: Archs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See :meth:`StagedSpace.unpacked`."""
        archs = self._checked(archs)
        options = [np.array(choice.options) for choice in self.choices]

        def values(columns: Sequence[int]) -> np.ndarray:
            return np.stack([options[c][archs[:, c]] for c in columns], axis=1)

        depths = values(self._depth_columns)
        stages = [block.stage for block in self.blocks]
        active = depths[:, stages] > np.array([block.place for block in self.blocks])
        return depths, values(self._kernel_columns) * active, values(self._expand_columns) * active

    def sample_open(self, n: int, rng: np.random.Generator, num_open: Mapping[str, int]) -> Archs:
        """``n`` architectures of the largest so many options of each kind of choice.

        Args:
            n: How many.
            rng: Draws them.
            num_open: ``depth``, ``kernel_size``, ``expand_ratio``; all options where not named.
        """
        num = self.num_options.copy()
        for column, choice in enumerate(self.choices):
            _, _, kind = choice.name.rpartition(".")
            num[column] = min(num[column], num_open.get(kind, num[column]))
        drawn = rng.integers(0, num, size=(n, len(self.choices)), dtype=np.int64)
        return self.canonical(self.as_rows(self.num_options - num + drawn))

    def uniform(self) -> Archs:
        """Every architecture with one depth, one kernel size and one expand ratio everywhere.

        A stage with fewer options takes its nearest; ``(n, num_choices)``, smallest first.
        """
        most = [
            max(map(len, options))
            for options in (
                [stage.depths for stage in self.stages],
                [stage.kernel_sizes for stage in self.stages],
                [stage.expand_ratios for stage in self.stages],
            )
        ]
        rows = [
            [
                r,
                *(min(d, len(stage.depths) - 1) for stage in self.stages),
                *(min(k, len(self.stages[b.stage].kernel_sizes) - 1) for b in self.blocks),
                *(min(e, len(self.stages[b.stage].expand_ratios) - 1) for b in self.blocks),
            ]
            for r in range(len(self.resolutions))
            for d, k, e in itertools.product(*map(range, most))
        ]
        return self.canonical(self.as_rows(rows))
