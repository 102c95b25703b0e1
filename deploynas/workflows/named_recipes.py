"""Recipes that people know by name, as data: what each changes of a verb's own."""

from __future__ import annotations

from collections.abc import Mapping

from deploynas.errors import UnknownNameError

#: Name -> field of a recipe -> text.
RECIPES: dict[str, dict[str, str]] = {
    "small": {},  # small images, a few epochs
    "standard": {
        "augment_from": "0", "weight_decay": "1e-4", "label_smoothing": "0.1", "ema": "0.999",
    },
    "strong": {
        "augment_from": "0", "weight_decay": "1e-4", "label_smoothing": "0.1", "ema": "0.999",
        "operations": "9", "erased": "0.25", "mixup": "0.2", "cutmix": "1.0", "clip": "5",
    },
}  # fmt: skip


def changes_of(name: str, typed: Mapping[str, str]) -> dict[str, str]:
    """A recipe by name, some fields of it changed: field -> text.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return {**RECIPES[name], **typed}
