"""Once-for-all spaces of mobile networks (Cai et al. 2020, section 3.1).

Elastic resolution, depth (the first d blocks of a stage), kernel size and expand ratio of
inverted-residual blocks. A space is one stage table; the published three stand beside
``mobile-small``, the same idea scaled for images of 28-64 px.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from deploynas.errors import InvalidInputError
from deploynas.spaces.base import ArchDict, Archs, Choice, SearchSpace, Slot
from deploynas.spaces.layers import Activation, Layer, make_divisible


@dataclass(frozen=True, slots=True)
class Stage:
    """A run of blocks of one width; the first of them has the stride."""

    width: int
    stride: int
    activation: Activation
    se: bool
    depths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StageTable:
    """All that defines a mobile space. ``head_features`` 0 means no second head layer."""

    stem_width: int
    first_width: int
    first_activation: Activation
    stages: tuple[Stage, ...]
    head_width: int
    head_features: int
    activation: Activation  # of stem and head
    kernel_sizes: tuple[int, ...]
    expand_ratios: tuple[int, ...]
    resolutions: tuple[int, ...]
    num_classes: int
    batch_norm_eps: float = 1e-5


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


def _ofa_proxyless(width: float) -> StageTable:
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
    "ofa-proxyless-w1.3": _ofa_proxyless(1.3),
}


class MobileSpace(SearchSpace):
    """A once-for-all space built from a stage table.

    Columns of an architecture: resolution, one depth per stage, then kernel size and then
    expand ratio of every block, blocks past their stage's depth holding option 0.
    """

    def __init__(
        self,
        name: str,
        table: StageTable,
        *,
        num_classes: int | None = None,
        in_channels: int = 3,
        resolutions: Sequence[int] | None = None,
    ) -> None:
        self.name = name
        self.table = table
        self.num_classes = table.num_classes if num_classes is None else num_classes
        self.in_channels = in_channels
        self.resolutions = tuple(
            sorted(set(table.resolutions if resolutions is None else resolutions))
        )
        if self.num_classes < 1 or in_channels < 1 or min(self.resolutions, default=0) < 8:
            raise InvalidInputError(
                f"{name} needs at least one class, one channel and resolutions of 8 px or more, "
                f"got {self.num_classes}, {in_channels} and {list(self.resolutions)}"
            )
        self._stage_of_block = [i for i, s in enumerate(table.stages) for _ in range(s.depths[-1])]
        self._place_in_stage = [p for s in table.stages for p in range(s.depths[-1])]
        num_stages, num_blocks = len(table.stages), len(self._stage_of_block)
        self._depth_columns = list(range(1, 1 + num_stages))
        self._kernel_columns = [1 + num_stages + b for b in range(num_blocks)]
        self._expand_columns = [1 + num_stages + num_blocks + b for b in range(num_blocks)]
        block_names = [
            f"stage{s + 1}.block{p + 1}"
            for s, p in zip(self._stage_of_block, self._place_in_stage, strict=True)
        ]
        self.choices = (
            Choice("resolution", self.resolutions),
            *(Choice(f"stage{i + 1}.depth", s.depths) for i, s in enumerate(table.stages)),
            *(Choice(f"{b}.kernel_size", table.kernel_sizes) for b in block_names),
            *(Choice(f"{b}.expand_ratio", table.expand_ratios) for b in block_names),
        )
        self.slots, self.layer_table = self._walk()

    def _walk(self) -> tuple[tuple[Slot, ...], tuple[Layer, ...]]:
        """The shape walk over every option: slots in order, and the distinct layers."""
        t = self.table
        index: dict[Layer, int] = {}

        def ids(layers: Sequence[Layer | None]) -> list[int]:
            return [-1 if x is None else index.setdefault(x, len(index)) for x in layers]

        sides = list(self.resolutions)
        stem = [
            Layer(
                "conv", self.in_channels, t.stem_width, r, r, kernel_size=3, stride=2,
                activation=t.activation, batch_norm_eps=t.batch_norm_eps,
            )
            for r in sides
        ]  # fmt: skip
        slots = [Slot((0,), np.array(ids(stem)))]
        sides = [layer.out_height for layer in stem]
        first = [
            mbconv(
                t.stem_width, t.first_width, side, 3, 1, expand_ratio=1, se=False,
                activation=t.first_activation, eps=t.batch_norm_eps,
            )
            for side in sides
        ]  # fmt: skip
        slots.append(Slot((0,), np.array(ids(first))))
        channels = t.first_width
        for block, (s, place) in enumerate(
            zip(self._stage_of_block, self._place_in_stage, strict=True)
        ):
            stage = t.stages[s]
            stride = stage.stride if place == 0 else 1
            options = [
                mbconv(
                    channels, stage.width, side, kernel_size, stride, expand_ratio=expand_ratio,
                    se=stage.se, activation=stage.activation, eps=t.batch_norm_eps,
                )
                if place < depth
                else None
                for side in sides
                for depth in stage.depths
                for kernel_size in t.kernel_sizes
                for expand_ratio in t.expand_ratios
            ]  # fmt: skip
            shape = (len(sides), len(stage.depths), len(t.kernel_sizes), len(t.expand_ratios))
            columns = (
                0,
                self._depth_columns[s],
                self._kernel_columns[block],
                self._expand_columns[block],
            )
            slots.append(Slot(columns, np.array(ids(options)).reshape(shape)))
            channels, sides = stage.width, [-(-side // stride) for side in sides]
        head = [
            Layer(
                "head", channels, self.num_classes, side, side, mid_channels=t.head_width,
                feature_channels=t.head_features, activation=t.activation,
                batch_norm_eps=t.batch_norm_eps,
            )
            for side in sides
        ]  # fmt: skip
        slots.append(Slot((0,), np.array(ids(head))))
        return tuple(slots), tuple(index)

    @property
    def size(self) -> int:
        """Number of distinct architectures."""
        per_block = len(self.table.kernel_sizes) * len(self.table.expand_ratios)
        stages = (sum(per_block**d for d in s.depths) for s in self.table.stages)
        return int(len(self.resolutions) * math.prod(stages))

    def canonical(self, archs: Archs) -> Archs:
        """Set kernel size and expand ratio of the blocks past a stage's depth to option 0."""
        archs = self._checked(archs).copy()
        for block, (s, place) in enumerate(
            zip(self._stage_of_block, self._place_in_stage, strict=True)
        ):
            depths = np.array(self.table.stages[s].depths)
            active = depths[archs[:, self._depth_columns[s]]] > place
            archs[:, self._kernel_columns[block]] *= active
            archs[:, self._expand_columns[block]] *= active
        return archs

    def encode(self, dicts: Sequence[ArchDict]) -> Archs:
        """Dict form -> option indices; values of blocks past a stage's depth are ignored."""
        rows = [self._encode_one(d) for d in dicts]
        return self.canonical(np.array(rows, np.uint8).reshape(len(rows), len(self.choices)))

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
            isinstance(depths[s], int) and place < depths[s]
            for s, place in zip(self._stage_of_block, self._place_in_stage, strict=True)
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
        """Values of the choices; 0 for blocks past their stage's depth.

        Returns:
            Depths ``(n, num_stages)``, kernel sizes ``(n, num_blocks)`` and expand ratios
            ``(n, num_blocks)``.
        """
        archs = self._checked(archs)
        options = [np.array(choice.options) for choice in self.choices]

        def values(columns: Sequence[int]) -> np.ndarray:
            return np.stack([options[c][archs[:, c]] for c in columns], axis=1)

        depths = values(self._depth_columns)
        active = depths[:, self._stage_of_block] > np.array(self._place_in_stage)
        return depths, values(self._kernel_columns) * active, values(self._expand_columns) * active

    def with_resolutions(self, resolutions: Sequence[int]) -> MobileSpace:
        """The same space at other resolutions."""
        return MobileSpace(
            self.name,
            self.table,
            num_classes=self.num_classes,
            in_channels=self.in_channels,
            resolutions=resolutions,
        )

    def sample_open(
        self,
        n: int,
        rng: np.random.Generator,
        num_depths: int,
        num_kernel_sizes: int,
        num_expand_ratios: int,
    ) -> Archs:
        """``n`` architectures of the largest so many depths, kernel sizes and expand ratios."""
        num_open = self.num_options.copy()
        for columns, num in (
            (self._depth_columns, num_depths),
            (self._kernel_columns, num_kernel_sizes),
            (self._expand_columns, num_expand_ratios),
        ):
            num_open[columns] = np.minimum(num_open[columns], num)
        drawn = rng.integers(0, num_open, size=(n, len(self.choices)), dtype=np.int64)
        return self.canonical((self.num_options - num_open + drawn).astype(np.uint8))

    def sample_spread(self, n: int, rng: np.random.Generator) -> Archs:
        """``n`` architectures spread from small to large.

        Uniform draws crowd around the middle of the range of costs; here each network has its
        own leaning to low or high options.
        """
        leaning = np.exp(np.linspace(-1.5, 1.5, n))[:, None]
        shares = rng.beta(leaning, 1 / leaning, (n, len(self.choices)))
        options = np.minimum(shares * self.num_options, self.num_options - 1)
        return self.canonical(options.astype(np.uint8))

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
        return self.canonical(np.array(rows, np.uint8))

    def smallest(self) -> Archs:
        """``(1, num_choices)`` the architecture of the first options."""
        return np.zeros((1, len(self.choices)), np.uint8)

    def largest(self) -> Archs:
        """``(1, num_choices)`` the architecture of the last options."""
        return (self.num_options[None] - 1).astype(np.uint8)


def mbconv(
    in_channels: int,
    out_channels: int,
    side: int,
    kernel_size: int,
    stride: int,
    *,
    expand_ratio: int,
    se: bool,
    activation: Activation,
    eps: float,
    mid_channels: int | None = None,
) -> Layer:
    """An inverted-residual block as the once-for-all code sizes it.

    ``mid_channels`` overrides ``make_divisible(in_channels * expand_ratio)``.
    """
    mid = mid_channels or make_divisible(round(in_channels * expand_ratio))
    return Layer(
        "mbconv",
        in_channels,
        out_channels,
        side,
        side,
        kernel_size=kernel_size,
        stride=stride,
        mid_channels=mid,
        expand=expand_ratio != 1,
        se_channels=make_divisible(mid // 4) if se else 0,
        activation=activation,
        residual=stride == 1 and in_channels == out_channels,
        batch_norm_eps=eps,
    )
