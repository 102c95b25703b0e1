"""What every source of images, and every reader that makes data sets of them, promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deploynas.data import ImageDataset, Reader, Source
from deploynas.errors import InvalidInputError
from deploynas.testing.report import promises, require

NUM_IMAGES = 64  # looked at, at most


@promises
def check_source(source: Source) -> None:
    """Check a source, that of another package or ours.

    Raises:
        AssertionError: It breaks a promise.
    """
    num, labels = len(source), source.labels
    require(num > 0, "there are no images")
    require(labels.shape == (num,), f"labels have shape {labels.shape}, not ({num},)")
    require(labels.dtype == np.int64, f"labels are {labels.dtype}, not int64")
    require(labels.min() >= 0, "a label is negative")
    require(source.channels in (1, 3), f"{source.channels} channels are neither grey nor RGB")
    rows = np.random.default_rng(0).permutation(num)[:NUM_IMAGES]
    height, width = source.height, source.width
    for sides in ((height, width), (max(1, height // 2), max(1, width // 3))):
        _check_batches(source, rows, *sides)
    for sides in ((0, width), (height, -1)):
        _check_refused(source, rows, *sides)
    _check_parts(source, rows)
    _check_colours(source, rows)


def check_reader(reader: Reader, path: Path) -> ImageDataset:
    """Check a reader on data that it takes.

    Args:
        reader: Of another package, or ours.
        path: Of that data.

    Returns:
        The data set.

    Raises:
        AssertionError: It, or a source of its data set, breaks a promise.
    """
    require(reader.reads(path), f"the reader does not take {path}")
    require(not reader.reads(path / "no such"), "the reader takes what does not exist")
    found, again = (reader.load(path, seed=0, max_size=64) for _ in range(2))
    require(found.fingerprint == again.fingerprint, "the same data has two fingerprints")
    require(max(found.size.size) <= 64, f"images of {found.size} px, though 64 is the most")
    require(len(found.mean) == len(found.std) == found.channels, "a statistic a channel is due")
    for source in (found.train, found.val, found.test):
        check_source(source)
        require(source.labels.max() < found.num_classes, "a label is no class")
        require(source.channels == found.channels, "parts differ in channels")
        size = (source.height, source.width)
        require(size == found.size.size, f"images of {size} px among those of {found.size} px")
    present = np.unique(found.train.labels)
    require(len(present) == found.num_classes, "a class has no image to train on")
    return found


def _check_batches(source: Source, rows: np.ndarray, height: int, width: int) -> None:
    where = f"at {height} x {width} px"
    whole = source.batch(rows, height, width)
    shape = (len(rows), height, width, source.channels)
    require(whole.shape == shape, f"{where} a batch has shape {whole.shape}, not {shape}")
    require(whole.dtype == np.uint8, f"{where} pixels are {whole.dtype}, not uint8")
    mixed = np.random.default_rng(1).integers(0, len(rows), len(rows))
    require(
        np.array_equal(source.batch(rows[mixed], height, width), whole[mixed]),
        f"{where} an image depends on what else is asked for, or how often",
    )
    none = source.batch(rows[:0], height, width)
    require(none.shape == (0, *shape[1:]), f"{where} no rows give shape {none.shape}")


def _check_refused(source: Source, rows: np.ndarray, height: int, width: int) -> None:
    try:
        source.batch(rows, height, width)
    except InvalidInputError:
        return
    require(False, f"images of {height} x {width} px are not refused")


def _check_parts(source: Source, rows: np.ndarray) -> None:
    height, width = source.height, source.width
    part = source.take(rows)
    require(np.array_equal(part.labels, source.labels[rows]), "a part has other labels")
    require(
        np.array_equal(
            part.batch(np.arange(len(rows)), height, width), source.batch(rows, height, width)
        ),
        "a part has other images",
    )
    require(part.identity == source.take(rows).identity, "equal parts differ in identity")
    require(source.identity == source.identity, "the identity changes")
    if len(rows) > 1:
        require(source.take(rows[1:]).identity != part.identity, "parts share an identity")


def _check_colours(source: Source, rows: np.ndarray) -> None:
    for channels in (1, 3):
        other = source.with_channels(channels)
        found = other.batch(rows, source.height, source.width)
        require(
            found.shape[-1] == other.channels == channels,
            f"asked for {channels} channels, images have {found.shape[-1]}",
        )
    if source.channels == 1:
        require(np.array_equal(found[..., 0], found[..., 2]), "grey turns into colours")
