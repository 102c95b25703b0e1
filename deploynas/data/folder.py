"""Image folders: ``<class>/*`` or ``train/<class>/*`` with ``val`` and/or ``test``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploynas.data.dataset import ImageDataset, build_dataset
from deploynas.data.decode import Progress, decode, look_at
from deploynas.data.images import Labels, Split
from deploynas.data.splits import check_classes, check_counts, stratified_mask
from deploynas.errors import InvalidInputError
from deploynas.spaces import ResolutionLike

SUFFIXES = frozenset(
    f".{suffix}" for suffix in "jpg jpeg png bmp gif webp ppm pgm tif tiff".split()
)
MAX_VALIDATION = 10_000
MAX_CORRUPT = 0.01

_SAMPLE = 200
_NAMED = 3  # corrupt files that the warning names
_PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class _Listing:
    """Files and their labels: ``part`` is 0 for training, 1 validation, 2 test."""

    classes: tuple[str, ...]
    paths: list[Path]
    labels: Labels
    part: NDArray[np.int64]
    warnings: tuple[str, ...]


class ImageFolder:
    """The reader of any folder that no other one reads."""

    def reads(self, path: Path) -> bool:
        """See :class:`deploynas.data.Reader`."""
        return path.is_dir()

    def load(
        self, path: Path, *, seed: int, max_size: ResolutionLike, progress: Progress | None = None
    ) -> ImageDataset:
        """See :class:`deploynas.data.Reader`."""
        return load_folder(path, seed=seed, max_size=max_size, progress=progress)


READER = ImageFolder()


def load_folder(
    root: Path, *, seed: int, max_size: ResolutionLike, progress: Progress | None = None
) -> ImageDataset:
    """Load an image folder.

    ``train/<class>/*`` with ``val`` and ``test`` is used as it stands. With one of the two,
    that one is the test split, and validation is a seeded stratified tenth of ``train``, at
    most 10,000 images. ``<class>/*`` is split 80/10/10.

    Args:
        root: An existing directory.
        seed: Seed of the splits.
        max_size: See :func:`deploynas.data.load_dataset`.
        progress: Called with the images done and the total.

    Raises:
        InvalidInputError: No images, fewer than two classes, classes that differ between the
            parts, an empty or too small class, or more than 1 % unreadable images.
    """
    folders = {folder.name: folder for folder in _visible_folders(root)}
    if "train" in folders and ("val" in folders or "test" in folders):
        listing = _list_parts(root, folders, seed)
    else:
        listing = _list_classes(root, folders, seed)
    look = look_at(_sample(listing), max_size)
    pixels, readable = decode(listing.paths, look, progress)
    warnings = [*listing.warnings, *_corrupt_warning(root, listing.paths, readable)]
    splits: list[Split] = []
    for number, what in enumerate(("to train", "to validate", "to test")):
        chosen = np.flatnonzero(readable & (listing.part == number))
        labels = listing.labels[chosen]
        check_counts(labels, listing.classes, 1, root, f"that can be read {what}")
        splits.append(Split(pixels[chosen], labels))
    train, val, test = splits
    return build_dataset(
        name=root.resolve().name,
        classes=listing.classes,
        train=train,
        val=val,
        test=test,
        warnings=warnings,
        source=str(root),
    )


def _list_classes(root: Path, folders: dict[str, Path], seed: int) -> _Listing:
    if not folders:
        raise InvalidInputError(
            f"{root} holds neither class folders nor IDX files",
            "expected <class>/*.jpg, or train/<class>/*.jpg with test/<class>/*.jpg",
        )
    for name in _PARTS:
        if name in folders and _visible_folders(folders[name]):
            lacks = "neither val/ nor test/" if name == "train" else "no train/"
            raise InvalidInputError(
                f"{root} has {name}/ but {lacks}", f"use {folders[name]} to have it split"
            )
    classes = tuple(sorted(folders))
    check_classes(classes, root)
    paths, labels = _list_part(root, classes)
    check_counts(labels, classes, 3, root, "to train, validate and test")
    rng = np.random.default_rng(seed)
    part = np.zeros(len(labels), dtype=np.int64)
    for number in (2, 1):
        rest = np.flatnonzero(part == 0)
        chosen = stratified_mask(labels[rest], round(len(labels) / 10), rng)
        part[rest[chosen]] = number
    return _Listing(classes, paths, labels, part, ())


def _list_parts(root: Path, folders: dict[str, Path], seed: int) -> _Listing:
    classes = tuple(folder.name for folder in _visible_folders(folders["train"]))
    check_classes(classes, folders["train"])
    present = [name for name in _PARTS if name in folders]
    paths: list[Path] = []
    labels: list[Labels] = []
    part: list[NDArray[np.int64]] = []
    for name in present:
        _check_same_classes(folders[name], classes)
        part_paths, part_labels = _list_part(folders[name], classes)
        number = _PARTS.index(name) if len(present) == 3 else 2 * (name != "train")
        paths += part_paths
        labels.append(part_labels)
        part.append(np.full(len(part_labels), number))
    check_counts(labels[0], classes, 2, folders["train"], "to train and to validate")
    if len(present) == 2:
        count = min(MAX_VALIDATION, round(len(labels[0]) / 10))
        part[0][stratified_mask(labels[0], count, np.random.default_rng(seed))] = 1
    ignored = sorted(set(folders) - set(_PARTS))
    warnings = (
        (f"folders beside train, val and test were ignored: {', '.join(ignored)}",)
        if ignored
        else ()
    )
    return _Listing(classes, paths, np.concatenate(labels), np.concatenate(part), warnings)


def _check_same_classes(folder: Path, classes: Sequence[str]) -> None:
    names = {child.name for child in _visible_folders(folder)}
    for name in classes:
        if name not in names:
            raise InvalidInputError(f"{folder} lacks the class {name!r} of train")
    for name in sorted(names.difference(classes)):
        raise InvalidInputError(f"{folder} has the class {name!r}, which train has not")


def _list_part(folder: Path, classes: Sequence[str]) -> tuple[list[Path], Labels]:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = [
            path
            for path in _children(folder / name)
            if path.suffix.lower() in SUFFIXES and (path.is_file() or path.is_symlink())
        ]
        if not files:
            raise InvalidInputError(f"class folder {folder / name} holds no images")
        paths += files
        labels += [label] * len(files)
    return paths, np.array(labels, dtype=np.int64)


def _sample(listing: _Listing) -> list[Path]:
    # The first of every class, then the second of every class, and so on.
    is_train = listing.part == 0
    by_class = [
        np.flatnonzero(is_train & (listing.labels == label))
        for label in range(len(listing.classes))
    ]
    longest = max(len(indices) for indices in by_class)
    order = [
        int(indices[rank])
        for rank in range(min(longest, _SAMPLE))
        for indices in by_class
        if rank < len(indices)
    ]
    return [listing.paths[index] for index in order[:_SAMPLE]]


def _corrupt_warning(
    root: Path, paths: Sequence[Path], readable: NDArray[np.bool_]
) -> tuple[str, ...]:
    corrupt = [str(paths[index].relative_to(root)) for index in np.flatnonzero(~readable).tolist()]
    if not corrupt:
        return ()
    share = f"{len(corrupt):,} of {len(paths):,} images"
    if len(corrupt) > MAX_CORRUPT * len(paths):
        raise InvalidInputError(
            f"{share} in {root} could not be read, the first is {corrupt[0]}",
            "replace or delete them",
        )
    named = ", ".join(corrupt[:_NAMED]) + (", ..." if len(corrupt) > _NAMED else "")
    verb = "was" if len(corrupt) == 1 else "were"
    return (f"{share} could not be read and {verb} skipped: {named}",)


def _visible_folders(folder: Path) -> list[Path]:
    folders = [path for path in _children(folder) if path.is_dir()]
    for path in folders:
        if not path.name.isprintable():
            raise InvalidInputError(
                f"{folder} has a class with the unprintable name {path.name!r}"
            )
    return folders


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InvalidInputError(f"cannot read {folder}: {error.strerror or error}") from None
