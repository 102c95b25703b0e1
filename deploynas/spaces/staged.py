"""Spaces that are built from a stage table: a stem, stages of inverted residuals, a head."""

from __future__ import annotations

import abc
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from deploynas.spaces.base import Archs, Choice, SearchSpace, Slot
from deploynas.spaces.layers import Activation, Layer, make_divisible
from deploynas.spaces.resolution import Resolution, ResolutionLike, resolutions_of
from deploynas.spaces.tree import All, Leaf, One, Tree

MBCONV, UIB, ZERO = "mbconv", "uib", "zero"


def separable_kernel(operator: str) -> int | None:
    """The kernel size of ``sep_conv_3x3`` and its like; None of any other operator."""
    found = re.fullmatch(r"sep_conv_(\d*[13579])x\1", operator)
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class Stage:
    """A run of blocks of one width; the first of them has the stride.

    Attributes:
        width: The largest, where it is elastic.
        kernel_sizes, expand_ratios, operators: Empty: the table's.
        widths: To choose from; empty: none but ``width``.
    """

    width: int
    stride: int
    activation: Activation
    se: bool
    depths: tuple[int, ...]
    kernel_sizes: tuple[int, ...] = ()
    expand_ratios: tuple[int, ...] = ()
    operators: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StageTable:
    """All that defines a staged space.

    Attributes:
        head_features: 0 means no second head layer.
        operators: To choose from in every block: ``mbconv`` of every kernel size and expand ratio,
            ``uib`` of the same, ``sep_conv_3x3`` and its like, ``zero``; empty where blocks are
            elastic.
    """

    stem_width: int
    first_width: int
    first_activation: Activation
    stages: tuple[Stage, ...]
    head_width: int
    head_features: int
    activation: Activation  # of stem and head
    kernel_sizes: tuple[int, ...]
    expand_ratios: tuple[int, ...]
    resolutions: tuple[ResolutionLike, ...]
    num_classes: int
    batch_norm_eps: float = 1e-5
    operators: tuple[str, ...] = ()
    stem_stride: int = 2

    @property
    def text(self) -> str:
        """The table in one line, which :func:`deploynas.spaces.tables.parse_table` reads.

        Tables that mean the same have the same text.
        """
        stages = []
        for stage in self.resolved:
            own: dict[str, object] = {
                "stride": stage.stride, "activation": stage.activation, "se": stage.se,
                **({"widths": stage.widths} if stage.widths else {"width": stage.width}),
            }  # fmt: skip
            if stage.kernel_sizes:
                own["kernel_sizes"] = stage.kernel_sizes
            if stage.expand_ratios:
                own["expand_ratios"] = stage.expand_ratios
            if self.operators:
                own |= {"operators": stage.operators, "depth": stage.depths[-1]}
            else:
                own |= {"depths": stage.depths}
            stages.append(own)
        document = {
            **({"operators": self.operators} if self.operators else {"operator": MBCONV}),
            "resolutions": [one.plain for one in resolutions_of(self.resolutions)],
            "num_classes": self.num_classes,
            "activation": self.activation,
            "batch_norm_eps": self.batch_norm_eps,
            "stem": {"width": self.stem_width, **self._stem_stride},
            "first": {"width": self.first_width, "activation": self.first_activation},
            "stages": stages,
            "head": {"width": self.head_width, "features": self.head_features},
        }
        return json.dumps(document, separators=(",", ":"))

    @property
    def _stem_stride(self) -> dict[str, int]:
        """Where it is not the usual one: what was measured of a text keeps its name."""
        return {} if self.stem_stride == 2 else {"stride": self.stem_stride}

    @property
    def resolved(self) -> tuple[Stage, ...]:
        """The stages with all that they have from the table."""
        return tuple(
            replace(
                stage,
                kernel_sizes=stage.kernel_sizes or self.kernel_sizes,
                expand_ratios=stage.expand_ratios or self.expand_ratios,
                operators=stage.operators or self.operators,
            )
            for stage in self.stages
        )


@dataclass(frozen=True, slots=True)
class Block:
    """A block's place: its stage's number, its place there, and what enters it.

    Attributes:
        sizes: Of its input, one a resolution.
    """

    stage: int
    place: int
    in_channels: int
    stride: int
    sizes: tuple[Resolution, ...]

    @property
    def name(self) -> str:
        """As choices name it."""
        return f"stage{self.stage + 1}.block{self.place + 1}"


