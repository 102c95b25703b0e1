"""The chosen network of a search: its weights, their training, its export; files to files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from deploynas.artifacts import (
    RUNS,
    Artifact,
    ensure_writable,
    exists,
    newest,
    sha256,
    write_together,
)
from deploynas.data import ImageDataset, Pixels, Split, load_dataset
from deploynas.device import Device, StopRule, measure
from deploynas.errors import IncompleteProfileError, InvalidInputError
from deploynas.export.exporter import PARITY_IMAGES, InModel, Quantize, export_network
from deploynas.export.manifest import BatchNorm, Manifest, Weights
from deploynas.nn import StaticNetwork, build
from deploynas.profile import DeviceProfile, LatencyModel
from deploynas.search import Candidate, DataRecord, SearchResult
from deploynas.spaces import SearchSpace, space
from deploynas.train import (
    Batches,
    Recipe,
    SupernetEvaluator,
    accuracy,
    load_weights,
    pick_device,
    train_network,
    weights_of,
)
from deploynas.train.distributed import require_one_process
from deploynas.workflows.steps import (
    OnProgress,
    TrainedSupernet,
    data_record,
    open_supernet,
    told,
)

FINE_TUNING = Recipe(epochs=3.0, batch_size=64, learning_rate=0.1)
ONE_RUN = StopRule(precision=1.0, min_sessions=1, max_sessions=1, rounds=1)
IMAGENET_PER_CLASS = 2  # images that calibrate and judge int8
FROM_SCRATCH = Recipe(epochs=12.0, batch_size=64, learning_rate=0.1)


def open_run(run: Path | None, on_pick: Callable[[Path], None]) -> tuple[Path, SearchResult]:
    """A search's run (the newest where None).

    Raises:
        MissingFileError, InvalidInputError: There is none, or it is damaged.
    """
    if run is None:
        hint = "make one: deploynas search --latency-ms 10"
        run = newest("*/search.json", RUNS, "search result", hint).parent
        on_pick(run)
    return run, SearchResult.read(SearchResult.file_in(run))


def open_data(record: DataRecord, moved_to: Path | None = None) -> ImageDataset:
    """The data set of a record, from where it was or where it moved to.

    Raises:
        MissingFileError, InvalidInputError: It is not there, or is another one.
    """
    dataset = load_for(record, moved_to)
    if dataset.fingerprint != record.fingerprint:
        raise InvalidInputError(
            f"this needs {record.source}, which is not this data", "pass its --data"
        )
    return dataset


def load_for(record: DataRecord, path: Path | None) -> ImageDataset:
    """A data set at the sides that a network of ``record`` can use, with its channels."""
    where = Path(record.source)
    dataset = load_dataset(
        path or (where if where.exists() else None), max_size=max(64, record.size)
    )
    return dataset.with_channels(record.channels)


def data_of(trained: TrainedNetwork, path: Path | None) -> ImageDataset:
    """Images of a network's own classes: what it was trained on, or some of ImageNet's.

    Args:
        trained: The network.
        path: Where its data is now, None where it was; ImageNet's validation images where the
            network is a published one. Half of those are the train split, half the other two.

    Raises:
        MissingFileError, InvalidInputError: It is not there, or is another one.
    """
    if trained.data.fingerprint:
        return open_data(trained.data, path)
    if path is None:
        raise InvalidInputError(
            "a published network has no images of its own here",
            "pass --data with ImageNet's validation images, a folder a class",
        )
    from deploynas.data.published import load_imagenet

    own = trained.data
    images, labels = load_imagenet(path, own.size, IMAGENET_PER_CLASS)
    half = len(labels) // 2
    train, val = Split(images[:half], labels[:half]), Split(images[half:], labels[half:])
    return ImageDataset(
        name=own.name, classes=own.classes, channels=own.channels, size=own.size, train=train,
        val=val, test=val, mean=own.mean, std=own.std, fingerprint="", warnings=(),
        source=str(path),
    )  # fmt: skip


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


@dataclass(frozen=True)
class TrainedNetwork:
    """A network that can be exported.

    Attributes:
        candidate: Its costs; its accuracy is that of these weights.
        space: Its space, with the classes that it tells apart.
        data: Its classes and its preprocessing.
        images: Some of the data's images, uint8 ``(n, h, w, c)``; none where there are none.
    """

    network: StaticNetwork
    candidate: Candidate
    space: SearchSpace
    data: DataRecord
    images: Pixels
    weights: Weights
    batch_norm: BatchNorm = "calibrated"


def inherited(
    result: SearchResult, candidate: Candidate, supernet: TrainedSupernet
) -> TrainedNetwork:
    """One of a result's networks with the supernet's weights, batch norms recalibrated."""
    arch = supernet.network.space.encode([candidate.architecture])[0]
    network = SupernetEvaluator(supernet.network, supernet.dataset).extract(arch)
    return TrainedNetwork(
        network, candidate, _space(result.space), result.data,
        supernet.dataset.test.images[:PARITY_IMAGES], "inherited",
    )  # fmt: skip


def from_scratch(result: SearchResult, dataset: ImageDataset, seed: int) -> TrainedNetwork:
    """A result's chosen network for the classes of ``dataset``, freshly initialised."""
    torch.manual_seed(seed)
    chosen = _space(result.space, dataset.num_classes)
    network = build(chosen, chosen.encode([result.best.architecture])[0]).to(pick_device())
    return TrainedNetwork(
        network, _priced(result, chosen), chosen, _record(result, dataset),
        dataset.test.images[:PARITY_IMAGES], "from-scratch",
    )  # fmt: skip


