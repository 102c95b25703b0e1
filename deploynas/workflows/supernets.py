"""Supernets, trained into a run and opened from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from deploynas.artifacts import Artifact, ensure_writable, sha256, unchanged, write_together
from deploynas.data import ImageDataset
from deploynas.errors import InvalidInputError
from deploynas.nn import WeightSharing, supernet_of
from deploynas.search import DataRecord
from deploynas.spaces import SearchSpace, SpaceRecord, recorded_space
from deploynas.train import (
    ScalarLog,
    SupernetRecipe,
    TrainingProgress,
    load_weights,
    pick_device,
    train_supernet,
    weights_of,
)
from deploynas.train.distributed import is_first
from deploynas.workflows.target import OnProgress

SUPERNET, CHECKPOINT = "supernet.safetensors", "checkpoint.safetensors"  # in a run


class SupernetRecord(Artifact):
    """``supernet.json`` beside the weights. Format 1: first version; 2 (0.1.0): a digest."""

    SCHEMA = "deploynas-supernet"
    VERSION = 2
    ANEW = "train another: deploynas train"
    MIGRATIONS = {1: unchanged}

    space: SpaceRecord
    data: DataRecord
    settings: SupernetRecipe
    weights_sha256: str

    @classmethod
    def file_in(cls, run: Path) -> Path:
        """Where a run directory keeps it."""
        return run / "supernet.json"


@dataclass(frozen=True)
class TrainedSupernet:
    """A supernet with its data."""

    network: WeightSharing
    dataset: ImageDataset
    run: Path


def data_record(dataset: ImageDataset) -> DataRecord:
    """What later steps must know of the data."""
    return DataRecord(
        name=dataset.name,
        source=dataset.source,
        fingerprint=dataset.fingerprint,
        classes=dataset.classes,
        channels=dataset.channels,
        size=dataset.size,
        mean=dataset.mean,
        std=dataset.std,
    )


def train(
    chosen: SearchSpace,
    dataset: ImageDataset,
    run: Path,
    settings: SupernetRecipe,
    on_progress: OnProgress,
) -> TrainedSupernet:
    """Train a supernet into ``run``; goes on from a checkpoint of the same training."""
    ensure_writable(run)
    torch.manual_seed(settings.seed)
    network = supernet_of(chosen).to(pick_device())
    checkpoint = run / CHECKPOINT
    with ScalarLog(run / "tensorboard" if is_first() else None) as log:
        train_supernet(
            network, dataset, settings,
            checkpoint=checkpoint, on_progress=told("training", on_progress, log),
        )  # fmt: skip
    if not is_first():
        return TrainedSupernet(network, dataset, run)
    weights = weights_of(network)
    record = SupernetRecord.model_validate(
        {
            "space": chosen.spec,
            "data": data_record(dataset),
            "settings": settings,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        }
    )
    files = {SUPERNET: weights, "supernet.json": record.content}
    write_together(run, files, "supernet.json")
    checkpoint.unlink(missing_ok=True)
    return TrainedSupernet(network, dataset, run)


def told(
    what: str, on_progress: OnProgress, log: ScalarLog | None = None
) -> Callable[[TrainingProgress], None]:
    """A training's progress as a line and a share, and in its log."""

    def progress(state: TrainingProgress) -> None:
        if log:
            log.add(state)
        accuracies = "".join(f", {k} {v:.1%}" for k, v in state.accuracies.items())
        speed = f"{state.images_per_second:.0f} images/s"
        text = f"{what}: loss {state.loss:.2f}{accuracies}{state.detail}, {speed}"
        on_progress(text, state.step / state.num_steps)

    return progress


def open_supernet(
    run: Path, dataset: ImageDataset, *, other_data: bool = False
) -> TrainedSupernet:
    """Read a trained supernet.

    Args:
        run: Where it is.
        dataset: What recalibrates and judges its subnets.
        other_data: Whether that may be another data set than it was trained on.

    Raises:
        MissingFileError, InvalidInputError: It is not there, damaged, or of other data.
    """
    record = SupernetRecord.read(SupernetRecord.file_in(run))
    if record.data.fingerprint != dataset.fingerprint and not other_data:
        raise InvalidInputError(
            f"{run} was trained on {record.data.source}, not on {dataset.source}",
            "pass the same --data, or train another",
        )
    network = supernet_of(recorded_space(record.space))
    path = run / SUPERNET
    load_weights(path, network)
    if sha256(path) != record.weights_sha256:
        raise InvalidInputError(
            f"{path} is not what {run / 'supernet.json'} says", "train another"
        )
    network.to(pick_device()).to(memory_format=torch.channels_last)
    return TrainedSupernet(network, dataset, run)
