"""Images for networks with published ImageNet weights: unlabelled, or ImageNet's own.

Such a network was trained on the centre crop that keeps 0.875 of the shorter side, normalised
by ImageNet's statistics, with the 1000 classes in the order of their WordNet identifiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from deploynas.data.decode import Progress, decode, look_at
from deploynas.data.folder import SUFFIXES
from deploynas.data.images import Labels
from deploynas.data.pixels import Pixels
from deploynas.errors import InvalidInputError, MissingFileError
from deploynas.spaces import Resolution

NUM_CLASSES = 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP = 0.875
MAX_CORRUPT = 0.01


def load_unlabelled(
    folder: Path, size: int, num_images: int, *, seed: int = 0, progress: Progress | None = None
) -> Pixels:
    """Random images of a folder and all below it.

    Args:
        folder: Holds image files.
        size: Side in px.
        num_images: At most so many.
        seed: Of the choice.
        progress: Called with the images done and the total.

    Returns:
        uint8 ``(n, size, size, 3)``.

    Raises:
        MissingFileError, InvalidInputError: No folder, no images, or more than 1 % unreadable.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not a folder of images")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise InvalidInputError(f"{folder} holds no images")
    picked = np.random.default_rng(seed).permutation(len(paths))[:num_images]
    pixels, readable = _decode([paths[i] for i in picked], size, folder, progress)
    kept: Pixels = pixels[readable]
    return kept


def load_imagenet(
    folder: Path, size: int, per_class: int, *, seed: int = 0, progress: Progress | None = None
) -> tuple[Pixels, Labels]:
    """Random images of every ImageNet class.

    Args:
        folder: ``val/<class>/*``, or ``<class>/*``, with the 1000 classes under names that sort
            as their WordNet identifiers do.
        size: Side in px.
        per_class: At most so many images of a class.
        seed: Of the choice.
        progress: Called with the images done and the total.

    Returns:
        uint8 ``(n, size, size, 3)`` and int64 ``(n,)``, shuffled.

    Raises:
        MissingFileError, InvalidInputError: No folder, not 1000 classes, a class without images,
            or more than 1 % unreadable.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not a folder of images")
    root = folder / "val" if (folder / "val").is_dir() else folder
    classes = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes) != NUM_CLASSES:
        raise InvalidInputError(
            f"{root} holds {len(classes)} class folders, ImageNet has {NUM_CLASSES}",
            "for images of your own: deploynas retrain RUN --data DIR",
        )
    rng = np.random.default_rng(seed)
    paths: list[Path] = []
    labels: list[int] = []
    for label, one in enumerate(classes):
        files = sorted(p for p in one.iterdir() if p.suffix.lower() in SUFFIXES)
        if not files:
            raise InvalidInputError(f"class folder {one} holds no images")
        picked = rng.permutation(len(files))[:per_class]
        paths += [files[i] for i in picked]
        labels += [label] * len(picked)
    order = rng.permutation(len(paths))
    pixels, readable = _decode([paths[i] for i in order], size, root, progress)
    return pixels[readable], np.array(labels, np.int64)[order][readable]


def _decode(
    paths: Sequence[Path], size: int, folder: Path, progress: Progress | None
) -> tuple[Pixels, np.ndarray]:
    look = replace(look_at(paths[:32], size), size=Resolution(size, size), channels=3, crop=CROP)
    pixels, readable = decode(paths, look, progress)
    bad = np.flatnonzero(~readable)
    if len(bad) > MAX_CORRUPT * len(paths):
        raise InvalidInputError(
            f"{len(bad):,} of {len(paths):,} images in {folder} could not be read, the first is "
            f"{paths[bad[0]].relative_to(folder)}",
            "replace or delete them",
        )
    return pixels, readable