def open_chosen(run: Path, result: SearchResult, dataset: ImageDataset) -> TrainedNetwork:
    """The chosen network with the weights that the search judged it by.

    A network of a trained supernet is extracted, its batch norms recalibrated on ``dataset``; any
    other comes as the search saved it.
    """
    if result.weights != "shared":
        return open_saved(run, result, dataset)
    supernet = open_supernet(Path(result.supernet), dataset, other_data=True)
    return inherited(result, result.best, supernet)


def for_classes(
    start: TrainedNetwork, result: SearchResult, dataset: ImageDataset
) -> TrainedNetwork:
    """The network for the data: with a new classifier where the classes are not its own."""
    images = dataset.test.images[:PARITY_IMAGES]
    if dataset.classes == start.data.classes:
        return replace(start, data=_record(result, dataset), images=images)
    chosen = _space(result.space, dataset.num_classes)
    network = build(chosen, chosen.encode([start.candidate.architecture])[0])
    state = start.network.state_dict()
    last = f"layers.{len(network.layers) - 1}.classifier."
    kept = {k: v for k, v in state.items() if not k.startswith(last)}
    network.load_state_dict(kept, strict=False)
    return TrainedNetwork(
        network.to(pick_device()), _priced(result, chosen), chosen, _record(result, dataset),
        images, start.weights,
    )  # fmt: skip


def _space(spec: dict[str, str | int | list[int]], num_classes: int | None = None) -> SearchSpace:
    changed = spec if num_classes is None else spec | {"num_classes": num_classes}
    return space(**changed)  # type: ignore[arg-type]


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
        side = int(chosen.decode(arch)[0]["resolution"])  # type: ignore[call-overload]
        narrow = chosen.with_resolutions([side])
        try:
            model = LatencyModel(narrow, profile, result.precision)
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
    measured = accuracy(network, batches, network.nodes[0].layer.height)
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
    """``retrained.json`` beside the weights. Format 1 (0.1.0): first version.

    Attributes:
        space, data: Of the retrained network: its classes may be others than the search's.
        candidate: Its costs, and its accuracy on the validation split.
        accuracy_before: With the weights that it started from; None with a new classifier.
        search_sha256: Of the ``search.json`` whose network this is.
    """

    SCHEMA = "deploynas-retrained"
    VERSION = 1

    space: dict[str, str | int | list[int]]
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
    path = _own_weights(run, RetrainRecord.file_in(run), record, hint)
    dataset = open_data(record.data, moved_to)
    chosen = _space(record.space)
    return TrainedNetwork(
        _load(chosen, record.candidate, path), record.candidate, chosen, record.data,
        dataset.test.images[:PARITY_IMAGES], record.weights,
    )  # fmt: skip


class ChosenRecord(Artifact):
    """``chosen.json`` beside the chosen network's weights. Format 1 (0.1.0): first version.

    Written where the search is the only one who has them: under published weights, which it
    recalibrates, or under the weights of a gradient search.

    Attributes:
        batch_norm: Whether the statistics were set for this network.
        images: Folder of the images that set them, where that is not the data set.
        search_sha256: Of the ``search.json`` whose network this is.
    """

    SCHEMA = "deploynas-chosen"
    VERSION = 1

    batch_norm: BatchNorm
    images: str | None
    num_images: int
    weights_sha256: str
    search_sha256: str

    @classmethod
    def file_in(cls, run: Path) -> Path:
        """Where a run directory keeps it."""
        return run / "chosen.json"


