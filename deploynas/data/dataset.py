"""The data set in memory, and the one preprocessing of training and of the deployed check.

Images are uint8 arrays of shape (n, h, w, c) with c = 1 (grey) or 3 (RGB). They become
network input in two steps, :func:`resize` and :func:`normalise`; whoever feeds a network,
in PyTorch or in the deployed runtime, uses these two and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploynas.errors import InvalidInputError
from deploynas.spaces import SearchSpace, space

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

SIZE_STEP = 4
"""Sides and resolutions are multiples of this, so that strides divide them."""

MIN_SIZE = 8
"""The smallest side, in px, that a network is built for."""

_STD_FLOOR = 1 / 255  # a constant channel must not divide by zero
_STATISTICS_CHUNK = 1024  # images at a time: counting levels needs eight bytes a value


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set.

    Attributes:
        images: uint8 (n, h, w, c), c is 1 or 3.
        labels: int64 (n,), indices into the data set's ``classes``.
    """

    images: Pixels
    labels: Labels
    _resized: dict[int, Pixels] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def resized(self, resolution: int) -> Pixels:
        """Images at ``resolution`` px as uint8 (n, r, r, c), computed once and kept.

        The array is shared between callers: copy it before writing into it.

        Raises:
            InvalidInputError: ``resolution`` is not positive.
        """
        if resolution not in self._resized:
            self._resized[resolution] = resize(self.images, resolution)
        return self._resized[resolution]


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """A classification data set with training, validation and test images.

    Attributes:
        name: A short name to show.
        classes: The class names; a label is an index into them.
        channels: 1 (grey) or 3 (RGB).
        size: Native square side in px, to which the images were brought on load.
        train: Images to train on.
        val: Images to choose by.
        test: Images to report on, touched last.
        mean: Per channel mean of the training images, as a fraction of 1.
        std: Per channel standard deviation of the training images, as a fraction of 1,
            floored at 1/255.
        fingerprint: SHA-256 over class names, images and labels of all three splits.
        warnings: Sentences that the user should see.
        source: The path, or ``"fashion-mnist"`` or ``"digits"``.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    size: int
    train: Split
    val: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    warnings: tuple[str, ...]
    source: str

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def with_fewer(self, num_images: int | None) -> ImageDataset:
        """A seeded part of the train images; the other splits stay.

        Args:
            num_images: So many; all where None, or where there are no more.

        Raises:
            InvalidInputError: A class would be left without images.
        """
        if num_images is None or num_images >= len(self.train):
            return self
        rows = np.random.default_rng(0).permutation(len(self.train))[: max(0, num_images)]
        part = Split(self.train.images[rows], self.train.labels[rows])
        if np.bincount(part.labels, minlength=self.num_classes).min() == 0:
            raise InvalidInputError(
                f"{num_images} images of {self.source} leave a class without any", "take more"
            )
        return replace(self, train=part, fingerprint=f"{self.fingerprint}/{num_images}")

    def with_channels(self, channels: int) -> ImageDataset:
        """The same images in grey (1) or RGB (3); the fingerprint stays that of the source."""
        if channels == self.channels:
            return self
        train, val, test = (
            Split(to_channels(split.images, channels), split.labels)
            for split in (self.train, self.val, self.test)
        )
        mean, std = _statistics(train.images)
        return replace(
            self, channels=channels, train=train, val=val, test=test, mean=mean, std=std
        )

    def normalised_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageDataset:
        """The same images, normalised by given statistics instead of their own."""
        return replace(self, mean=mean, std=std)


def to_channels(images: Pixels, channels: int) -> Pixels:
    """Grey images as RGB, or RGB images as grey (ITU-R 601-2 luma).

    Args:
        images: uint8 (n, h, w, c), c is 1 or 3.
        channels: 1 or 3.
    """
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    luma = images @ np.array([0.299, 0.587, 0.114])
    grey: Pixels = np.rint(luma).astype(np.uint8)[..., None]
    return grey


def resize(images: Pixels, resolution: int) -> Pixels:
    """Resize every image to a square with Pillow's antialiased bilinear filter.

    Args:
        images: uint8 (n, h, w, c), c is 1 or 3.
        resolution: The new side in px.

    Returns:
        uint8 (n, resolution, resolution, c); ``images`` itself when already that size.

    Raises:
        InvalidInputError: ``resolution`` is not positive.
    """
    if resolution < 1:
        raise InvalidInputError(f"a resolution is a positive number of pixels, not {resolution}")
    count, height, width, channels = images.shape
    if (height, width) == (resolution, resolution):
        return images
    result = np.empty((count, resolution, resolution, channels), dtype=np.uint8)
    for source, target in zip(images, result, strict=True):
        image = Image.fromarray(source[..., 0] if channels == 1 else source)
        small = image.resize((resolution, resolution), Image.Resampling.BILINEAR)
        target[...] = np.asarray(small).reshape(target.shape)
    return result


def framed(images: Pixels, height: int, width: int, top: int, left: int, side: int) -> Pixels:
    """Images as a black frame of ``(height, width)`` px holds them, in a square at ``top, left``.

    Args:
        images: uint8 (n, h, w, c).
        height: Of the frame.
        width: Of the frame.
        top: Of the square.
        left: Of the square.
        side: Of the square, to which the images are resized.
    """
    inner = resize(images, side)
    if (side, side) == (height, width):
        return inner
    frames = np.zeros((len(images), height, width, images.shape[-1]), np.uint8)
    frames[:, top : top + side, left : left + side] = inner
    return frames


def normalise(images: Pixels, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Turn pixels into network input: ``(images / 255 - mean) / std``, channels first.

    Args:
        images: uint8 (n, h, w, c).
        mean: c fractions of 1.
        std: c fractions of 1.

    Returns:
        Contiguous float32 (n, c, h, w).

    Raises:
        InvalidInputError: ``mean`` or ``std`` has not one value a channel.
    """
    channels = images.shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise InvalidInputError(
            f"images of {channels} channels need {channels} means and standard deviations, "
            f"not {len(mean)} and {len(std)}"
        )
    result = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
    result /= np.float32(255)
    result -= np.asarray(mean, dtype=np.float32)[:, None, None]
    result /= np.asarray(std, dtype=np.float32)[:, None, None]
    return result


