"""Image folders: ``<class>/*`` or ``train/<class>/*`` with ``val`` and/or ``test``.

What an image is, its content says. Classes stand in the order of their names, those that are
numbers in the order of the numbers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from deploynas.contents import shown
from deploynas.data.dataset import ImageDataset, build_dataset
from deploynas.data.decode import Decoded, Progress, decode, is_image, look_at
from deploynas.data.images import Labels, Split
from deploynas.data.splits import check_classes, check_counts, stratified_mask
from deploynas.errors import InvalidInputError
from deploynas.spaces import ResolutionLike

# Files that are taken for images unseen, so that a broken one is noticed.
_SUFFIXES = frozenset(
    f".{suffix}" for suffix in "jpg jpeg png bmp gif webp ppm pgm tif tiff".split()
)
MAX_VALIDATION = 10_000
MAX_CORRUPT = 0.01

_SAMPLE = 200
_NAMED = 3  # corrupt files that the warning names
_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_IGNORED = ("__MACOSX",)


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

    ``train/<class>/*`` with ``val`` and ``test`` is used as it stands; ``training``, ``valid``,
    ``validation``, ``dev`` and ``testing`` are other names of these, in capitals or not. With one
    of the two, that one is the test split, and validation is a seeded stratified tenth of
    ``train``, at most 10,000 images. ``<class>/*`` is split 80/10/10. Images may lie in folders
    below their class's. A single folder in which all of that is stands for it.

    Args:
        root: An existing directory.
        seed: Seed of the splits.
        max_size: See :func:`deploynas.data.load_dataset`.
        progress: Called with the images done and the total.

    Raises:
        InvalidInputError: No images, fewer than two classes, classes that differ between the
            parts, an empty or too small class, or more than 1 % unreadable images.
    """
    parts, others = _parts(root)
    if not parts:  # an archive that was unpacked into a folder of its own
        inner = list(others.values())
        if len(inner) == 1 and len(_visible_folders(inner[0])) > 1:
            whole = load_folder(inner[0], seed=seed, max_size=max_size, progress=progress)
            return replace(whole, source=str(root))
    if "train" in parts and len(parts) > 1:
        listing = _list_parts(root, parts, sorted(others), seed)
    else:
        listing = _list_classes(root, parts, others, seed)
    look = look_at(_sample(listing), max_size)
    decoded = decode(listing.paths, look, progress)
    warnings = [*listing.warnings, *decoded.notes, *faults_of(root, listing.paths, decoded)]
    splits: list[Split] = []
    for number, what in enumerate(("to train", "to validate", "to test")):
        chosen = np.flatnonzero(decoded.readable & (listing.part == number))
        labels = listing.labels[chosen]
        check_counts(labels, listing.classes, 1, root, f"that can be read {what}")
        splits.append(Split(decoded.pixels[chosen], labels))
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


def class_folders(root: Path) -> list[Path]:
    """The folders of ``root`` in the order of their classes: of numbers where all are some."""
    folders = _visible_folders(root)
    if all(folder.name.isdecimal() for folder in folders):
        return sorted(folders, key=lambda folder: (int(folder.name), folder.name))
    return folders


