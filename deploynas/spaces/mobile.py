"""Once-for-all spaces of mobile networks (Cai et al. 2020, section 3.1).

Elastic resolution, depth (the first d blocks of a stage), kernel size and expand ratio of
inverted-residual blocks. A space is one stage table; the published three stand beside
``mobile-small``, the same idea scaled for images of 28-64 px.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar, cast

import numpy as np

from deploynas.errors import InvalidInputError
from deploynas.spaces.base import ArchDict, Archs, Choice
from deploynas.spaces.layers import Layer, make_divisible
from deploynas.spaces.staged import Block, Stage, StagedSpace, StageTable
from deploynas.spaces.tree import All, Leaf, One, Tree

_D = (2, 3, 4)
_OFA_RESOLUTIONS = (128, 144, 160, 176, 192, 208, 224)


def _ofa_mbv3(width: float) -> StageTable:
    """OFAMobileNetV3 of the once-for-all repository, at a width multiplier."""

    def scaled(channels: int) -> int:
        return make_divisible(channels * width)

    return StageTable(
        #                                                             feature map at 224 px
        stem_width=scaled(16),  #                                     112
        first_width=scaled(16),  #                                    112
        first_activation="relu",
        stages=(
            Stage(scaled(24), 2, "relu", False, _D),  #               56
            Stage(scaled(40), 2, "relu", True, _D),  #                28
            Stage(scaled(80), 2, "h_swish", False, _D),  #            14
            Stage(scaled(112), 1, "h_swish", True, _D),  #            14
            Stage(scaled(160), 2, "h_swish", True, _D),  #            7
        ),
        head_width=scaled(960),
        head_features=scaled(1280),
        activation="h_swish",
        kernel_sizes=(3, 5, 7),
        expand_ratios=(3, 4, 6),
        resolutions=_OFA_RESOLUTIONS,
        num_classes=1000,
    )


def ofa_proxyless(width: float) -> StageTable:
    """OFAProxylessNASNets of the once-for-all repository, at a width multiplier."""

    def scaled(channels: int) -> int:
        return make_divisible(channels * width)

    return StageTable(
        #                                                             feature map at 224 px
        stem_width=scaled(32),  #                                     112
        first_width=scaled(16),  #                                    112
        first_activation="relu6",
        stages=(
            Stage(scaled(24), 2, "relu6", False, _D),  #              56
            Stage(scaled(40), 2, "relu6", False, _D),  #              28
            Stage(scaled(80), 2, "relu6", False, _D),  #              14
            Stage(scaled(96), 1, "relu6", False, _D),  #              14
            Stage(scaled(192), 2, "relu6", False, _D),  #             7
            Stage(scaled(320), 1, "relu6", False, (1,)),  #           7
        ),
        head_width=scaled(1280),
        head_features=0,
        activation="relu6",
        kernel_sizes=(3, 5, 7),
        expand_ratios=(3, 4, 6),
        resolutions=_OFA_RESOLUTIONS,
        num_classes=1000,
        batch_norm_eps=1e-3,
    )


MOBILE_SMALL = StageTable(
    #                                                                 feature map at 28 px
    stem_width=16,  #                                                 14
    first_width=16,  #                                                14
    first_activation="relu",
    stages=(
        Stage(24, 2, "relu", False, (1, 2, 3)),  #                    7
        Stage(40, 2, "h_swish", True, (1, 2, 3)),  #                  4
        Stage(64, 1, "h_swish", True, (1, 2, 3)),  #                  4
    ),
    head_width=192,
    head_features=256,
    activation="h_swish",
    kernel_sizes=(3, 5, 7),
    expand_ratios=(2, 3, 6),
    resolutions=(20, 24, 28),
    num_classes=10,
)

TABLES: Mapping[str, StageTable] = {
    "mobile-small": MOBILE_SMALL,
    "ofa-mbv3-w1.0": _ofa_mbv3(1.0),
    "ofa-mbv3-w1.2": _ofa_mbv3(1.2),
    "ofa-proxyless-w1.3": ofa_proxyless(1.3),
}


class MobileSpace(StagedSpace):
    """A once-for-all space built from a stage table.

    Columns of an architecture: resolution, one depth per stage, then kernel size and then
    expand ratio of every block, blocks past their stage's depth holding option 0.
    """

    schedules: ClassVar[tuple[str, ...]] = ("sandwich", "single-path", "progressive")

    @cached_property
    def _depth_columns(self) -> list[int]:
        return list(range(1, 1 + len(self.table.stages)))

    @cached_property
    def _kernel_columns(self) -> list[int]:
        return [self._depth_columns[-1] + 1 + i for i in range(len(self.blocks))]

    @cached_property
    def _expand_columns(self) -> list[int]:
        return [self._kernel_columns[-1] + 1 + i for i in range(len(self.blocks))]

    def _block_choices(self) -> Sequence[Choice]:
        t = self.table
        return (
            *(Choice(f"stage{i + 1}.depth", s.depths) for i, s in enumerate(t.stages)),
            *(Choice(f"{block.name}.kernel_size", t.kernel_sizes) for block in self.blocks),
            *(Choice(f"{block.name}.expand_ratio", t.expand_ratios) for block in self.blocks),
        )

    def _block_options(
        self, number: int, block: Block
    ) -> tuple[tuple[int, ...], Sequence[Layer | None]]:
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
            for depth in self.table.stages[block.stage].depths
            for kernel_size in self.table.kernel_sizes
            for expand_ratio in self.table.expand_ratios
        ]

    def _build_tree(self) -> Tree:
        """Stages are independent, and so are a stage's blocks once its depth is known."""
        kernels, ratios = len(self.table.kernel_sizes), len(self.table.expand_ratios)
        stages = []
        for number, stage in enumerate(self.table.stages):
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
            depths = np.array(self.table.stages[block.stage].depths)
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
                last = self.table.stages[-1].depths  # published configs leave out a fixed stage
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
            elif value in choice.options:
                row.append(choice.options.index(cast(int, value)))
            else:
                raise InvalidInputError(
                    f"{choice.name} of {self.name} is one of {list(choice.options)}, got {value!r}"
                )
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

        A stage with fewer depths takes its nearest; ``(n, num_choices)``, smallest first.
        """
        num_depths = max(len(s.depths) for s in self.table.stages)
        rows = []
        for r in range(len(self.resolutions)):
            for d in range(num_depths):
                depths = [min(d, len(s.depths) - 1) for s in self.table.stages]
                for k in range(len(self.table.kernel_sizes)):
                    for e in range(len(self.table.expand_ratios)):
                        blocks = len(self._kernel_columns)
                        rows.append([r, *depths, *[k] * blocks, *[e] * blocks])
        return self.canonical(self.as_rows(rows))
