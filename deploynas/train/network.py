"""Training of one network: a subnet that goes on from its supernet's weights, or any module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from deploynas.data import ImageDataset
from deploynas.nn import StaticNetwork, recalibrate
from deploynas.nn.adapt.answers import first_output
from deploynas.nn.state import digest
from deploynas.spaces import Resolution
from deploynas.train.batches import Batches
from deploynas.train.evaluate import CALIBRATION_IMAGES
from deploynas.train.loop import Recipe, StepImages, Trainee, TrainingProgress, run_training
from deploynas.train.task import task_of


def train_network(
    network: StaticNetwork,
    dataset: ImageDataset,
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
) -> None:
    """Train in place on the labels at the network's own resolution; ends in eval mode.

    Batch-norm statistics are set from training images at the end, as for every subnet.
    Arguments and errors as in :func:`run_training`.
    """
    layers = " ".join(node.layer.key for node in network.nodes)
    train_module(
        network, network.resolution, dataset, recipe, identity=layers,
        checkpoint=checkpoint, on_progress=on_progress,
    )  # fmt: skip


def train_module(
    module: nn.Module,
    resolution: Resolution,
    dataset: ImageDataset,
    recipe: Recipe,
    *,
    identity: str,
    teacher: nn.Module | None = None,
    checkpoint: Path | None = None,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
) -> None:
    """Train any classifier of images in place; ends in eval mode.

    Args:
        module: Its first output is what is trained.
        resolution: Of its input.
        dataset: Normalised as it wants it.
        recipe: How.
        identity: Of what is trained, beside its weights: a checkpoint belongs to it.
        teacher: Whose answers are half of what is wanted (Hinton et al. 2015, section 2).
        checkpoint: See :func:`run_training`.
        on_progress: See there.
    """
    device = next(module.parameters()).device
    task = task_of(dataset)
    if teacher is not None:
        teacher = teacher.eval().to(memory_format=torch.channels_last)
        identity = f"{identity} {digest(dict(teacher.named_parameters()))}"

    def accumulate(images: StepImages) -> Tensor:
        x = images.at(resolution)
        with recipe.autocast(device):
            outputs = first_output(module(x))
            wanted = images.wanted(x, outputs.shape[1])
            if teacher is not None:
                with torch.no_grad():
                    wanted = 0.5 * (wanted + task.taught(first_output(teacher(x))))
            loss = task.loss(outputs, wanted)
        images.scaled(loss).backward()
        return loss

    start = digest(dict(module.named_parameters()))
    run_training(
        Trainee(module, f"{identity} {start}"), dataset, recipe, accumulate,
        checkpoint=checkpoint, on_progress=on_progress,
    )  # fmt: skip
    images = Batches(dataset, dataset.train, device).calibration(resolution, CALIBRATION_IMAGES)
    recalibrate(module, images)
