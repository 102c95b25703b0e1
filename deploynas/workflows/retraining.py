"""Training the network that a search chose: further, or from scratch, or for other classes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from deploynas.artifacts import Artifact, ensure_writable, sha256, unchanged, write_together
from deploynas.data import ImageDataset
from deploynas.errors import IncompleteProfileError, InvalidInputError
from deploynas.export.exporter import PARITY_IMAGES, TrainedNetwork
from deploynas.export.manifest import Weights
from deploynas.nn import build
from deploynas.profile import DeviceProfile, LatencyModel
from deploynas.search import Candidate, DataRecord, SearchResult
from deploynas.spaces import SearchSpace, SpaceRecord
from deploynas.train import (
    Batches,
    Recipe,
    accuracy,
    pick_device,
    train_network,
    weights_of,
)
from deploynas.train.distributed import require_one_process
from deploynas.workflows.chosen import load, own_weights, space_of
from deploynas.workflows.images import load_for, open_data
from deploynas.workflows.supernets import data_record, told
from deploynas.workflows.target import OnProgress


def data_for(result: SearchResult, path: Path | None) -> ImageDataset:
    """What to train on: the search's own data where ``path`` is None, else any.

    Raises:
        MissingFileError, InvalidInputError: The search's data is not here, or it had none.
    """
    if path is not None:
        return load_for(result.data, path)
    if not result.data.fingerprint:
        raise InvalidInputError(
            "a search under published weights has no images of its own", "pass --data DIR"
        )
    return open_data(result.data)


def from_scratch(result: SearchResult, dataset: ImageDataset, seed: int) -> TrainedNetwork:
    """A result's chosen network for the classes of ``dataset``, freshly initialised."""
    torch.manual_seed(seed)
    chosen = space_of(result.space, dataset.num_classes)
    network = build(chosen, chosen.encode([result.best.architecture])[0]).to(pick_device())
    return TrainedNetwork(
        network, _priced(result, chosen), chosen, _record(result, dataset),
        dataset.test.first(PARITY_IMAGES), "from-scratch",
    )  # fmt: skip


def for_classes(
    start: TrainedNetwork, result: SearchResult, dataset: ImageDataset
) -> TrainedNetwork:
    """The network for the data: with a new classifier where the classes are not its own."""
    images = dataset.test.first(PARITY_IMAGES)
    if dataset.classes == start.data.classes:
        return replace(start, data=_record(result, dataset), images=images)
    chosen = space_of(result.space, dataset.num_classes)
    network = build(chosen, chosen.encode([start.candidate.architecture])[0])
    state = start.network.state_dict()
    last = f"layers.{len(network.layers) - 1}.classifier."
    kept = {k: v for k, v in state.items() if not k.startswith(last)}
    network.load_state_dict(kept, strict=False)
    return TrainedNetwork(
        network.to(pick_device()), _priced(result, chosen), chosen, _record(result, dataset),
        images, start.weights,
    )  # fmt: skip


def _record(result: SearchResult, dataset: ImageDataset) -> DataRecord:
    """The data, prepared as the result's network expects its images."""
    record = data_record(dataset)
    if record.fingerprint == result.data.fingerprint:
        return record
    return record.model_copy(update={"mean": result.data.mean, "std": result.data.std})


def _priced(result: SearchResult, chosen: SearchSpace) -> Candidate:
    """The chosen network's costs with the classifier of ``chosen``.

    Its latency is predicted anew where the profile is here and holds that classifier; else it is
    unknown.
    """
    if chosen.num_classes == result.space["num_classes"]:
        return result.best
    arch = chosen.encode([result.best.architecture])
    predicted: float | None = None
    if Path(result.profile).is_file():
        profile = DeviceProfile.read(Path(result.profile))
        narrow = chosen.with_resolutions(chosen.resolution_of(arch).tolist())
        try:
            model = LatencyModel(narrow, profile, result.precision, result.drift)
            predicted = float(model.predict_ms(narrow.encode([result.best.architecture]))[0])
        except IncompleteProfileError:
            pass
    return result.best.model_copy(
        update={
            "predicted_latency_ms": predicted,
            "macs": int(chosen.macs(arch)[0]),
            "params": int(chosen.params(arch)[0]),
            "peak_memory_bytes": int(chosen.peak_memory_bytes(arch)[0]),
        }
    )


