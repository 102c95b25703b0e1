"""Training of one static network: a subnet that goes on from its supernet's weights, or anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from deploynas.data import ImageDataset
from deploynas.nn import StaticNetwork, recalibrate
from deploynas.nn.state import digest
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
    resolution = network.resolution
    device = next(network.parameters()).device
    task = task_of(dataset)

    def accumulate(images: StepImages) -> Tensor:
        x = images.at(resolution)
        with recipe.autocast(device):
            outputs = network(x)
            loss = task.loss(outputs, images.wanted(x, outputs.shape[1]))
        images.scaled(loss).backward()
        return loss

    layers = " ".join(node.layer.key for node in network.nodes)
    start = digest(dict(network.named_parameters()))
    run_training(
        Trainee(network, f"{layers} {start}"), dataset, recipe, accumulate,
        checkpoint=checkpoint, on_progress=on_progress,
    )  # fmt: skip
    images = Batches(dataset, dataset.train, device).calibration(resolution, CALIBRATION_IMAGES)
    recalibrate(network, images)
