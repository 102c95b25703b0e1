"""How long and how things are trained: a recipe, what differs from it, a length that fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from deploynas.data import ImageDataset
from deploynas.errors import require_positive
from deploynas.search.strategy import parsed
from deploynas.spaces import SearchSpace
from deploynas.train import Recipe, SupernetRecipe

R = TypeVar("R", bound=Recipe)
FINE_TUNING = Recipe(epochs=3.0, batch_size=64, learning_rate=0.1)
FROM_SCRATCH = Recipe(epochs=12.0, batch_size=64, learning_rate=0.1)


def for_data(
    recipe: R,
    dataset: ImageDataset,
    epochs: float | None = None,
    changes: Mapping[str, str] | None = None,
) -> R:
    """A recipe for a data set.

    Args:
        recipe: By default; longer over a small data set.
        dataset: Its train split's length counts.
        epochs: Passes, where they were chosen.
        changes: Fields -> text.

    Raises:
        UnknownNameError, InvalidInputError: No such field, or a value that cannot be.
    """
    changes = changes or {}
    if epochs is not None:
        recipe = recipe.model_copy(update={"epochs": require_positive(epochs, "--epochs")})
    elif "epochs" not in changes:
        recipe = recipe.lengthened(len(dataset.train))
    return parsed(type(recipe), changes, "recipe field", recipe) if changes else recipe


def supernet_recipe(
    chosen: SearchSpace,
    dataset: ImageDataset,
    epochs: float | None = None,
    seed: int = 0,
    schedule: str | None = None,
    changes: Mapping[str, str] | None = None,
) -> SupernetRecipe:
    """The recipe of a supernet.

    Args:
        chosen: Its space, whose own schedule is taken where ``schedule`` is None.
        dataset: Its train split's length counts.
        epochs: Passes; 4, or more over a small data set, where None.
        seed: Of every draw.
        schedule: A key of ``SCHEDULES``.
        changes: Fields -> text.
    """
    recipe = SupernetRecipe.model_validate(
        {"seed": seed, "schedule": schedule or chosen.schedules[0]}
    )
    return for_data(recipe, dataset, epochs, changes)
