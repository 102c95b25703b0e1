"""What a step does to its images and to what is wanted of them.

Every draw is made for the whole batch by generators of the step's own, so that any number of
processes does the same; what is mixed is mixed within a process's part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploynas.train.batches import on_device

Generators = Callable[[int], np.random.Generator]  # number of a stream -> the step's generator
Box = tuple[int, int, int, int]  # top, left, height, width

NUM_OPERATIONS, STRONGEST = 2, 30.0
GREY = 128.0  # where an operation moves nothing to
AREAS, ASPECTS = (0.02, 0.33), (0.3, 1 / 0.3)  # of what is erased


@dataclass(frozen=True)
class Augmentation:
    """How much of what; nothing where all are zero.

    Attributes:
        moved: Whether images are shifted by up to a twelfth of their sides.
        flip: Whether, then, half are mirrored as well.
        operations: Strength of two random operations an image, of 30 (RandAugment, Cubuk et al.
            2020, section 3).
        erased: Share of the images that lose a box (Zhong et al. 2020, "Random erasing", algorithm
            1) to the data's mean.
        mixup: Both parameters of the beta distribution of what an image keeps beside another
            (Zhang et al. 2018, section 2).
        cutmix: The same of the area that it keeps (Yun et al. 2019, section 3.1). Where both are
            given a step draws one.
    """

    moved: bool = False
    flip: bool = False
    operations: float = 0.0
    erased: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


class Augmented:
    """An augmentation of one step.

    Args:
        how: What is done.
        generators: The same draws whenever they are asked for.
        num_images: Of the whole batch.
        own: Which of them are in hand.
    """

    def __init__(
        self, how: Augmentation, generators: Generators, num_images: int, own: slice
    ) -> None:
        self._how, self._generators = how, generators
        self._num, self._own = num_images, own

    def pixels(self, nhwc: Tensor) -> Tensor:
        """``(n, h, w, c)`` uint8, moved and operated on."""
        if self._how.moved:
            nhwc = _moved(nhwc, self._places(nhwc.shape[1], nhwc.shape[2]))
        if self._how.operations:
            rng, size = self._generators(2), (self._num, NUM_OPERATIONS)
            drawn = rng.integers(0, len(OPERATIONS), size)[self._own]
            signs = np.where(rng.random(size) < 0.5, -1.0, 1.0)[self._own]
            share = self._how.operations / STRONGEST
            nhwc = _operated(nhwc, drawn, signs * share)
        return nhwc

    def inputs(self, x: Tensor) -> Tensor:
        """``(n, c, h, w)`` float, zero being the data's mean: erased and mixed."""
        if self._how.erased:
            x = _erased(x, self._erased_boxes(x.shape[2], x.shape[3]))
        kept, box = self._mixture(x.shape[2], x.shape[3])
        if box is not None:
            top, left, height, width = box
            x = x.clone(memory_format=torch.channels_last)
            inside = (
                slice(None),
                slice(None),
                slice(top, top + height),
                slice(left, left + width),
            )
            x[inside] = x.flip(0)[inside]
        elif kept < 1:
            x = kept * x + (1 - kept) * x.flip(0)
        return x

    def targets(self, targets: Tensor, height: int, width: int) -> Tensor:
        """``(n, num_outputs)`` what is wanted of images of that size, mixed as they are."""
        kept, _ = self._mixture(height, width)
        return targets if kept == 1 else kept * targets + (1 - kept) * targets.flip(0)

    def _places(self, height: int, width: int) -> np.ndarray:
        """``(n, 3)`` pixels down and across, whether mirrored."""
        rng = self._generators(1)
        borders = [max(1, side // 12) for side in (height, width)]
        draws = [rng.integers(0, 2 * b + 1, size=(self._num, 1)) - b for b in borders]
        mirrored = np.zeros((self._num, 1), np.int64)
        if self._how.flip:
            mirrored = (rng.random(self._num) < 0.5).astype(np.int64)[:, None]
        drawn: np.ndarray = np.concatenate([*draws, mirrored], axis=1)[self._own]
        return drawn

    def _erased_boxes(self, height: int, width: int) -> np.ndarray:
        """``(n, 4)`` a box an image, of no height where it stays whole."""
        rng = self._generators(3)
        is_erased = rng.random(self._num) < self._how.erased
        area = rng.uniform(*AREAS, self._num) * height * width
        low, high = map(math.log, ASPECTS)
        aspect = np.exp(rng.uniform(low, high, self._num))
        tall = np.minimum(height, np.rint(np.sqrt(area * aspect)).astype(int)) * is_erased
        wide = np.minimum(width, np.rint(np.sqrt(area / aspect)).astype(int))
        top = (rng.random(self._num) * (height - tall + 1)).astype(int)
        left = (rng.random(self._num) * (width - wide + 1)).astype(int)
        boxes: np.ndarray = np.stack([top, left, tall, wide], axis=1)[self._own]
        return boxes

    def _mixture(self, height: int, width: int) -> tuple[float, Box | None]:
        """What an image keeps, 0 to 1, and the box that it loses, where it loses one."""
        how, rng = self._how, self._generators(4)
        cuts = bool(how.cutmix) and (not how.mixup or rng.random() < 0.5)
        alpha = how.cutmix if cuts else how.mixup
        if not alpha:
            return 1.0, None
        kept = float(rng.beta(alpha, alpha))
        if not cuts:
            return kept, None
        tall, wide = (round(math.sqrt(1 - kept) * side) for side in (height, width))
        top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
        return 1 - tall * wide / (height * width), (top, left, tall, wide)


def _moved(nhwc: Tensor, places: np.ndarray) -> Tensor:
    """Shifted, and mirrored where so drawn; what is beyond the border is a reflection."""
    n, height, width, _ = nhwc.shape
    top, left, flip = on_device(places, nhwc.device).unsqueeze(1).unbind(2)
    rows = _reflected(top + _span(height, nhwc), height)
    across = _span(width, nhwc)
    across = torch.where(flip.bool(), width - 1 - across, across)
    columns = _reflected(left + across, width)
    sample = torch.arange(n, device=nhwc.device)[:, None, None]
    return nhwc[sample, rows[:, :, None], columns[:, None, :]]


def _span(length: int, like: Tensor) -> Tensor:
    return torch.arange(length, device=like.device)[None]


def _reflected(place: Tensor, side: int) -> Tensor:
    """Places beyond a border, reflected at the outermost pixel."""
    place = place.abs()
    return (side - 1) - ((side - 1) - place).abs()


def _erased(x: Tensor, boxes: np.ndarray) -> Tensor:
    top, left, tall, wide = on_device(boxes, x.device).unsqueeze(1).unbind(2)
    down, across = _span(x.shape[2], x), _span(x.shape[3], x)
    rows = (down >= top) & (down < top + tall)
    columns = (across >= left) & (across < left + wide)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _operated(nhwc: Tensor, drawn: np.ndarray, strengths: np.ndarray) -> Tensor:
    """Operations one after the other, each of all images that drew it at once.

    Args:
        nhwc: uint8.
        drawn: ``(n, k)`` places in :data:`OPERATIONS`.
        strengths: ``(n, k)``, -1 to 1.
    """
    from torchvision.transforms.v2 import functional

    x = nhwc.permute(0, 3, 1, 2).clone()
    for turn in range(drawn.shape[1]):
        pairs = np.stack([drawn[:, turn], strengths[:, turn]], axis=1)
        for operation, strength in np.unique(pairs, axis=0):
            rows = np.flatnonzero((pairs == (operation, strength)).all(axis=1))
            index = on_device(rows, x.device)
            x[index] = OPERATIONS[int(operation)](functional, x[index], float(strength))
    return x.permute(0, 2, 3, 1).contiguous()


def _shifted(
    functional: Any, x: Tensor, down: float = 0.0, across: float = 0.0, **more: Any
) -> Any:
    around = {"angle": 0.0, "scale": 1.0, "shear": [0.0, 0.0], **more}
    places = [round(across * x.shape[3]), round(down * x.shape[2])]
    fill = [GREY] * x.shape[1]
    return functional.affine(x, translate=places, fill=fill, **around)


#: Operations of RandAugment: (torchvision's functions, images, strength of -1 to 1) -> images.
OPERATIONS: tuple[Callable[[Any, Tensor, float], Any], ...] = (
    lambda f, x, s: x,
    lambda f, x, s: f.autocontrast(x),
    lambda f, x, s: f.equalize(x),
    lambda f, x, s: _shifted(f, x, angle=30.0 * s),
    lambda f, x, s: _shifted(f, x, shear=[math.degrees(math.atan(0.3 * s)), 0.0]),
    lambda f, x, s: _shifted(f, x, shear=[0.0, math.degrees(math.atan(0.3 * s))]),
    lambda f, x, s: _shifted(f, x, down=0.45 * s),
    lambda f, x, s: _shifted(f, x, across=0.45 * s),
    lambda f, x, s: f.posterize(x, 8 - round(4 * abs(s))),
    lambda f, x, s: f.solarize(x, 255.0 * (1 - abs(s))),
    lambda f, x, s: f.adjust_saturation(x, 1 + 0.9 * s),
    lambda f, x, s: f.adjust_contrast(x, 1 + 0.9 * s),
    lambda f, x, s: f.adjust_brightness(x, 1 + 0.9 * s),
    lambda f, x, s: f.adjust_sharpness(x, 1 + 0.9 * s),
)  # fmt: skip
