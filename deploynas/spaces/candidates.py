"""Spaces whose choices are candidate operations: one choice a block.

``proxyless-mobile`` is the space of ProxylessNAS (Cai et al. 2019, section 4.2): 21 blocks, each
an inverted residual of kernel size 3, 5 or 7 and expand ratio 3 or 6, or nothing where its
shape allows that. ``proxyless-small`` is the same choice on the stages of ``mobile-small``.
``one-shot`` has a choice block a layer, as Guo et al. 2020 ("Single path one-shot neural
architecture search with uniform sampling", section 3.3): three kernel sizes, or separable
convolutions in a row in the place of their Xception block; no layer is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from deploynas.errors import InvalidInputError
from deploynas.spaces.base import ArchDict, Archs, Choice
from deploynas.spaces.layers import Layer
from deploynas.spaces.mobile import MOBILE_SMALL, ofa_proxyless
from deploynas.spaces.staged import Block, StagedSpace, StageTable
from deploynas.spaces.tree import All, Leaf, One, Tree

ZERO = "zero"


def _with_candidates(table: StageTable, resolution: int) -> StageTable:
    """A once-for-all table's stages at full length, with ProxylessNAS's expand ratios."""
    stages = tuple(replace(s, depths=tuple(range(1, s.depths[-1] + 1))) for s in table.stages)
    return replace(table, stages=stages, expand_ratios=(3, 6), resolutions=(resolution,))


CANDIDATE_TABLES: Mapping[str, StageTable] = {
    "proxyless-mobile": _with_candidates(ofa_proxyless(1.0), 224),
    "proxyless-small": _with_candidates(MOBILE_SMALL, 28),
}


ONE_SHOT_TABLES: Mapping[str, StageTable] = {
    "one-shot": replace(_with_candidates(MOBILE_SMALL, 28), expand_ratios=(3,)),
}


class CandidateSpace(StagedSpace):
    """A space of candidate operations built from a stage table.

    Columns of an architecture: resolution, then the operation of every block. ``zero``, which is
    the first where it is allowed (stride 1, as many channels out as in), leaves the block out.
    Blocks of a stage that all may be left out are interchangeable, so that the canonical form has
    what is left out at the stage's end.
    """

    mixture: ClassVar[str | None] = "deploynas.nn.mixtures:MixedBlocks"
    strategy: ClassVar[str | None] = "proxyless"

    def _operations(self, block: Block) -> dict[str, tuple[int, int] | None]:
        """Name -> kernel size and expand ratio, None for zero; the cheapest first."""
        t = self.table
        may_skip = block.stride == 1 and block.in_channels == t.stages[block.stage].width
        found: dict[str, tuple[int, int] | None] = {ZERO: None} if may_skip else {}
        for expand_ratio in t.expand_ratios:
            for kernel_size in t.kernel_sizes:
                found[f"mbconv_k{kernel_size}_e{expand_ratio}"] = (kernel_size, expand_ratio)
        return found

    def _block_choices(self) -> Sequence[Choice]:
        return [Choice(f"{b.name}.op", tuple(self._operations(b))) for b in self.blocks]

    def _block_options(
        self, number: int, block: Block
    ) -> tuple[tuple[int, ...], Sequence[Layer | None]]:
        return (0, 1 + number), [
            self._layer(block, side, name, shape)
            for side in block.sides
            for name, shape in self._operations(block).items()
        ]

    def _layer(
        self, block: Block, side: int, name: str, shape: tuple[int, int] | None
    ) -> Layer | None:
        """The layer of an operation; None for none."""
        return None if shape is None else self.block_layer(block, side, *shape)

    @property
    def _num_operations(self) -> int:
        """A block's, that of leaving it out apart."""
        return len([shape for shape in self._operations(self.blocks[0]).values() if shape])

    def _runs(self) -> list[list[int]]:
        """A list a stage: the columns of the blocks that may be left out."""
        runs: list[list[int]] = [[] for _ in self.table.stages]
        for number, block in enumerate(self.blocks):
            if ZERO in self.choices[1 + number].options:
                runs[block.stage].append(1 + number)
        return runs

    def _build_tree(self) -> Tree:
        """Blocks are independent; of those that may be left out the first few of a stage stay."""
        num = self._num_operations
        parts: list[Tree] = []
        runs = self._runs()
        for column in range(1, 1 + len(self.blocks)):
            if not any(column in run for run in runs):
                parts.append(Leaf.free({column: num}))
        for run in runs:
            branches = []
            for depth in range(len(run) + 1):
                left_out = Leaf.fixed(dict.fromkeys(run[depth:], 0))
                kept = [
                    Leaf((column,), 1 + np.arange(num, dtype=np.int64)[:, None])
                    for column in run[:depth]
                ]
                branches.append(All((left_out, *kept)))
            if run:
                parts.append(One(tuple(branches)))
        return self._at_each_resolution(parts)

    def canonical(self, archs: Archs) -> Archs:
        """Move the blocks that are left out to the end of their stage."""
        archs = self._checked(archs).copy()
        for run in self._runs():
            order = np.argsort(archs[:, run] == 0, axis=1, kind="stable")
            archs[:, run] = np.take_along_axis(archs[:, run], order, axis=1)
        return archs

    def encode(self, dicts: Sequence[ArchDict]) -> Archs:
        """Dict form -> option indices."""
        rows = []
        for arch in dicts:
            ops = arch.get("ops")
            if not isinstance(ops, list | tuple) or len(ops) != len(self.blocks):
                raise InvalidInputError(
                    f"an architecture of {self.name} needs a list 'ops' of {len(self.blocks)} "
                    "operations"
                )
            row = []
            for choice, value in zip(self.choices, [arch.get("resolution"), *ops], strict=True):
                if value not in choice.options:
                    raise InvalidInputError(
                        f"{choice.name} of {self.name} is one of {list(choice.options)}, "
                        f"got {value!r}"
                    )
                row.append(choice.options.index(value))
            rows.append(row)
        return self.canonical(self.as_rows(rows))

    def decode(self, archs: Archs) -> list[dict[str, object]]:
        """Option indices -> resolution, ops."""
        return [
            {
                "resolution": self.resolutions[row[0]],
                "ops": [c.options[i] for c, i in zip(self.choices[1:], row[1:], strict=True)],
            }
            for row in self._checked(archs)
        ]

    def unpacked(self, archs: Archs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See :meth:`StagedSpace.unpacked`."""
        archs = self._checked(archs)
        shapes = []
        for number, block in enumerate(self.blocks):
            options = np.array([shape or (0, 0) for shape in self._operations(block).values()])
            shapes.append(options[archs[:, 1 + number]])
        kernels, ratios = np.stack(shapes, axis=1).transpose(2, 0, 1)
        depths = [
            (kernels[:, [b.stage == s for b in self.blocks]] > 0).sum(axis=1)
            for s in range(len(self.table.stages))
        ]
        return np.stack(depths, axis=1), kernels, ratios

    def uniform(self) -> Archs:
        """Every architecture with one operation everywhere and as many blocks in each stage."""
        depths = range(1, max(s.depths[-1] for s in self.table.stages) + 1)
        rows = [
            [r, *(self._option(block, op) if block.place < depth else 0 for block in self.blocks)]
            for r in range(len(self.resolutions))
            for depth in depths
            for op in range(self._num_operations)
        ]
        smallest = [[r] + [0] * len(self.blocks) for r in range(len(self.resolutions))]
        return np.unique(self.canonical(self.as_rows([*smallest, *rows])), axis=0)

    def _option(self, block: Block, op: int) -> int:
        return op + (None in self._operations(block).values())


SEPARABLE = "sep_conv_3x3"


class OneShotSpace(CandidateSpace):
    """A choice block a layer: inverted residuals of three kernel sizes, or separable convolutions.

    Columns of an architecture: resolution, then the operation of every layer.
    """

    network: ClassVar[str] = "deploynas.nn.mixed:MixedNetwork"
    schedules: ClassVar[tuple[str, ...]] = ("single-path",)

    def _operations(self, block: Block) -> dict[str, tuple[int, int] | None]:
        ratio = self.table.expand_ratios[0]
        kernels = {f"mbconv_k{k}_e{ratio}": (k, ratio) for k in self.table.kernel_sizes}
        return {SEPARABLE: (3, 1), **kernels}

    def _layer(
        self, block: Block, side: int, name: str, shape: tuple[int, int] | None
    ) -> Layer | None:
        if name != SEPARABLE:
            return super()._layer(block, side, name, shape)
        width = self.table.stages[block.stage].width
        return Layer(
            "sep_conv", block.in_channels, width, side, side, kernel_size=3, stride=block.stride,
            batch_norm_eps=self.table.batch_norm_eps,
        )  # fmt: skip
