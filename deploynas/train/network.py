"""Training of one static network: a subnet that goes on from its supernet's weights, or anew."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from deploynas.data import ImageDataset
from deploynas.nn import StaticNetwork, recalibrate
from deploynas.nn.state import digest
from deploynas.train.batches import Batches
from deploynas.train.evaluate import CALIBRATION_IMAGES
from deploynas.train.loop import Recipe, StepImages, Trainee, TrainingProgress, run_training
from deploynas.train.passes import Passes, training_stream
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
    resolution = network.nodes[0].layer.height
    device = next(network.parameters()).device
    loss = partial(task_of(dataset).loss, smoothing=recipe.label_smoothing)
    passes = Passes(loss, recipe, device)
    loan = passes.whole(network)

    def accumulate(images: StepImages) -> Tensor:
        reported, _ = passes.run(
            b"", lambda lender: loan, images.at(resolution), images.labels, images.scaled
        )
        passes.finish()
        return reported

    layers = " ".join(node.layer.key for node in network.nodes)
    start = digest(dict(network.named_parameters()))
    with training_stream(device):
        run_training(
            Trainee(network, f"{layers} {start}"), dataset, recipe, accumulate,
            checkpoint=checkpoint, on_progress=on_progress,
        )  # fmt: skip
    images = Batches(dataset, dataset.train, device).calibration(resolution, CALIBRATION_IMAGES)
    recalibrate(network, images)
