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
    expand ratio of every block, blocks past their stage's depth holding option 0; last the width
    of every stage whose width is elastic.
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

    @cached_property
    def _width_columns(self) -> dict[int, int]:
        """Stage -> column, of stages that have one."""
        elastic = [number for number, stage in enumerate(self.stages) if stage.widths]
        return {number: self._expand_columns[-1] + 1 + i for i, number in enumerate(elastic)}

    def _width_options(self, stage: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if stage in self._width_columns:
            return (self._width_columns[stage],), self.stages[stage].widths
        return (), (self.stages[stage].width if stage >= 0 else self.table.first_width,)

    def _block_choices(self) -> Sequence[Choice]:
        of_blocks = [(block.name, self.stages[block.stage]) for block in self.blocks]
        return (
            *(Choice(f"stage{i + 1}.depth", s.depths) for i, s in enumerate(self.stages)),
            *(Choice(f"{name}.kernel_size", stage.kernel_sizes) for name, stage in of_blocks),
            *(Choice(f"{name}.expand_ratio", stage.expand_ratios) for name, stage in of_blocks),
            *(Choice(f"stage{i + 1}.width", self.stages[i].widths) for i in self._width_columns),
        )

    def _block_options(
        self, number: int, block: Block
    ) -> tuple[tuple[int, ...], Sequence[Layer | None]]:
        stage = self.stages[block.stage]
        own, leaving = self._width_options(block.stage)
        widths = [(width, width) for width in leaving]
        if block.place == 0:
            before, entering = self._width_options(block.stage - 1)
            own, widths = (*before, *own), list(itertools.product(entering, leaving))
        columns = (
            0,
            self._depth_columns[block.stage],
            self._kernel_columns[number],
            self._expand_columns[number],
            *own,
        )
        return columns, [
            self.block_layer(block, size, kernel_size, expand_ratio, pair)
            if block.place < depth
            else None
            for size in block.sizes
            for depth in stage.depths
            for kernel_size in stage.kernel_sizes
            for expand_ratio in stage.expand_ratios
            for pair in widths
        ]

    def _build_tree(self) -> Tree:
        """Stages are independent given the widths, and a stage's blocks given its depth."""
        stages: list[Tree] = []
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
        elastic = list(self._width_columns.values())
        if not elastic:
            return self._at_each_resolution(stages)
        options = itertools.product(*(range(len(self.choices[c].options)) for c in elastic))
        chosen = [Leaf.fixed(dict(zip(elastic, one, strict=True))) for one in options]
        return self._at_each_resolution([One(tuple(All((one, *stages)) for one in chosen))])

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
        counts = [True] * (1 + num_stages) + active + active
        if self._width_columns:
            widths = arch.get("widths")
            if not isinstance(widths, list | tuple) or len(widths) != num_stages:
                raise InvalidInputError(
                    f"an architecture of {self.name} needs a list 'widths' of {num_stages} values"
                )
            values += [widths[stage] for stage in self._width_columns]
            counts += [True] * len(self._width_columns)
        return [
            choice.index(value, self.name) if is_there else 0
            for choice, value, is_there in zip(self.choices, values, counts, strict=True)
        ]

    def _active(self, depths: Sequence[int]) -> list[bool]:
        return [
            isinstance(depths[block.stage], int) and block.place < depths[block.stage]
            for block in self.blocks
        ]

    def decode(self, archs: Archs) -> list[dict[str, object]]:
        """Option indices -> resolution, depths, kernel_sizes, expand_ratios, widths if elastic."""
        archs = self._checked(archs)

        def values(row: Archs, columns: Sequence[int]) -> list[object]:
            return [self.choices[c].options[row[c]] for c in columns]

        def widths(row: Archs) -> list[object]:
            columns = self._width_columns
            return [
                self.choices[columns[i]].options[row[columns[i]]] if i in columns else stage.width
                for i, stage in enumerate(self.stages)
            ]

        return [
            {
                "resolution": self.resolutions[row[0]].plain,
                "depths": values(row, self._depth_columns),
                "kernel_sizes": values(row, self._kernel_columns),
                "expand_ratios": values(row, self._expand_columns),
                **({"widths": widths(row)} if self._width_columns else {}),
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
            num_open: ``depth``, ``kernel_size``, ``expand_ratio``, ``width``; all options where
                not named.
        """
        num = self.num_options.copy()
        for column, choice in enumerate(self.choices):
            _, _, kind = choice.name.rpartition(".")
            num[column] = min(num[column], num_open.get(kind, num[column]))
        drawn = rng.integers(0, num, size=(n, len(self.choices)), dtype=np.int64)
        return self.canonical(self.as_rows(self.num_options - num + drawn))

    def uniform(self) -> Archs:
        """Every architecture with one depth, kernel size, expand ratio and width everywhere.

        A stage with fewer options takes its nearest; ``(n, num_choices)``, smallest first.
        """
        of_blocks = [self.stages[block.stage] for block in self.blocks]
        options = [
            *(stage.depths for stage in self.stages),
            *(stage.kernel_sizes for stage in of_blocks),
            *(stage.expand_ratios for stage in of_blocks),
            *(self.stages[number].widths for number in self._width_columns),
        ]
        kinds = np.repeat(
            np.arange(4),
            [len(self.stages), len(of_blocks), len(of_blocks), len(self._width_columns)],
        )
        last = np.array([len(one) - 1 for one in options])
        most = [int(last[kinds == kind].max(initial=0)) for kind in range(4)]
        rows = [
            [r, *np.minimum(np.array(place)[kinds], last)]
            for r in range(len(self.resolutions))
            for place in itertools.product(*(range(1 + m) for m in most))
        ]
        return self.canonical(self.as_rows(rows))