def resolutions_for(size: int) -> tuple[int, ...]:
    """Elastic resolutions for a native side of ``size`` px, ascending.

    These are 3/4, 7/8 and 1 of ``size``, each rounded to the nearest multiple of 4 (a tie
    goes up) and at least 8: 28 gives (20, 24, 28), 32 gives (24, 28, 32).
    """
    return tuple(sorted({round_side(size * part) for part in (0.75, 0.875, 1.0)}))


def space_for(
    name: str, dataset: ImageDataset, resolutions: Sequence[int] | None = None
) -> SearchSpace:
    """A search space with the data's classes, channels and (where None) resolutions.

    A space that has one resolution gets the data's own.
    """
    is_elastic = len(space(name).resolutions) > 1
    own = resolutions_for(dataset.size) if is_elastic else (round_side(dataset.size),)
    sides = resolutions or own
    return space(name, dataset.num_classes, dataset.channels, sides)


def round_side(side: float) -> int:
    """Round a side in px to the nearest multiple of 4, a tie goes up, at least 8."""
    return max(MIN_SIZE, int(side / SIZE_STEP + 0.5) * SIZE_STEP)


def build_dataset(
    *,
    name: str,
    classes: Sequence[str],
    train: Split,
    val: Split,
    test: Split,
    warnings: Sequence[str],
    source: str,
) -> ImageDataset:
    """Assemble a data set of square images: adds the statistics and the fingerprint."""
    mean, std = _statistics(train.images)
    return ImageDataset(
        name=name,
        classes=tuple(classes),
        channels=train.images.shape[-1],
        size=train.images.shape[1],
        train=train,
        val=val,
        test=test,
        mean=mean,
        std=std,
        fingerprint=_fingerprint(classes, (train, val, test)),
        warnings=tuple(warnings),
        source=source,
    )


def _statistics(images: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # Counting the 256 levels is exact and hence independent of order and chunking.
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(images), _STATISTICS_CHUNK):
        chunk = images[start : start + _STATISTICS_CHUNK]
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    share = counts / counts.sum(axis=1, keepdims=True)
    levels = np.arange(256) / 255
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(axis=1)
    std = np.maximum(np.sqrt(variance), _STD_FLOOR)
    return tuple(mean.tolist()), tuple(std.tolist())


def _fingerprint(classes: Sequence[str], splits: Sequence[Split]) -> str:
    shapes = [split.images.shape for split in splits]
    digest = hashlib.sha256(json.dumps([list(classes), shapes]).encode())
    for split in splits:
        digest.update(np.ascontiguousarray(split.images).data)
        digest.update(np.ascontiguousarray(split.labels, dtype="<i8").data)
    return digest.hexdigest()
