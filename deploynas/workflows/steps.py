"""The steps of the chain, each from files to files: what the verbs and the demo call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from deploynas.artifacts import RUNS, Artifact, ensure_writable, newest, sha256
from deploynas.check.verdict import measure_bytes
from deploynas.data import ImageDataset, load_dataset
from deploynas.device import Device
from deploynas.errors import InvalidInputError, require_positive
from deploynas.export.exporter import export_network, network_bytes
from deploynas.export.manifest import Manifest, Weights
from deploynas.nn import StaticNetwork, Supernet, build
from deploynas.profile import DeviceProfile, LatencyModel
from deploynas.search import Budget, Candidate, DataRecord, SearchResult
from deploynas.search import search as run_search
from deploynas.spaces import Archs, MobileSpace, space
from deploynas.train import (
    Batches,
    Recipe,
    SupernetEvaluator,
    SupernetRecipe,
    TrainingProgress,
    accuracy,
    load_weights,
    pick_device,
    save_weights,
    train_network,
    train_supernet,
)

OnProgress = Callable[[str, float], None]
FINE_TUNING = Recipe(epochs=3.0, batch_size=64, learning_rate=0.1)
MIN_STEPS, MAX_EPOCHS = 600, 40.0  # of a training whose length nobody chose
FROM_SCRATCH = Recipe(epochs=12.0, batch_size=64, learning_rate=0.1)


def lengthened(recipe: Recipe, dataset: ImageDataset) -> dict[str, float]:
    """More passes for a recipe where the data set is so small that they would be few steps."""
    needed = MIN_STEPS * recipe.batch_size / len(dataset.train)
    return {"epochs": round(max(recipe.epochs, min(needed, MAX_EPOCHS)), 1)}


def supernet_recipe(dataset: ImageDataset, epochs: float | None, seed: int) -> SupernetRecipe:
    """The recipe of a supernet; 4 passes, or more over a small data set, where None."""
    recipe = SupernetRecipe(seed=seed)
    if epochs is None:
        return recipe.model_copy(update=lengthened(recipe, dataset))
    return recipe.model_copy(update={"epochs": require_positive(epochs, "--epochs")})


class SupernetRecord(Artifact):
    """``supernet.json`` beside the weights. Format 1 (0.1.0): first version."""

    SCHEMA = "deploynas-supernet"
    VERSION = 1

    space: dict[str, str | int | list[int]]
    data: DataRecord
    settings: SupernetRecipe
    weights_sha256: str


@dataclass(frozen=True)
class TrainedSupernet:
    """A supernet with its data."""

    network: Supernet
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
    chosen: MobileSpace,
    dataset: ImageDataset,
    run: Path,
    settings: SupernetRecipe,
    on_progress: OnProgress,
) -> TrainedSupernet:
    """Train a supernet into ``run``; goes on from a checkpoint of the same training."""
    ensure_writable(run)
    torch.manual_seed(settings.seed)
    network = Supernet(chosen).to(pick_device())
    checkpoint = run / "checkpoint.safetensors"
    train_supernet(
        network, dataset, settings,
        checkpoint=checkpoint, on_progress=_told("training", on_progress),
    )  # fmt: skip
    weights = save_weights(run / "supernet.safetensors", network)
    SupernetRecord.model_validate(
        {
            "space": chosen.spec,
            "data": data_record(dataset),
            "settings": settings,
            "weights_sha256": sha256(weights),
        }
    ).write(run / "supernet.json")
    checkpoint.unlink(missing_ok=True)
    return TrainedSupernet(network, dataset, run)


def _told(what: str, on_progress: OnProgress) -> Callable[[TrainingProgress], None]:
    """A training's progress as a line and a share."""

    def progress(state: TrainingProgress) -> None:
        text = f"{what}: loss {state.loss:.2f}, {state.images_per_second:.0f} images/s"
        on_progress(text, state.step / state.num_steps)

    return progress


def open_supernet(run: Path, dataset: ImageDataset) -> TrainedSupernet:
    """Read a trained supernet.

    Raises:
        MissingFileError, InvalidInputError: It is not there, damaged, or of other data.
    """
    record = SupernetRecord.read(run / "supernet.json")
    if record.data.fingerprint != dataset.fingerprint:
        raise InvalidInputError(
            f"{run} was trained on {record.data.source}, not on {dataset.source}",
            "pass the same --data, or train another",
        )
    network = Supernet(space(**record.space))  # type: ignore[arg-type]
    path = run / "supernet.safetensors"
    load_weights(path, network)
    if sha256(path) != record.weights_sha256:
        raise InvalidInputError(
            f"{path} is not what {run / 'supernet.json'} says", "train another"
        )
    network.to(pick_device()).to(memory_format=torch.channels_last)
    return TrainedSupernet(network, dataset, run)


