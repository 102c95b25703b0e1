"""The images of a record: from where they were, or where they are now."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deploynas.data import ImageDataset, Split, load_dataset, native_size_for
from deploynas.errors import InvalidInputError
from deploynas.search import DataRecord

IMAGENET_PER_CLASS = 2  # images that calibrate and judge int8


def open_data(record: DataRecord, moved_to: Path | None = None) -> ImageDataset:
    """The data set of a record, from where it was or where it moved to.

    Raises:
        MissingFileError, InvalidInputError: It is not there, or is another one.
    """
    dataset = load_for(record, moved_to)
    if dataset.fingerprint != record.fingerprint:
        raise InvalidInputError(
            f"this needs {record.source}, which is not this data", "pass its --data"
        )
    return dataset


def load_for(record: DataRecord, path: Path | None) -> ImageDataset:
    """A data set at the sides that a network of ``record`` can use, with its channels."""
    where = Path(record.source)
    dataset = load_dataset(
        path or (where if where.exists() else None), max_size=native_size_for([record.size])
    )
    return dataset.with_channels(record.channels)


def data_of(own: DataRecord, path: Path | None) -> ImageDataset:
    """Images of a network's own classes: what it was trained on, or some of ImageNet's.

    Args:
        own: What the network was trained on.
        path: Where its data is now, None where it was; ImageNet's validation images where the
            network is a published one. Half of those are the train split, half the other two.

    Raises:
        MissingFileError, InvalidInputError: It is not there, or is another one.
    """
    if own.fingerprint:
        return open_data(own, path)
    if path is None:
        raise InvalidInputError(
            "a published network has no images of its own here",
            "pass --data with ImageNet's validation images, a folder a class",
        )
    from deploynas.data.imagenet import load_imagenet

    images, labels = load_imagenet(path, own.size.height, IMAGENET_PER_CLASS)
    whole, half = Split(images, labels), len(labels) // 2
    train, val = whole.take(np.arange(half)), whole.take(np.arange(half, len(labels)))
    return ImageDataset(
        name=own.name, classes=own.classes, channels=own.channels, size=own.size, train=train,
        val=val, test=val, mean=own.mean, std=own.std, fingerprint="", warnings=(),
        source=str(path),
    )  # fmt: skip
