"""Data sets in the IDX format of MNIST and Fashion-MNIST, gzipped or plain."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploynas.data.dataset import ImageDataset, build_dataset
from deploynas.data.decode import Progress, native_size
from deploynas.data.images import Labels, Split
from deploynas.data.pixels import Pixels, resize
from deploynas.data.splits import check_classes, check_counts, stratified_mask
from deploynas.errors import InvalidInputError, MissingFileError
from deploynas.spaces import ResolutionLike

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FILE_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MAX_VALIDATION = 5000

_UBYTE = 8  # the IDX code of unsigned bytes


def find_idx(directory: Path) -> list[Path | None]:
    """Look for the four standard files; the gzipped one first, as it carries a checksum."""
    found: list[Path | None] = []
    for name in FILE_NAMES:
        candidates = (directory / f"{name}.gz", directory / name)
        found.append(next((path for path in candidates if path.is_file()), None))
    return found


class IdxFiles:
    """The reader of a folder with any of the four files."""

    def reads(self, path: Path) -> bool:
        """See :class:`deploynas.data.Reader`."""
        return any(find_idx(path))

    def load(
        self, path: Path, *, seed: int, max_size: ResolutionLike, progress: Progress | None = None
    ) -> ImageDataset:
        """See :class:`deploynas.data.Reader`."""
        resolved = path.resolve()
        # torchvision keeps the files in FashionMNIST/raw, hence the parent.
        fashion = any("fashion" in part.lower() for part in resolved.parts[-2:])
        return load_idx(
            path, name=resolved.name, source=str(path), fashion=fashion, seed=seed,
            max_size=max_size,
        )  # fmt: skip


READER = IdxFiles()


def load_idx(
    directory: Path,
    *,
    name: str,
    source: str,
    fashion: bool,
    seed: int,
    max_size: ResolutionLike,
    warnings: tuple[str, ...] = (),
) -> ImageDataset:
    """Load the four IDX files of ``directory``.

    The validation split is a seeded stratified part of the training images: 5,000, or a
    tenth when that is less.

    Args:
        directory: Holds the files.
        name: The data set's name.
        source: The data set's source.
        fashion: Call ten classes by Fashion-MNIST's names, not by their numbers.
        seed: Seed of the validation split.
        max_size: See :func:`deploynas.data.load_dataset`.
        warnings: Carried over into the data set.

    Raises:
        MissingFileError: One of the four files is missing.
        InvalidInputError: A file is truncated or garbled, or a class is too small.
    """
    files: list[Path] = []
    for wanted, found in zip(FILE_NAMES, find_idx(directory), strict=True):
        if found is None:
            raise MissingFileError(f"{directory} lacks {wanted}.gz (or {wanted})")
        files.append(found)
    images, raw_labels = _read_pair(files[0], files[1])
    test_images, raw_test_labels = _read_pair(files[2], files[3])

    values = np.unique(raw_labels)
    classes = tuple(str(value) for value in values.tolist())
    if fashion and len(classes) == len(FASHION_CLASSES):
        classes = FASHION_CLASSES
    check_classes(classes, files[1])
    unknown = np.setdiff1d(raw_test_labels, values)
    if unknown.size:
        raise InvalidInputError(
            f"{files[3]} has the label {unknown[0]}, which {files[1].name} has not"
        )
    labels = np.searchsorted(values, raw_labels).astype(np.int64)
    test_labels = np.searchsorted(values, raw_test_labels).astype(np.int64)
    check_counts(labels, classes, 2, files[1], "to train and to validate")
    check_counts(test_labels, classes, 1, files[3], "to test")

    size = native_size(min(images.shape[1:3]), max_size).size
    images = resize(images, *size)
    count = min(MAX_VALIDATION, len(labels) // 10)
    held_out = stratified_mask(labels, count, np.random.default_rng(seed))
    return build_dataset(
        name=name,
        classes=classes,
        train=Split(images[~held_out], labels[~held_out]),
        val=Split(images[held_out], labels[held_out]),
        test=Split(resize(test_images, *size), test_labels),
        warnings=warnings,
        source=source,
    )


def _read_pair(images_path: Path, labels_path: Path) -> tuple[Pixels, Labels]:
    images = _read_idx(images_path, dimensions=3)
    labels = _read_idx(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise InvalidInputError(
            f"{labels_path} has {len(labels):,} labels for the {len(images):,} images of "
            f"{images_path.name}"
        )
    return images[..., None], labels.astype(np.int64)


def _read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise InvalidInputError(f"{path} is truncated or not a gzip file") from None
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror or error}") from None
    if content[:4] != bytes((0, 0, _UBYTE, dimensions)):
        raise InvalidInputError(
            f"{path} is not an IDX file of unsigned bytes in {dimensions} dimensions"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise InvalidInputError(f"{path} is truncated: its header is incomplete")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    expected = 1
    for length in shape:
        expected *= length
    if expected == 0:
        raise InvalidInputError(f"{path} is empty")
    if len(content) - start != expected:
        raise InvalidInputError(
            f"{path} is truncated or garbled: {len(content) - start:,} bytes of content where "
            f"its header announces {expected:,}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
