"""Supernet training by a schedule: the sandwich rule, or progressive shrinking.

One resolution is drawn a step (Cai et al. 2020, elastic resolution). Every draw follows from
the seed and the step's number, so that all processes of a distributed run draw the same subnets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from deploynas.data import ImageDataset
from deploynas.errors import InvalidInputError
from deploynas.nn import Lender, StaticNetwork, WeightSharing
from deploynas.spaces import Archs, Resolution, SearchSpace
from deploynas.train.batches import Batches
from deploynas.train.checkpoint import load_weights, save_weights
from deploynas.train.distributed import is_first
from deploynas.train.evaluate import QUICK_CALIBRATION, SupernetEvaluator
from deploynas.train.loop import (
    Parts,
    Positive,
    Recipe,
    StepImages,
    Trainee,
    TrainingProgress,
    run_training,
)
from deploynas.train.schedules import SCHEDULES, Phase
from deploynas.train.task import Task, task_of

SPEED_STEPS = 7
NUM_LOOKS, LOOK_IMAGES = 10, 1_000  # at the ends' accuracies, while a training runs


class SupernetRecipe(Recipe):
    """How to train a supernet.

    Attributes:
        schedule: A key of :data:`SCHEDULES`.
        num_random: Random subnets a step, where it is not the schedule's number.
        teacher_ramp: With an in-place teacher: share of the steps over which the targets of the
            other subnets move from the labels to its predictions, which teach nothing at first.
    """

    epochs: Positive = 4.0
    schedule: Literal["sandwich", "single-path", "progressive"] = "sandwich"
    num_random: int | None = Field(default=None, ge=1)
    teacher_ramp: Annotated[Positive, Field(le=1)] = 0.3

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The schedule's."""
        phases = SCHEDULES[self.schedule]
        if self.num_random is None:
            return phases
        return tuple(
            phase.model_copy(update={"num_random": self.num_random}) if phase.num_random else phase
            for phase in phases
        )


