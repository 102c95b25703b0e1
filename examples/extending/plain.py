"""A family of search spaces in one file: convolutions in a row, elastic in width and depth.

A package that declares ::

    [project.entry-points."deploynas.spaces"]
    plain = "plain:space"

adds the space ``plain`` to every verb of deploynas that takes a ``--space``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from deploynas.spaces import (
    Choice,
    Layer,
    ResolutionLike,
    SearchSpace,
    Slot,
    resolutions_of,
)

WIDTHS = ((8, 16), (16, 32), (32, 64))  # to choose from, a stage
DEPTHS = (1, 2, 3)
RESOLUTIONS = (16, 24, 32)


class PlainSpace(SearchSpace):
    """Stages of 3x3 convolutions, the first of each of stride 2, and a classifier.

    Choices: resolution, then width and depth of every stage. Each has an effect whatever the
    others are, so that every row is an architecture of its own, as the base class takes it;
    weights, features, moves and the dict form are the base class's too.
    """

    def __init__(
        self, num_classes: int, in_channels: int, resolutions: Sequence[ResolutionLike]
    ) -> None:
        self.name, self.num_classes, self.in_channels = "plain", num_classes, in_channels
        self.resolutions = resolutions_of(resolutions)
        self.require_possible()
        stages = [
            (Choice(f"stage{i}.width", widths), Choice(f"stage{i}.depth", DEPTHS))
            for i, widths in enumerate(WIDTHS, 1)
        ]
        self.choices = (self.resolution_choice(), *itertools.chain(*stages))
        self.slots, self.layer_table = self._walk()

    def _walk(self) -> tuple[tuple[Slot, ...], tuple[Layer, ...]]:
        """Every place of a layer, in order, and every layer that can stand somewhere."""
        index: dict[Layer, int] = {}
        slots, sizes = [], self.resolutions
        before: dict[int, tuple[int, ...]] = {}  # the column of the width that enters: its options
        for stage, widths in enumerate(WIDTHS):
            width_column, depth_column = 1 + 2 * stage, 2 + 2 * stage
            for place in range(DEPTHS[-1]):
                stride = 2 if place == 0 else 1
                entering = before if place == 0 else {width_column: widths}
                # a slot has an axis of layers for every choice that decides it, once each
                columns = (0, *dict.fromkeys([*entering, width_column, depth_column]))
                ids = np.full([len(self.choices[c].options) for c in columns], -1)
                for options in np.ndindex(ids.shape):
                    chosen = dict(zip(columns, options, strict=True))
                    if place >= DEPTHS[chosen[depth_column]]:
                        continue  # -1: nothing stands here
                    channels = [w[chosen[c]] for c, w in entering.items()] or [self.in_channels]
                    layer = Layer(
                        "conv", channels[0], widths[chosen[width_column]], *sizes[chosen[0]].size,
                        kernel_size=3, stride=stride, activation="relu",
                    )  # fmt: skip
                    ids[options] = index.setdefault(layer, len(index))
                slots.append(Slot(columns, ids))
                sizes = tuple(size.strided(stride) for size in sizes)
            before = {width_column: widths}
        ((column, widths),) = before.items()
        ids = np.empty((len(sizes), len(widths)), np.int64)
        for r, w in np.ndindex(ids.shape):
            layer = Layer("head", widths[w], self.num_classes, *sizes[r].size)
            ids[r, w] = index.setdefault(layer, len(index))
        slots.append(Slot((0, column), ids))
        return tuple(slots), tuple(index)

    def with_resolutions(self, resolutions: Sequence[ResolutionLike]) -> PlainSpace:
        """The same space at other resolutions."""
        return PlainSpace(self.num_classes, self.in_channels, resolutions)


def space(
    num_classes: int | None = None,
    in_channels: int = 3,
    resolutions: Sequence[ResolutionLike] | None = None,
) -> SearchSpace:
    """What the entry point names; called as ``deploynas.space`` is."""
    classes = 10 if num_classes is None else num_classes
    return PlainSpace(classes, in_channels, RESOLUTIONS if resolutions is None else resolutions)
