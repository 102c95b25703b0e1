"""Spaces whose choices are candidate operations: one choice a block.

``proxyless-mobile`` is the space of ProxylessNAS (Cai et al. 2019, section 4.2): 21 blocks, each
an inverted residual of kernel size 3, 5 or 7 and expand ratio 3 or 6, or nothing where its
shape allows that. ``proxyless-small`` is the same choice on the stages of ``mobile-small``.
``one-shot`` has a choice block a layer, as Guo et al. 2020 ("Single path one-shot neural
architecture search with uniform sampling", section 3.3): three kernel sizes, or separable
convolutions in a row in the place of their Xception block; no layer is left out. ``mobile-uib``
chooses among the universal inverted bottlenecks of MobileNetV4 (Qin et al. 2024, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deploynas.errors import InvalidInputError
from deploynas.spaces.base import ArchDict, Archs, Choice, SearchSpace
from deploynas.spaces.layers import Layer, make_divisible
from deploynas.spaces.resolution import Resolution
from deploynas.spaces.staged import (
    MBCONV,
    UIB,
    ZERO,
    Block,
    Stage,
    StagedSpace,
    StageTable,
    separable_kernel,
)
from deploynas.spaces.tree import All, Leaf, One, Tree

USUAL = (ZERO, MBCONV)  # operators of a table that names none
MIXED = "deploynas.nn.candidates:MixedNetwork"


@dataclass(frozen=True, slots=True)
class Candidate:
    """What can stand in a block.

    Attributes:
        kind: Of its layer.
        kernel_size, expand_ratio: As features count them.
        start, middle: Of a ``uib``: kernel sizes before and after the expansion, 0 for none.
    """

    kind: str
    kernel_size: int
    expand_ratio: int
    start: int = 0
    middle: int = 0


def _universal(stage: Stage, stride: int) -> dict[str, Candidate]:
    """The instances of Qin et al. 2024, figure 4, that are no inverted residual.

    ``ffn`` has no depthwise, and so no stride; ``convnext`` one before the expansion; ``extradw``
    one before and one after.
    """
    found = {}
    for e in stage.expand_ratios:
        if stride == 1:
            found[f"ffn_e{e}"] = Candidate(UIB, 1, e)
        for k in stage.kernel_sizes:
            found[f"convnext_k{k}_e{e}"] = Candidate(UIB, k, e, start=k)
        for k in stage.kernel_sizes:
            found[f"extradw_k{k}_e{e}"] = Candidate(UIB, k, e, start=k, middle=k)
    return found


class CandidateSpace(StagedSpace):
    """A space of candidate operations built from a stage table.

    Columns of an architecture: resolution, then the operation of every block. ``zero``, which is
    the first where it is allowed (stride 1, as many channels out as in), leaves the block out.
    Blocks of a stage that all may be left out are interchangeable, so that the canonical form has
    what is left out at the stage's end.
    """

    mixture = "deploynas.nn.mixtures:MixedBlocks"
    strategy = "proxyless"

    def __init__(self, name: str, table: StageTable, **arguments: Any) -> None:
        super().__init__(name, replace(table, operators=table.operators or USUAL), **arguments)
        if any(o not in USUAL for stage in self.stages for o in stage.operators):
            # candidates of different kinds share no weights, and none contains the others
            is_mixed = len(self.resolutions) == 1
            self.network = MIXED if is_mixed else SearchSpace.network
            self.schedules = SearchSpace.schedules

    def _operations(self, block: Block) -> dict[str, Candidate | None]:
        """Name -> what it is, None for zero; the cheapest first."""
        stage = self.stages[block.stage]
        may_skip = block.stride == 1 and block.in_channels == stage.width
        found: dict[str, Candidate | None] = {}
        for operator in stage.operators:
            kernel_size = separable_kernel(operator)
            if operator == MBCONV:
                found |= {
                    f"mbconv_k{k}_e{e}": Candidate(MBCONV, k, e)
                    for e in stage.expand_ratios
                    for k in stage.kernel_sizes
                }
            elif operator == UIB:
                found |= _universal(stage, block.stride)
            elif kernel_size is not None:
                found[operator] = Candidate("sep_conv", kernel_size, 1)
            elif may_skip:
                found[operator] = None
        return found

    def _block_choices(self) -> Sequence[Choice]:
        return [Choice(f"{b.name}.op", tuple(self._operations(b))) for b in self.blocks]

    def _block_options(
        self, number: int, block: Block
    ) -> tuple[tuple[int, ...], Sequence[Layer | None]]:
        return (0, 1 + number), [
            self._layer(block, size, candidate)
            for size in block.sizes
            for candidate in self._operations(block).values()
        ]

    def _layer(self, block: Block, size: Resolution, candidate: Candidate | None) -> Layer | None:
        """The layer of a candidate; None for none."""
        if candidate is None:
            return None
        stage = self.stages[block.stage]
        widths = (block.in_channels, stage.width)
        if candidate.kind == MBCONV:
            return self.block_layer(
                block, size, candidate.kernel_size, candidate.expand_ratio, widths
            )
        eps = self.table.batch_norm_eps
        if candidate.kind == UIB:
            return Layer(
                UIB, *widths, *size.size, kernel_size=candidate.middle, stride=block.stride,
                mid_channels=make_divisible(block.in_channels * candidate.expand_ratio),
                activation=stage.activation, batch_norm_eps=eps,
                residual=block.stride == 1 and block.in_channels == stage.width,
                start_kernel_size=candidate.start,
            )  # fmt: skip
        return Layer(
            candidate.kind, *widths, *size.size, kernel_size=candidate.kernel_size,
            stride=block.stride, batch_norm_eps=eps,
        )  # fmt: skip

    def _runs(self) -> list[list[int]]:
        """A list a stage: the columns of the blocks that may be left out."""
        runs: list[list[int]] = [[] for _ in self.stages]
        for number, block in enumerate(self.blocks):
            if ZERO in self.choices[1 + number].options:
                runs[block.stage].append(1 + number)
        return runs

    def _build_tree(self) -> Tree:
        """Blocks are independent; of those that may be left out the first few of a stage stay."""
        parts: list[Tree] = []
        runs = self._runs()
        for column in range(1, 1 + len(self.blocks)):
            if not any(column in run for run in runs):
                parts.append(Leaf.free({column: len(self.choices[column].options)}))
        for run in runs:
            branches = []
            for depth in range(len(run) + 1):
                left_out = Leaf.fixed(dict.fromkeys(run[depth:], 0))
                kept = [
                    Leaf((column,), np.arange(1, len(self.choices[column].options))[:, None])
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
            values = [arch.get("resolution"), *ops]
            pairs = zip(self.choices, values, strict=True)
            rows.append([choice.index(value, self.name) for choice, value in pairs])
        return self.canonical(self.as_rows(rows))

    def decode(self, archs: Archs) -> list[dict[str, object]]:
        """Option indices -> resolution, ops."""
        return [
            {
                "resolution": self.resolutions[row[0]].plain,
                "ops": [c.options[i] for c, i in zip(self.choices[1:], row[1:], strict=True)],
            }
            for row in self._checked(archs)
        ]

    def unpacked(self, archs: Archs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See :meth:`StagedSpace.unpacked`."""
        archs = self._checked(archs)
        shapes = []
        for number, block in enumerate(self.blocks):
            options = np.array(
                [
                    (0, 0) if one is None else (one.kernel_size, one.expand_ratio)
                    for one in self._operations(block).values()
                ]
            )
            shapes.append(options[archs[:, 1 + number]])
        kernels, ratios = np.stack(shapes, axis=1).transpose(2, 0, 1)
        depths = [
            (kernels[:, [b.stage == s for b in self.blocks]] > 0).sum(axis=1)
            for s in range(len(self.stages))
        ]
        return np.stack(depths, axis=1), kernels, ratios

    def uniform(self) -> Archs:
        """Every architecture with one operation everywhere and as many blocks in each stage."""
        depths = range(1, max(s.depths[-1] for s in self.stages) + 1)
        most = max(len(self._operations(block)) for block in self.blocks)
        rows = [
            [r, *(self._option(block, op) if block.place < depth else 0 for block in self.blocks)]
            for r in range(len(self.resolutions))
            for depth in depths
            for op in range(most)
        ]
        smallest = [[r] + [0] * len(self.blocks) for r in range(len(self.resolutions))]
        return np.unique(self.canonical(self.as_rows([*smallest, *rows])), axis=0)

    def _option(self, block: Block, op: int) -> int:
        """Of the so many-th operation that is one, or of the last."""
        shapes = list(self._operations(block).values())
        return min(op + (None in shapes), len(shapes) - 1)