def save_chosen(
    run: Path,
    result: SearchResult,
    network: StaticNetwork,
    *,
    num_images: int,
    images: Path | None = None,
) -> None:
    """Write a search's result, and its chosen network beside it, as one step.

    Args:
        run: Directory.
        result: ``search.json``.
        network: With its weights.
        num_images: That set its batch-norm statistics; 0 where they are not its own.
        images: Their folder, where that is not the data set.
    """
    weights = weights_of(network)
    record = ChosenRecord(
        batch_norm="calibrated" if num_images else "uncalibrated",
        images=None if images is None else str(images),
        num_images=num_images,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        search_sha256=hashlib.sha256(result.content).hexdigest(),
    )
    chosen, search = ChosenRecord.file_in(run), SearchResult.file_in(run)
    files = {
        chosen.with_suffix(".safetensors").name: weights,
        chosen.name: record.content,
        search.name: result.content,
    }
    write_together(run, files, search.name)


def open_saved(run: Path, result: SearchResult, dataset: ImageDataset | None) -> TrainedNetwork:
    """The chosen network as its search saved it.

    Args:
        run: Directory.
        result: Of the search.
        dataset: The search's, where it had one.

    Raises:
        InvalidInputError: It belongs to an earlier search, or the weights are damaged.
    """
    record = ChosenRecord.read(ChosenRecord.file_in(run))
    path = _own_weights(run, ChosenRecord.file_in(run), record, "search again")
    chosen = _space(result.space)
    side = result.data.size
    images = np.zeros((0, side, side, 3), np.uint8)
    if result.weights in ("paths", "trained") and dataset is not None:
        images = dataset.test.images[:PARITY_IMAGES]
    elif record.images and Path(record.images).is_dir():
        from deploynas.data.published import load_unlabelled

        images = load_unlabelled(Path(record.images), side, PARITY_IMAGES)
    kinds: dict[str, Weights] = {"published": "published", "trained": "from-scratch"}
    kind = kinds.get(result.weights, "inherited")
    return TrainedNetwork(
        _load(chosen, result.best, path), result.best, chosen, result.data, images, kind,
        record.batch_norm,
    )  # fmt: skip


def open_for_export(
    run: Path, result: SearchResult, moved_to: Path | None, *, as_searched: bool
) -> TrainedNetwork:
    """What ``export`` writes: the retrained network where there is one.

    Args:
        run: Directory.
        result: Of the search.
        moved_to: Where its data is now; None where it was.
        as_searched: The weights of the search, retrained or not.
    """
    if exists(RetrainRecord.file_in(run)) and not as_searched:
        return open_retrained(run, moved_to)
    if result.weights == "published":
        return open_saved(run, result, None)
    dataset = open_data(result.data, moved_to)
    if result.weights in ("paths", "trained"):
        return open_saved(run, result, dataset)
    return inherited(result, result.best, open_supernet(Path(result.supernet), dataset))


def _own_weights(run: Path, file: Path, record: RetrainRecord | ChosenRecord, hint: str) -> Path:
    """The weights beside a record of a search's network.

    Raises:
        InvalidInputError: They belong to an earlier search of the run, or are damaged.
    """
    path = file.with_suffix(".safetensors")
    if record.search_sha256 != sha256(SearchResult.file_in(run)):
        raise InvalidInputError(f"{path} belongs to an earlier search of {run}", hint)
    if not path.exists() or sha256(path) != record.weights_sha256:
        raise InvalidInputError(f"{path} is not what {file} says", hint)
    return path


def _load(chosen: SearchSpace, candidate: Candidate, path: Path) -> StaticNetwork:
    network = StaticNetwork(chosen.layers(chosen.encode([candidate.architecture])[0]))
    load_weights(path, network)
    return network.to(pick_device()).eval()


def export(
    result: SearchResult,
    trained: TrainedNetwork,
    folder: Path,
    opset: int | None = None,
    quantize: Quantize | None = None,
    in_model: InModel | None = None,
    device: Device | None = None,
    on_progress: Callable[[str, float], None] = lambda text, share: None,
) -> Manifest:
    """Export one of a result's networks into ``folder``, once ``device`` has run it."""
    return export_network(
        trained.network,
        trained.candidate,
        folder,
        weights=trained.weights,
        batch_norm=trained.batch_norm,
        space=trained.space,
        data=trained.data,
        images=trained.images,
        result=result,
        opset=opset,
        quantize=quantize,
        in_model=in_model,
        run_on_device=None if device is None else partial(_run_once, device),
        on_progress=on_progress,
    )


def _run_once(device: Device, model: Path) -> None:
    measure(device, {model.stem: model}, ONE_RUN)


def profile_note(result: SearchResult) -> str | None:
    """One line where the profile is not the file that the search read; None where it is.

    The prediction stands either way: a result keeps the device and level that it was made for.
    """
    path = Path(result.profile)
    if not path.is_file():
        return f"{path} is not here: the prediction is that of the search"
    if sha256(path) != result.inputs.get(result.profile):
        return (
            f"{path} changed since the search: the prediction is that of the search, a new "
            "search would use the new profile"
        )
    return None
