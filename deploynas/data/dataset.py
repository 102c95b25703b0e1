"""A data set: three sources of images with their classes and statistics, and the spaces for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from deploynas.data.images import Source
from deploynas.data.pixels import round_side
from deploynas.errors import InvalidInputError
from deploynas.spaces import Resolution, ResolutionLike, SearchSpace, resolutions_of, space

SAME_SHAPE = 0.05  # that heights over widths of one shape differ by, rounded to pixels
_STD_FLOOR = 1 / 255  # a constant channel must not divide by zero


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """A classification data set with training, validation and test images.

    Attributes:
        name: A short name to show.
        classes: The class names; a label is an index into them.
        channels: 1 (grey) or 3 (RGB).
        size: Native one, to which the images were brought on load: mostly a square.
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
    size: Resolution
    train: Source
    val: Source
    test: Source
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
        part = self.train.take(rows)
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
            source.with_channels(channels) for source in (self.train, self.val, self.test)
        )
        mean, std = _statistics(train)
        return replace(
            self, channels=channels, train=train, val=val, test=test, mean=mean, std=std
        )

    def normalised_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageDataset:
        """The same images, normalised by given statistics instead of their own."""
        return replace(self, mean=mean, std=std)


def resolutions_for(size: int) -> tuple[int, ...]:
    """Elastic resolutions for a native side of ``size`` px, ascending.

    These are 3/4, 7/8 and 1 of ``size``, each rounded to the nearest multiple of 4 (a tie
    goes up) and at least 8: 28 gives (20, 24, 28), 32 gives (24, 28, 32).
    """
    return tuple(sorted({round_side(size * part) for part in (0.75, 0.875, 1.0)}))


def space_for(
    name: str, dataset: ImageDataset, resolutions: Sequence[ResolutionLike] | None = None
) -> SearchSpace:
    """A search space with the data's classes, channels and (where None) resolutions.

    A space that has one resolution gets the data's own; one whose resolutions are meant (see
    :attr:`SearchSpace.keeps_resolutions`) keeps them.
    """
    named = space(name)
    own: Sequence[ResolutionLike] = named.resolutions
    if not named.keeps_resolutions:
        side = min(dataset.size.size)
        own = resolutions_for(side) if len(own) > 1 else (round_side(side),)
    return space(name, dataset.num_classes, dataset.channels, resolutions or own)


def native_size_for(resolutions: Sequence[ResolutionLike]) -> Resolution:
    """At what size, at most, images are loaded for networks of some resolutions.

    The largest that is no square, so that nothing of wide images is lost; else a square of the
    longest side, of 64 px at least.

    Raises:
        InvalidInputError: They are of several shapes, for which no one size is right.
    """
    asked = resolutions_of(resolutions)
    largest = asked[-1]
    for one in asked:
        if abs(one.height * largest.width / (one.width * largest.height) - 1) > SAME_SHAPE:
            raise InvalidInputError(
                f"resolutions of several shapes, {one} and {largest}, see other parts of an image",
                "search those of one shape at a time: --resolution",
            )
    return (
        Resolution(max(64, largest.height), max(64, largest.width))
        if all(one.is_square for one in asked)
        else largest
    )


def build_dataset(
    *,
    name: str,
    classes: Sequence[str],
    train: Source,
    val: Source,
    test: Source,
    warnings: Sequence[str],
    source: str,
) -> ImageDataset:
    """Assemble a data set of images of one size: adds the statistics and the fingerprint."""
    mean, std = _statistics(train)
    return ImageDataset(
        name=name,
        classes=tuple(classes),
        channels=train.channels,
        size=Resolution(train.height, train.width),
        train=train,
        val=val,
        test=test,
        mean=mean,
        std=std,
        fingerprint=_fingerprint(classes, (train, val, test)),
        warnings=tuple(warnings),
        source=source,
    )


def _statistics(images: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # Counting the 256 levels is exact and hence independent of order and chunking.
    counts = np.zeros((images.channels, 256), dtype=np.int64)
    for chunk in images.chunks():
        for channel in range(images.channels):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    share = counts / counts.sum(axis=1, keepdims=True)
    levels = np.arange(256) / 255
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(axis=1)
    std = np.maximum(np.sqrt(variance), _STD_FLOOR)
    return tuple(mean.tolist()), tuple(std.tolist())


def _fingerprint(classes: Sequence[str], sources: Sequence[Source]) -> str:
    shapes = [source.shape for source in sources]
    digest = hashlib.sha256(json.dumps([list(classes), shapes]).encode())
    for source in sources:
        source.hash_into(digest)
    return digest.hexdigest()