def train_supernet(
    supernet: WeightSharing,
    dataset: ImageDataset,
    recipe: SupernetRecipe,
    *,
    checkpoint: Path | None = None,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
) -> None:
    """Train in place; arguments and errors as in :func:`run_training`.

    Beside ``checkpoint`` stands the teacher of a progressive schedule while it runs.
    """
    space = supernet.space
    if recipe.schedule not in space.schedules:
        raise InvalidInputError(
            f"{space.name} has no choices for the schedule {recipe.schedule}",
            f"it can be trained by {' or '.join(space.schedules)}",
        )
    task = task_of(dataset)
    teacher = _Teacher(
        supernet, task, checkpoint and checkpoint.with_suffix(".teacher.safetensors")
    )

    def start(number: int) -> None:
        if number == 0:
            teacher.forget()  # an earlier training's
        if recipe.phases[number].sort_channels:
            supernet.sort_channels()

    evaluator = SupernetEvaluator(supernet, dataset)
    ends = {"largest": space.largest()[0], "smallest": space.smallest()[0]}
    accuracies: dict[str, float] = {}

    def watch(state: TrainingProgress) -> None:
        fresh = {}
        if state.step % max(1, state.num_steps // NUM_LOOKS) == 0:
            fresh = {
                name: evaluator.accuracy(arch, LOOK_IMAGES, QUICK_CALIBRATION)
                for name, arch in ends.items()
            }
            accuracies.update(fresh)
        on_progress(replace(state, accuracies=dict(accuracies), fresh=fresh))

    run_training(
        Trainee(supernet, str(space.spec)), dataset, recipe,
        _accumulating(supernet, task, recipe, teacher), checkpoint=checkpoint,
        on_progress=watch,
        parts=Parts([(phase.share, phase.rate) for phase in recipe.phases], start),
    )  # fmt: skip
    teacher.forget()


def _accumulating(
    supernet: WeightSharing, task: Task, recipe: SupernetRecipe, teacher: _Teacher
) -> Callable[[StepImages], Tensor]:
    """One step: the gradients of several subnets at one resolution."""
    space = supernet.space
    lender, device = Lender(), next(supernet.parameters()).device

    def accumulate(images: StepImages) -> Tensor:
        phase = recipe.phases[images.phase]
        resolution = space.resolutions[int(images.rng.integers(len(space.resolutions)))]
        archs = space.with_resolution(_subnets(space, phase, images.rng), resolution)
        x_bchw = images.at(resolution)
        labels = images.wanted(x_bchw, space.num_classes)
        targets = labels
        if phase.teacher == "largest":
            targets = 0.5 * (labels + teacher(x_bchw, resolution))
        losses = []
        for i, arch in enumerate(archs):
            subnet = supernet.lend(arch, lender)
            lender.open(subnet)
            with recipe.autocast(device):
                outputs = subnet.run(x_bchw)
                loss = task.loss(outputs, targets)
            images.scaled(loss).backward()
            losses.append(loss.detach())
            if i == 0 and phase.teacher == "in-place":
                trust = min(1.0, images.share / recipe.teacher_ramp)
                targets = trust * task.taught(outputs.detach()) + (1 - trust) * labels
        return losses[0]

    return accumulate


def supernet_images_per_second(
    supernet: WeightSharing, dataset: ImageDataset, recipe: SupernetRecipe
) -> float:
    """How fast a supernet trains here, measured on a few steps; its weights stay as they are."""
    copy = deepcopy(supernet).to(memory_format=torch.channels_last).train()
    task = task_of(dataset)
    accumulate = _accumulating(copy, task, recipe, _Teacher(copy, task, None))
    few = dataset.train.take(np.arange(min(recipe.batch_size, len(dataset.train))))
    data = Batches(dataset, few, next(copy.parameters()).device)
    times = []
    for step in range(SPEED_STEPS):
        rows = np.arange(recipe.batch_size) % len(data)
        started = time.perf_counter()
        copy.zero_grad(set_to_none=True)
        images = StepImages(data, rows, recipe, step, 0.5, 0, recipe.learning_rate)
        float(accumulate(images).detach())
        times.append(time.perf_counter() - started)
    return recipe.batch_size / float(np.median(times[1:]))


class _Teacher:
    """The largest network as it was when first asked; kept in a file for a training that resumes.

    A training that was killed asks for it again at the same step, or finds the file.
    """

    def __init__(self, supernet: WeightSharing, task: Task, path: Path | None) -> None:
        self._supernet, self._task, self._path = supernet, task, path
        self._networks: dict[Resolution, StaticNetwork] = {}
        self._weights: dict[str, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, x_bchw: Tensor, resolution: Resolution) -> Tensor:
        """Soft predictions, with the statistics of the batch itself."""
        if resolution not in self._networks:
            space = self._supernet.space
            arch = space.with_resolution(space.largest(), resolution)[0]
            network = self._supernet.extract(arch)
            if self._weights is not None:
                network.load_state_dict(self._weights)
            elif self._path and self._path.exists():
                load_weights(self._path, network)
            elif self._path and is_first():
                save_weights(self._path, network)
            self._weights = network.state_dict()
            network.to(memory_format=torch.channels_last)
            self._networks[resolution] = network.train()
        return self._task.taught(self._networks[resolution](x_bchw))

    def forget(self) -> None:
        """Forget it, and remove the file."""
        self._weights = None
        self._networks.clear()
        if self._path and is_first():
            self._path.unlink(missing_ok=True)


def _subnets(space: SearchSpace, phase: Phase, rng: np.random.Generator) -> Archs:
    """The largest subnet first where the phase trains the ends, or nothing else."""
    parts = [space.largest()] if phase.ends or not phase.num_random else []
    parts += [space.smallest()] if phase.ends else []
    if phase.num_random:
        num_open = {
            "depth": phase.depths,
            "kernel_size": phase.kernel_sizes,
            "expand_ratio": phase.expand_ratios,
        }
        parts.append(space.sample_open(phase.num_random, rng, num_open))
    return np.concatenate(parts)