def retrain(
    start: TrainedNetwork,
    dataset: ImageDataset,
    recipe: Recipe,
    on_progress: OnProgress,
    checkpoint: Path | None = None,
) -> TrainedNetwork:
    """Train a network further (in place) and measure its validation accuracy."""
    network = start.network
    prepared = dataset.normalised_by(start.data.mean, start.data.std)
    train_network(
        network, prepared, recipe,
        checkpoint=checkpoint, on_progress=told("retraining", on_progress),
    )  # fmt: skip
    batches = Batches(prepared, prepared.val, next(network.parameters()).device)
    measured = accuracy(network, batches, network.resolution)
    candidate = start.candidate.model_copy(
        update={
            "accuracy": measured,
            "accuracy_kind": "measured",
            "accuracy_error": None,
            "accuracy_extrapolated": False,
        }
    )
    weights: Weights = start.weights if start.weights == "from-scratch" else "fine-tuned"
    return TrainedNetwork(network, candidate, start.space, start.data, start.images, weights)


class RetrainRecord(Artifact):
    """``retrained.json`` beside the weights. Format 1: first version; 2 (0.1.0): a digest.

    Attributes:
        space, data: Of the retrained network: its classes may be others than the search's.
        candidate: Its costs, and its accuracy on the validation split.
        accuracy_before: With the weights that it started from; None with a new classifier.
        search_sha256: Of the ``search.json`` whose network this is.
    """

    SCHEMA = "deploynas-retrained"
    VERSION = 2
    ANEW = "train it again: deploynas retrain"
    MIGRATIONS = {1: unchanged}

    space: SpaceRecord
    data: DataRecord
    candidate: Candidate
    weights: Weights
    recipe: Recipe
    accuracy_before: float | None
    weights_sha256: str
    search_sha256: str

    @classmethod
    def file_in(cls, run: Path) -> Path:
        """Where a run directory keeps it."""
        return run / "retrained.json"


def retrain_run(
    run: Path,
    start: TrainedNetwork,
    dataset: ImageDataset,
    recipe: Recipe,
    on_progress: OnProgress,
    accuracy_before: float | None = None,
) -> RetrainRecord:
    """Retrain the chosen network of a search; goes on from a checkpoint of the same training."""
    require_one_process("retrain")
    ensure_writable(run)
    checkpoint = run / "retrain-checkpoint.safetensors"
    trained = retrain(start, dataset, recipe, on_progress, checkpoint)
    weights = weights_of(trained.network)
    record = RetrainRecord.model_validate(
        {
            "space": trained.space.spec,
            "data": trained.data,
            "candidate": trained.candidate,
            "weights": trained.weights,
            "recipe": recipe,
            "accuracy_before": accuracy_before,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "search_sha256": sha256(SearchResult.file_in(run)),
        }
    )
    file = RetrainRecord.file_in(run)
    files = {file.with_suffix(".safetensors").name: weights, file.name: record.content}
    write_together(run, files, file.name)
    checkpoint.unlink(missing_ok=True)
    return record


def open_retrained(run: Path, moved_to: Path | None) -> TrainedNetwork:
    """The network that :func:`retrain_run` trained.

    Raises:
        InvalidInputError: It belongs to an earlier search, or the weights are damaged.
    """
    record = RetrainRecord.read(RetrainRecord.file_in(run))
    hint = f"train it again: deploynas retrain {run}; or export with --inherited"
    path = own_weights(run, RetrainRecord.file_in(run), record, hint)
    dataset = open_data(record.data, moved_to)
    chosen = space_of(record.space)
    return TrainedNetwork(
        load(chosen, record.candidate, path), record.candidate, chosen, record.data,
        dataset.test.first(PARITY_IMAGES), record.weights,
    )  # fmt: skip
