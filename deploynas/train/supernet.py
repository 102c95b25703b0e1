"""Supernet training: the sandwich rule with in-place distillation.

Each step trains the largest subnet on the labels and the smallest and some random subnets on
the largest's soft predictions (Yu and Huang 2019, "Universally slimmable networks", sections
3.2 and 3.3). One resolution is drawn a step (Cai et al. 2020, elastic resolution).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from deploynas.artifacts import Record
from deploynas.data import ImageDataset
from deploynas.errors import DeploynasError
from deploynas.nn import Supernet
from deploynas.spaces import Archs, MobileSpace
from deploynas.train.batches import Batches, augment
from deploynas.train.checkpoint import load_checkpoint, save_checkpoint

CHECKPOINT_SECONDS = 30.0


class TrainingSettings(Record):
    """The recipe; everything a step needs follows from it and the step's number.

    Attributes:
        epochs: Passes over the train split; a fraction is allowed.
        learning_rate: Peak, reached after ``warmup`` of the steps, then a cosine to zero.
        weight_decay: Of convolutions and linear layers; off for norms and biases.
        teacher_ramp: Share of the steps over which the targets of the other subnets move from
            the labels to the largest's predictions, which teach nothing at the start.
        num_random: Random subnets a step, beside the largest and the smallest.
        augment_from: Trainings of at least so many epochs shift the images; shorter ones do not
            overfit, and shifts slow them down (150 steps: loss 0.58 without, 0.61 to 0.70 with).
        flip: Mirror half of the images as well.
    """

    epochs: float = 4.0
    batch_size: int = 128
    learning_rate: float = 0.2
    weight_decay: float = 3e-5
    warmup: float = 0.05
    label_smoothing: float = 0.05
    teacher_ramp: float = 0.3
    num_random: int = 2
    augment_from: float = 8.0
    flip: bool = True
    seed: int = 0


@dataclass(frozen=True)
class TrainingProgress:
    """State of a running training."""

    step: int
    num_steps: int
    loss: float
    images_per_second: float


class DivergedError(DeploynasError):
    """The loss became NaN or infinite; the last checkpoint is kept."""

    kind = "diverged"


def train_supernet(
    supernet: Supernet,
    dataset: ImageDataset,
    settings: TrainingSettings,
    *,
    checkpoint: Path | None = None,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
) -> None:
    """Train in place.

    Args:
        supernet: Freshly initialised; with a checkpoint on disk its state is replaced.
        dataset: Its train split.
        settings: The recipe.
        checkpoint: Written every half minute and read back at the start where it exists, so
            that a killed training goes on; the caller removes it after success.
        on_progress: Called after every step.

    Raises:
        DivergedError: The loss is not finite.
        InvalidInputError: The checkpoint belongs to another recipe, space or data set.
    """
    space = supernet.space
    assert isinstance(space, MobileSpace)
    supernet.to(memory_format=torch.channels_last).train()
    device = next(supernet.parameters()).device
    data = Batches(dataset, dataset.train, device)
    steps_per_epoch = max(1, len(data) // settings.batch_size)
    num_steps = max(1, round(settings.epochs * steps_per_epoch))
    optimizer = _optimizer(supernet, settings)
    identity = f"{space.spec} {dataset.fingerprint} {settings.model_dump_json()}"
    step = load_checkpoint(checkpoint, identity, supernet, optimizer) if checkpoint else 0
    started, first_step, saved = time.monotonic(), step, time.monotonic()
    while step < num_steps:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, num_steps, settings.warmup)
        rows = _rows(len(data), settings, step, steps_per_epoch)
        trust = min(1.0, step / num_steps / settings.teacher_ramp)
        loss = _step(supernet, space, data, rows, settings, step, trust)
        if not math.isfinite(loss):
            raise DivergedError(
                f"training diverged at step {step} of {num_steps}", "try a lower learning rate"
            )
        optimizer.step()
        step += 1
        now = time.monotonic()
        speed = (step - first_step) * settings.batch_size / (now - started)
        on_progress(TrainingProgress(step, num_steps, loss, speed))
        if checkpoint and now - saved > CHECKPOINT_SECONDS:
            save_checkpoint(checkpoint, identity, step, supernet, optimizer)
            saved = time.monotonic()


def _step(
    supernet: Supernet,
    space: MobileSpace,
    data: Batches,
    rows: np.ndarray,
    settings: TrainingSettings,
    step: int,
    trust: float,
) -> float:
    """Accumulate the gradients of one step's subnets; returns the largest's loss.

    ``trust`` is the teacher's share in the targets of the other subnets, 0 to 1.
    """
    rng = np.random.default_rng([settings.seed, step])
    supernet.zero_grad(set_to_none=True)
    resolution = int(rng.integers(len(space.resolutions)))
    images = data.images(rows, space.resolutions[resolution])
    if settings.epochs >= settings.augment_from:
        images = augment(images, rng, flip=settings.flip)
    labels = data.labels[torch.from_numpy(rows).to(data.labels.device)]
    largest, *others = _sandwich(space, resolution, settings.num_random, rng)
    logits = supernet(images, largest)
    loss = nn.functional.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
    loss.backward()
    smoothed = nn.functional.one_hot(labels, space.num_classes) * (1 - settings.label_smoothing)
    smoothed = smoothed + settings.label_smoothing / space.num_classes
    targets = trust * logits.detach().softmax(1) + (1 - trust) * smoothed
    for arch in others:
        nn.functional.cross_entropy(supernet(images, arch), targets).backward()
    return float(loss.detach())


def _sandwich(
    space: MobileSpace, resolution: int, num_random: int, rng: np.random.Generator
) -> Archs:
    """Largest, smallest and random subnets, all at one resolution."""
    archs = np.concatenate([space.largest(), space.smallest(), space.sample(num_random, rng)])
    archs[:, 0] = resolution
    return archs


def _optimizer(supernet: Supernet, settings: TrainingSettings) -> torch.optim.Optimizer:
    decayed = [p for p in supernet.parameters() if p.dim() > 1]
    plain = [p for p in supernet.parameters() if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, nesterov=True)


def _schedule(step: int, num_steps: int, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine."""
    rise = max(1.0, warmup * num_steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, num_steps - rise)))


def _rows(n: int, settings: TrainingSettings, step: int, steps_per_epoch: int) -> np.ndarray:
    """The step's images: every epoch is a new seeded permutation."""
    epoch, place = divmod(step, steps_per_epoch)
    order = np.random.default_rng([settings.seed, epoch, 1]).permutation(n)
    return order[place * settings.batch_size : (place + 1) * settings.batch_size]


def pick_device() -> torch.device:
    """CUDA where present, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
