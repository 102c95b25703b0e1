"""Seeded stratified splits, and the checks that every class survives them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploynas.data.images import Labels
from deploynas.errors import InvalidInputError


def stratified_mask(labels: Labels, count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose about ``count`` of the labels, each class by its share.

    Every class gives at least one and keeps at least one, which for tiny classes takes
    precedence over ``count``.

    Args:
        labels: int64 (n,), every class with two or more.
        count: How many to choose.
        rng: The source of randomness; it advances.

    Returns:
        bool (n,), true where chosen.
    """
    _, class_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    exact = sizes * (count / len(labels))
    quota = np.floor(exact).astype(np.int64)
    # The largest remainders get what rounding down has left over.
    order = np.argsort(quota - exact, kind="stable")
    quota[order[: max(0, count - int(quota.sum()))]] += 1
    quota = np.clip(quota, 1, sizes - 1)
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for index, amount in enumerate(quota):
        members = np.flatnonzero(class_of == index)
        chosen[rng.permutation(members)[:amount]] = True
    return chosen


def check_classes(classes: Sequence[str], path: Path) -> None:
    """Refuse fewer than two classes.

    Raises:
        InvalidInputError: There is nothing to tell apart.
    """
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no classes"
        raise InvalidInputError(f"{path} has {found}, a classifier needs two or more")


def check_counts(
    labels: Labels, classes: Sequence[str], minimum: int, path: Path, what: str
) -> None:
    """Refuse a class with fewer than ``minimum`` images.

    Args:
        labels: int64 (n,).
        classes: The class names.
        minimum: The fewest images of a class.
        path: Named in the message.
        what: Ends the message: what the images are for.

    Raises:
        InvalidInputError: Names the first such class.
    """
    counts = np.bincount(labels, minlength=len(classes))
    for name, count in zip(classes, counts.tolist(), strict=True):
        if count < minimum:
            images = "image" if count == 1 else "images"
            raise InvalidInputError(
                f"class {name!r} in {path} has {count} {images}, needs {minimum} or more {what}"
            )
