"""Labelled images as whoever trains, judges or checks asks for them: by rows, at a size.

A set in memory ships. Where else images may be, on disk or elsewhere, is another subclass of
:class:`Source`; whoever uses one does not learn which.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploynas.data.pixels import Pixels, resize, to_channels

Labels = NDArray[np.int64]
Rows = NDArray[np.int64]


class Digest(Protocol):
    """What :mod:`hashlib` gives."""

    def update(self, data: Any, /) -> None:
        """Take more bytes in."""
        ...


class Source(ABC):
    """Images with labels: one part of a data set.

    Attributes:
        labels: int64 (n,), indices into the data set's ``classes``.
        height: Of an image as it is kept, in px.
        width: The same.
        channels: 1 (grey) or 3 (RGB).
        in_memory: Whether all images are at hand; a GPU then holds all of them, if they fit.
    """

    labels: Labels
    height: int
    width: int
    channels: int
    in_memory = False

    @abstractmethod
    def batch(self, rows: Rows, height: int, width: int) -> Pixels:
        """Some images at a size; a row gives the same pixels whenever it is asked for.

        Nothing is distorted: of images of another shape the centre is kept, as
        :func:`deploynas.data.resize` does.

        Args:
            rows: int64 (m,), in any order, each as often as it is named.
            height: In px.
            width: In px.

        Returns:
            uint8 (m, height, width, channels).

        Raises:
            InvalidInputError: A side is not positive.
        """

    @abstractmethod
    def hash_into(self, digest: Digest) -> None:
        """Everything that says which images and labels these are, in their order."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Images, height, width, channels."""
        return len(self), self.height, self.width, self.channels

    @property
    def identity(self) -> str:
        """The same for the same images and labels in the same order, and for no others."""
        digest = hashlib.sha256(repr(self.shape).encode())
        self.hash_into(digest)
        return digest.hexdigest()

    def chunks(self, size: int = 1_024) -> Iterator[Pixels]:
        """All images in order, as they are kept."""
        for start in range(0, len(self), size):
            rows = np.arange(start, min(start + size, len(self)))
            yield self.batch(rows, self.height, self.width)

    def first(self, num_images: int) -> Pixels:
        """The first images, as they are kept."""
        rows = np.arange(min(num_images, len(self)))
        return self.batch(rows, self.height, self.width)

    def take(self, rows: Rows) -> Source:
        """Some images in the order of ``rows``."""
        return _Part(self, rows)

    def with_channels(self, channels: int) -> Source:
        """The same images in grey (1) or RGB (3)."""
        return self if channels == self.channels else _Recoloured(self, channels)


class Split(Source):
    """Images in memory.

    Attributes:
        images: uint8 (n, h, w, c), c is 1 or 3.
    """

    in_memory = True

    def __init__(self, images: Pixels, labels: Labels) -> None:
        self.images, self.labels = images, labels
        _, self.height, self.width, self.channels = images.shape
        self._sized: dict[tuple[int, int], Pixels] = {}

    def batch(self, rows: Rows, height: int, width: int) -> Pixels:
        """See :class:`Source`; all images are resized at the first question, and kept."""
        size = (height, width)
        if size not in self._sized:
            self._sized[size] = resize(self.images, height, width)
        return self._sized[size][rows]

    def hash_into(self, digest: Digest) -> None:
        """See :class:`Source`."""
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)

    def take(self, rows: Rows) -> Split:
        """See :class:`Source`."""
        return Split(self.images[rows], self.labels[rows])

    def with_channels(self, channels: int) -> Split:
        """See :class:`Source`."""
        if channels == self.channels:
            return self
        return Split(to_channels(self.images, channels), self.labels)


class _Part(Source):
    """Some of another source's images."""

    def __init__(self, whole: Source, rows: Rows) -> None:
        self._whole, self._rows = whole, rows
        self.labels, self.in_memory = whole.labels[rows], whole.in_memory
        self.height, self.width, self.channels = whole.shape[1:]

    def batch(self, rows: Rows, height: int, width: int) -> Pixels:
        return self._whole.batch(self._rows[rows], height, width)

    def hash_into(self, digest: Digest) -> None:
        self._whole.hash_into(digest)
        digest.update(np.ascontiguousarray(self._rows, dtype="<i8").data)


class _Recoloured(Source):
    """Another source's images in grey or RGB."""

    def __init__(self, origin: Source, channels: int) -> None:
        self._origin, self.channels = origin, channels
        self.labels, self.in_memory = origin.labels, origin.in_memory
        self.height, self.width = origin.height, origin.width

    def batch(self, rows: Rows, height: int, width: int) -> Pixels:
        return to_channels(self._origin.batch(rows, height, width), self.channels)

    def hash_into(self, digest: Digest) -> None:
        self._origin.hash_into(digest)
        digest.update(bytes([self.channels]))