class StagedSpace(SearchSpace):
    """What the spaces of one stage table share; subclasses say what a block can be.

    Column 0 of an architecture is the resolution.

    Args:
        name: Of the space.
        table: All that it is.
        num_classes, in_channels, resolutions: By default the table's own, and 3.
        ships: Whether the name alone says which table it is: it is one that ships.
        path: As typed, of the file that the table was read from.
    """

    network = "deploynas.nn.supernet:Supernet"
    schedules: tuple[str, ...] = ("sandwich", "single-path")

    def __init__(
        self,
        name: str,
        table: StageTable,
        *,
        num_classes: int | None = None,
        in_channels: int = 3,
        resolutions: Sequence[ResolutionLike] | None = None,
        ships: bool = False,
        path: str | None = None,
    ) -> None:
        self.name, self.table, self.in_channels = name, table, in_channels
        self.ships, self._path = ships, path
        self.stages = table.resolved
        self.num_classes = table.num_classes if num_classes is None else num_classes
        asked = table.resolutions if resolutions is None else resolutions
        self.resolutions = resolutions_of(asked)
        self.require_possible()
        self.blocks = self._blocks()
        self.choices = (self.resolution_choice(), *self._block_choices())
        self.slots, self.layer_table = self._walk()

    @abc.abstractmethod
    def _block_choices(self) -> Sequence[Choice]:
        """What can be chosen of the blocks."""

    @abc.abstractmethod
    def _block_options(
        self, number: int, block: Block
    ) -> tuple[tuple[int, ...], Sequence[Layer | None]]:
        """The columns that decide a block, resolution first, and the layer of each combination."""

    @abc.abstractmethod
    def unpacked(self, archs: Archs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values of the choices; 0 for blocks that are not there.

        Returns:
            Depths ``(n, num_stages)``, kernel sizes ``(n, num_blocks)`` and expand ratios
            ``(n, num_blocks)``.
        """

    def features(self, archs: Archs) -> npt.NDArray[np.float64]:
        """``(n, num_features)``: size, each stage's width and kernels, each block's options.

        Equal networks have equal features: what is not there is masked.
        """
        depths, kernels, ratios = self.unpacked(archs)
        columns = [
            np.ones(len(archs)),
            np.log(self.macs(archs) / 1e8),
            np.log(self.params(archs) / 1e6),
        ]
        start = 0
        for stage in self.stages:
            blocks = slice(start, start + stage.depths[-1])
            start = blocks.stop
            columns += [
                _log(ratios[:, blocks].sum(axis=1)),
                _log((kernels[:, blocks] ** 2 * ratios[:, blocks]).sum(axis=1)),
            ]
        for stage, depth in zip(self.stages, depths.T, strict=True):
            columns += [depth >= option for option in stage.depths[1:]]
        for block, kernel, ratio in zip(self.blocks, kernels.T, ratios.T, strict=True):
            stage = self.stages[block.stage]
            columns += [kernel >= option for option in stage.kernel_sizes]
            columns += [ratio >= option for option in stage.expand_ratios[1:]]
        return np.stack(columns, axis=1).astype(np.float64)

    def _blocks(self) -> tuple[Block, ...]:
        """Every block that an architecture can have, in order."""
        t = self.table
        blocks = []
        channels = t.first_width
        sizes = tuple(one.strided(t.stem_stride) for one in self.resolutions)
        for s, stage in enumerate(self.stages):
            for place in range(stage.depths[-1]):
                stride = stage.stride if place == 0 else 1
                blocks.append(Block(s, place, channels, stride, sizes))
                channels, sizes = stage.width, tuple(size.strided(stride) for size in sizes)
        return tuple(blocks)

    def _walk(self) -> tuple[tuple[Slot, ...], tuple[Layer, ...]]:
        """The shape walk over every option: slots in order, and the distinct layers."""
        t = self.table
        index: dict[Layer, int] = {}

        def slot(columns: tuple[int, ...], layers: Sequence[Layer | None]) -> Slot:
            ids = [-1 if x is None else index.setdefault(x, len(index)) for x in layers]
            shape = [len(self.choices[c].options) for c in columns]
            return Slot(columns, np.array(ids).reshape(shape))

        stem = [
            Layer(
                "conv", self.in_channels, t.stem_width, *one.size, kernel_size=3,
                stride=t.stem_stride, activation=t.activation, batch_norm_eps=t.batch_norm_eps,
            )
            for one in self.resolutions
        ]  # fmt: skip
        first = [
            inverted_residual(
                Layer(
                    "mbconv", t.stem_width, t.first_width, layer.out_height, layer.out_width,
                    kernel_size=3, activation=t.first_activation, batch_norm_eps=t.batch_norm_eps,
                ),
                t.stem_width, expand=False, se=False,
            )
            for layer in stem
        ]  # fmt: skip
        slots = [slot((0,), stem), slot((0,), first)]
        slots += [slot(*self._block_options(i, block)) for i, block in enumerate(self.blocks)]
        last = self.blocks[-1]
        columns, widths = self._width_options(last.stage)
        head = [
            Layer(
                "head", width, self.num_classes, *size.strided(last.stride).size,
                mid_channels=t.head_width, feature_channels=t.head_features,
                activation=t.activation, batch_norm_eps=t.batch_norm_eps,
            )
            for size in last.sizes
            for width in widths
        ]  # fmt: skip
        slots.append(slot((0, *columns), head))
        return tuple(slots), tuple(index)

    def _width_options(self, stage: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The column, where there is one, of a stage's width, and its options."""
        return (), (self.stages[stage].width,)

    def block_layer(
        self, block: Block, size: Resolution, kernel_size: int, expand_ratio: int,
        widths: tuple[int, int],
    ) -> Layer:  # fmt: skip
        """A block's layer at one input size; ``widths`` are the channels in and out."""
        stage = self.stages[block.stage]
        layer = Layer(
            "mbconv", *widths, *size.size, kernel_size=kernel_size, stride=block.stride,
            activation=stage.activation, batch_norm_eps=self.table.batch_norm_eps,
        )  # fmt: skip
        if expand_ratio == 1:
            return inverted_residual(layer, widths[0], expand=False, se=stage.se)
        mid = make_divisible(round(widths[0] * expand_ratio))
        return inverted_residual(layer, mid, expand=True, se=stage.se)

    def _at_each_resolution(self, parts: Sequence[Tree]) -> Tree:
        """The tree of a space whose other choices stand in ``parts``."""
        options = range(len(self.resolutions))
        return One(tuple(All((Leaf.fixed({0: r}), *parts)) for r in options))

    def with_resolutions(self, resolutions: Sequence[ResolutionLike]) -> Self:
        """The same space at other resolutions."""
        return type(self)(
            self.name,
            self.table,
            num_classes=self.num_classes,
            in_channels=self.in_channels,
            resolutions=resolutions,
            ships=self.ships,
            path=self._path,
        )

    @property
    def keeps_resolutions(self) -> bool:
        """Those of a table of one's own are meant, and what is no square."""
        return not self.ships or super().keeps_resolutions

    @property
    def argument(self) -> str:
        """What names it on the command line."""
        return self._path or self.name

    @property
    def key(self) -> str:
        """What names it in a profile: what was measured of another table has another name."""
        if self.ships:
            return self.name
        digest = hashlib.sha256(self.table.text.encode()).hexdigest()
        return f"{self.name}@{digest[:8]}"

    @property
    def spec(self) -> dict[str, object]:
        """What rebuilds this space, its table included where that does not ship."""
        return super().spec | ({} if self.ships else {"table": self.table.text})


def _log(sums: np.ndarray) -> np.ndarray:
    """Of sums of whole numbers; 0 where a stage has no block."""
    logs: np.ndarray = np.log(np.maximum(sums, 1))
    return logs


def inverted_residual(layer: Layer, mid_channels: int, *, expand: bool, se: bool) -> Layer:
    """An inverted-residual block as the once-for-all code sizes it.

    Args:
        layer: Its shape, kernel, stride, activation.
        mid_channels: Of the depthwise convolution.
        expand: Whether it has an expansion.
        se: Whether it has squeeze-and-excitation.
    """
    return replace(
        layer,
        mid_channels=mid_channels,
        expand=expand,
        se_channels=make_divisible(mid_channels // 4) if se else 0,
        residual=layer.stride == 1 and layer.in_channels == layer.out_channels,
    )