def search(
    supernet: TrainedSupernet,
    profile_path: Path,
    budget: Budget,
    run: Path,
    *,
    device: Device | None,
    strategy: str,
    seed: int,
    num_evaluations: int,
    on_progress: OnProgress,
) -> SearchResult:
    """Search under a profile; writes ``run/search.json``.

    Finalists are measured on ``device``, the profile's own; None where it is elsewhere.
    """
    ensure_writable(run)
    profile = DeviceProfile.read(profile_path)
    trained_space = supernet.network.space
    assert isinstance(trained_space, MobileSpace)
    chosen = profile.restrict(trained_space)
    model = LatencyModel(chosen, profile)
    assert profile.level is not None
    evaluator = SupernetEvaluator(supernet.network, supernet.dataset, chosen)

    def measure_ms(arch: Archs) -> float:
        assert device is not None
        return measure_bytes(device, network_bytes(evaluator.extract(arch))).estimate().high

    outcome = run_search(
        model,
        evaluator,
        budget,
        strategy=strategy,
        seed=seed,
        num_evaluations=num_evaluations,
        measure_ms=measure_ms if device else None,
        on_progress=on_progress,
    )
    inputs = [profile_path, supernet.run / "supernet.json", supernet.run / "supernet.safetensors"]
    result = SearchResult.model_validate(
        {
            "space": chosen.spec,
            "strategy": strategy,
            "seed": seed,
            "budget": budget,
            "not_binding": outcome.not_binding,
            "num_evaluations": outcome.num_evaluations,
            "best": outcome.best,
            "random_best": outcome.random_best,
            "uniform_best": outcome.uniform_best,
            "largest": outcome.largest,
            "smallest": outcome.smallest,
            "measured_latency_ms": outcome.measured_latency_ms,
            "profile": str(profile_path),
            "device": profile.identity,
            **profile.level.model_dump(),
            "data": data_record(supernet.dataset),
            "supernet": str(supernet.run),
            "inputs": {str(path): sha256(path) for path in inputs},
        }
    )
    result.write(SearchResult.file_in(run))
    return result


def open_run(
    run: Path | None, data: Path | None, on_pick: Callable[[Path], None]
) -> tuple[Path, SearchResult, ImageDataset]:
    """A search's run (the newest where None) with its data.

    Raises:
        MissingFileError, InvalidInputError: There is none, or ``data`` is not what it ran on.
    """
    if run is None:
        hint = "make one: deploynas search --latency-ms 10"
        run = newest("*/search.json", RUNS, "search result", hint).parent
        on_pick(run)
    result = SearchResult.read(SearchResult.file_in(run))
    where = Path(result.data.source)
    dataset = load_dataset(data or (where if where.exists() else None))
    if dataset.fingerprint != result.data.fingerprint:
        raise InvalidInputError(
            f"the search ran on {result.data.source}, which is not this data", "pass its --data"
        )
    return run, result, dataset


@dataclass(frozen=True)
class TrainedNetwork:
    """A network that can be exported; its candidate's accuracy is that of these weights."""

    network: StaticNetwork
    candidate: Candidate
    dataset: ImageDataset
    weights: Weights


def inherited(candidate: Candidate, supernet: TrainedSupernet) -> TrainedNetwork:
    """One of a result's networks with the supernet's weights, batch norms recalibrated."""
    arch = supernet.network.space.encode([candidate.architecture])[0]
    network = SupernetEvaluator(supernet.network, supernet.dataset).extract(arch)
    return TrainedNetwork(network, candidate, supernet.dataset, "inherited")


def from_scratch(result: SearchResult, dataset: ImageDataset, seed: int) -> TrainedNetwork:
    """A result's chosen network, freshly initialised."""
    torch.manual_seed(seed)
    chosen = space(**result.space)  # type: ignore[arg-type]
    arch = chosen.encode([result.best.architecture])[0]
    network = build(chosen, arch).to(pick_device())
    return TrainedNetwork(network, result.best, dataset, "from-scratch")