def images_below(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Image files of a folder and all below it, and how many others by their suffixes."""
    found: list[Path] = []
    others: Counter[str] = Counter()
    seen = {folder.resolve()}  # links may lead in circles
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        kept = {n: Path(parent, n).resolve() for n in folders if _is_visible(n)}
        folders[:] = [name for name, real in kept.items() if real not in seen]
        seen.update(kept.values())
        for path in (Path(parent, name) for name in names if _is_visible(name)):
            if path.suffix.lower() in _SUFFIXES or is_image(path):
                found.append(path)
            else:
                others[path.suffix.lower() or path.name] += 1
    return sorted(found), others


def _parts(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Folders that are ``train``, ``val`` or ``test`` under any usual name, and the others."""
    folders = class_folders(root)
    parts: dict[str, Path] = {}
    for part, names in _PARTS.items():
        meant = [folder for folder in folders if folder.name.lower() in names]
        meant = [folder for folder in meant if part == "train" or _visible_folders(folder)]
        if len(meant) > 1:
            raise InvalidInputError(
                f"{root} has both {meant[0].name}/ and {meant[1].name}/",
                f"which is the {part} split? Move the other one away",
            )
        if meant:
            parts[part] = meant[0]
    if len(parts) == 1 and not _visible_folders(*parts.values()):
        parts = {}  # a class of that name
    return parts, {f.name: f for f in folders if f not in parts.values()}


def _list_classes(
    root: Path, parts: Mapping[str, Path], folders: Mapping[str, Path], seed: int
) -> _Listing:
    if not folders and not parts:
        raise InvalidInputError(
            f"{root} holds neither class folders nor IDX files",
            "expected <class>/*.jpg, or train/<class>/*.jpg with test/<class>/*.jpg",
        )
    for name, folder in parts.items():
        lacks = "neither val/ nor test/" if name == "train" else "no train/"
        raise InvalidInputError(
            f"{root} has {folder.name}/ but {lacks}", f"use {folder} to have it split"
        )
    classes = tuple(folders)
    check_classes(classes, root)
    paths, labels, left_out = _list_part(root, classes)
    check_counts(labels, classes, 3, root, "to train, validate and test")
    rng = np.random.default_rng(seed)
    part = np.zeros(len(labels), dtype=np.int64)
    for number in (2, 1):
        rest = np.flatnonzero(part == 0)
        chosen = stratified_mask(labels[rest], round(len(labels) / 10), rng)
        part[rest[chosen]] = number
    return _Listing(classes, paths, labels, part, left_out_warning(left_out))


def _list_parts(
    root: Path, folders: Mapping[str, Path], ignored: Sequence[str], seed: int
) -> _Listing:
    classes = tuple(folder.name for folder in class_folders(folders["train"]))
    check_classes(classes, folders["train"])
    paths: list[Path] = []
    labels: list[Labels] = []
    part: list[NDArray[np.int64]] = []
    left_out: Counter[str] = Counter()
    present = [name for name in _PARTS if name in folders]
    for name in present:
        _check_same_classes(folders[name], classes)
        part_paths, part_labels, others = _list_part(folders[name], classes)
        number = list(_PARTS).index(name) if len(present) == 3 else 2 * (name != "train")
        paths += part_paths
        left_out += others
        labels.append(part_labels)
        part.append(np.full(len(part_labels), number))
    check_counts(labels[0], classes, 2, folders["train"], "to train and to validate")
    if len(present) == 2:
        count = min(MAX_VALIDATION, round(len(labels[0]) / 10))
        part[0][stratified_mask(labels[0], count, np.random.default_rng(seed))] = 1
    warnings = left_out_warning(left_out)
    if ignored:
        names = ", ".join(folders[name].name for name in present)
        warnings += (f"folders beside {names} were ignored: {', '.join(ignored)}",)
    return _Listing(classes, paths, np.concatenate(labels), np.concatenate(part), warnings)


def _check_same_classes(folder: Path, classes: Sequence[str]) -> None:
    names = {child.name for child in _visible_folders(folder)}
    for name in classes:
        if name not in names:
            raise InvalidInputError(f"{folder} lacks the class {name!r} of train")
    for name in sorted(names.difference(classes)):
        raise InvalidInputError(f"{folder} has the class {name!r}, which train has not")


def _list_part(folder: Path, classes: Sequence[str]) -> tuple[list[Path], Labels, Counter[str]]:
    paths: list[Path] = []
    labels: list[int] = []
    left_out: Counter[str] = Counter()
    for label, name in enumerate(classes):
        files, others = images_below(folder / name)
        if not files:
            raise InvalidInputError(f"class folder {folder / name} holds no images")
        paths += files
        labels += [label] * len(files)
        left_out += others
    return paths, np.array(labels, dtype=np.int64), left_out


def left_out_warning(others: Mapping[str, int]) -> tuple[str, ...]:
    """A sentence on the files that are no images, or none that can be decoded here."""
    if not others:
        return ()
    counts = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(others.items()))
    return (
        f"files that are no images, or of no format that is read here, are left out: {counts}",
    )


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


def faults_of(root: Path, paths: Sequence[Path], decoded: Decoded) -> tuple[str, ...]:
    """A sentence on the files that could not be read, where they are few.

    Raises:
        InvalidInputError: More than :data:`MAX_CORRUPT`; all are among its details.
    """
    corrupt = [
        f"{shown(paths[row].relative_to(root))} ({why})" for row, why in decoded.faults.items()
    ]
    if not corrupt:
        return ()
    share = f"{len(corrupt):,} of {len(paths):,} images"
    if len(corrupt) > MAX_CORRUPT * len(paths):
        raise InvalidInputError(
            f"{share} in {root} could not be read, the first is {corrupt[0]}",
            "replace or delete them",
            corrupt,
        )
    named = ", ".join(corrupt[:_NAMED]) + (", ..." if len(corrupt) > _NAMED else "")
    verb = "was" if len(corrupt) == 1 else "were"
    return (f"{share} could not be read and {verb} skipped: {named}",)


def _visible_folders(folder: Path) -> list[Path]:
    try:
        children = sorted(path for path in folder.iterdir() if _is_visible(path.name))
    except OSError as error:
        _refuse(error)
    folders = [path for path in children if path.is_dir() and path.name not in _IGNORED]
    for path in folders:
        if not path.name.isprintable():
            raise InvalidInputError(
                f"{folder} has a class with the unprintable name {path.name!r}"
            )
    return folders


def _is_visible(name: str) -> bool:
    return not name.startswith(".")


def _refuse(error: OSError) -> NoReturn:
    raise InvalidInputError(f"cannot read {error.filename}: {error.strerror or error}") from None
