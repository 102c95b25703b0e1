"""Supernet training: the sandwich rule with in-place distillation.

Each step trains the largest subnet on the labels and the smallest and some random subnets on
the largest's soft predictions (Yu and Huang 2019, "Universally slimmable networks", sections
3.2 and 3.3). One resolution is drawn a step (Cai et al. 2020, elastic resolution).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from deploynas.data import ImageDataset
from deploynas.nn import Supernet
from deploynas.spaces import Archs, MobileSpace
from deploynas.train.loop import Recipe, StepImages, TrainingProgress, run_training


class SupernetRecipe(Recipe):
    """How to train a supernet.

    Attributes:
        teacher_ramp: Share of the steps over which the targets of the other subnets move from
            the labels to the largest's predictions, which teach nothing at the start.
        num_random: Random subnets a step, beside the largest and the smallest.
    """

    epochs: float = 4.0
    teacher_ramp: float = 0.3
    num_random: int = 1


def train_supernet(
    supernet: Supernet,
    dataset: ImageDataset,
    recipe: SupernetRecipe,
    *,
    checkpoint: Path | None = None,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
) -> None:
    """Train in place; arguments and errors as in :func:`run_training`."""
    space = supernet.space
    assert isinstance(space, MobileSpace)

    def accumulate(images: StepImages) -> Tensor:
        resolution = int(images.rng.integers(len(space.resolutions)))
        x_bchw = images.at(space.resolutions[resolution])
        largest, *others = _sandwich(space, resolution, recipe.num_random, images.rng)
        smoothing = recipe.label_smoothing
        logits = supernet(x_bchw, largest)
        loss = nn.functional.cross_entropy(logits, images.labels, label_smoothing=smoothing)
        loss.backward()
        trust = min(1.0, images.share / recipe.teacher_ramp)
        one_hot = nn.functional.one_hot(images.labels, space.num_classes)
        smoothed = one_hot * (1 - smoothing) + smoothing / space.num_classes
        targets = trust * logits.detach().softmax(1) + (1 - trust) * smoothed
        for arch in others:
            nn.functional.cross_entropy(supernet(x_bchw, arch), targets).backward()
        return loss

    run_training(
        supernet, dataset, recipe, accumulate,
        identity=str(space.spec), checkpoint=checkpoint, on_progress=on_progress,
    )  # fmt: skip


def _sandwich(
    space: MobileSpace, resolution: int, num_random: int, rng: np.random.Generator
) -> Archs:
    """Largest, smallest and random subnets, all at one resolution."""
    archs = np.concatenate([space.largest(), space.smallest(), space.sample(num_random, rng)])
    archs[:, 0] = resolution
    return archs