def retrain(
    start: TrainedNetwork, recipe: Recipe, on_progress: OnProgress, checkpoint: Path | None = None
) -> TrainedNetwork:
    """Train a network further (in place) and measure its validation accuracy."""
    network, dataset = start.network, start.dataset
    train_network(
        network, dataset, recipe,
        checkpoint=checkpoint, on_progress=_told("retraining", on_progress),
    )  # fmt: skip
    batches = Batches(dataset, dataset.val, next(network.parameters()).device)
    measured = accuracy(network, batches, network.nodes[0].layer.height)
    candidate = start.candidate.model_copy(update={"accuracy": measured})
    weights: Weights = "fine-tuned" if start.weights == "inherited" else start.weights
    return TrainedNetwork(network, candidate, dataset, weights)


class RetrainRecord(Artifact):
    """``retrained.json`` beside the weights. Format 1 (0.1.0): first version.

    Attributes:
        search_sha256: Of the ``search.json`` whose network this is.
        accuracy: On the validation split, a fraction; ``accuracy_before``: with the supernet's
            weights.
    """

    SCHEMA = "deploynas-retrained"
    VERSION = 1

    architecture: dict[str, int | list[int]]
    weights: Weights
    recipe: Recipe
    accuracy: float
    accuracy_before: float
    weights_sha256: str
    search_sha256: str

    @classmethod
    def file_in(cls, run: Path) -> Path:
        """Where a run directory keeps it."""
        return run / "retrained.json"


def retrain_run(
    run: Path, start: TrainedNetwork, recipe: Recipe, on_progress: OnProgress
) -> RetrainRecord:
    """Retrain the chosen network of a search; goes on from a checkpoint of the same training."""
    ensure_writable(run)
    checkpoint = run / "retrain-checkpoint.safetensors"
    trained = retrain(start, recipe, on_progress, checkpoint)
    path = save_weights(run / "retrained.safetensors", trained.network)
    record = RetrainRecord(
        architecture=start.candidate.architecture,
        weights=trained.weights,
        recipe=recipe,
        accuracy=trained.candidate.accuracy,
        accuracy_before=start.candidate.accuracy,
        weights_sha256=sha256(path),
        search_sha256=sha256(SearchResult.file_in(run)),
    )
    record.write(RetrainRecord.file_in(run))
    checkpoint.unlink(missing_ok=True)
    return record


def open_retrained(run: Path, result: SearchResult, dataset: ImageDataset) -> TrainedNetwork:
    """The network that :func:`retrain_run` trained.

    Raises:
        InvalidInputError: It belongs to an earlier search, or the weights are damaged.
    """
    record = RetrainRecord.read(RetrainRecord.file_in(run))
    path = run / "retrained.safetensors"
    hint = f"train it again: deploynas retrain {run}; or export with --inherited"
    if record.search_sha256 != sha256(SearchResult.file_in(run)):
        raise InvalidInputError(f"{path} belongs to an earlier search of {run}", hint)
    chosen = space(**result.space)  # type: ignore[arg-type]
    network = StaticNetwork(chosen.layers(chosen.encode([record.architecture])[0]))
    if not path.exists() or sha256(path) != record.weights_sha256:
        raise InvalidInputError(f"{path} is not what {RetrainRecord.file_in(run)} says", hint)
    load_weights(path, network)
    network.to(pick_device()).eval()
    candidate = result.best.model_copy(update={"accuracy": record.accuracy})
    return TrainedNetwork(network, candidate, dataset, record.weights)


def export(result: SearchResult, trained: TrainedNetwork, folder: Path) -> Manifest:
    """Export one of a result's networks into ``folder``."""
    return export_network(
        trained.network,
        trained.candidate,
        folder,
        weights=trained.weights,
        dataset=trained.dataset,
        result=result,
    )


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


def budget_from(
    latency_ms: float | None,
    max_flops: float | None,
    max_params: float | None = None,
    max_memory: float | None = None,
) -> Budget:
    """A budget from the command line; NaN, infinite, zero and negative limits are refused."""
    values = {
        "latency": latency_ms, "FLOPs": max_flops, "params": max_params, "memory": max_memory,
    }  # fmt: skip
    for name, value in values.items():
        if value is not None:
            require_positive(value, f"the {name} budget")
    return Budget(
        latency_ms=latency_ms, macs=max_flops, params=max_params, peak_memory_bytes=max_memory
    )
