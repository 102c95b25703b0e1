"""Training of one static network: a subnet that goes on from its supernet's weights, or anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from deploynas.data import ImageDataset
from deploynas.nn import StaticNetwork, recalibrate
from deploynas.nn.state import digest
from deploynas.train.batches import Batches
from deploynas.train.evaluate import CALIBRATION_IMAGES
from deploynas.train.loop import Recipe, StepImages, TrainingProgress, run_training


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
    resolution = network.nodes[0].layer.height

    def accumulate(images: StepImages) -> Tensor:
        logits = network(images.at(resolution))
        smoothing = recipe.label_smoothing
        loss = nn.functional.cross_entropy(logits, images.labels, label_smoothing=smoothing)
        loss.backward()
        return loss

    layers = " ".join(node.layer.key for node in network.nodes)
    run_training(
        network, dataset, recipe, accumulate,
        identity=f"{layers} {digest(dict(network.named_parameters()))}",  # where it starts, too
        checkpoint=checkpoint, on_progress=on_progress,
    )  # fmt: skip
    device = next(network.parameters()).device
    images = Batches(dataset, dataset.train, device).calibration(resolution, CALIBRATION_IMAGES)
    recalibrate(network, images)
