"""The steps of the chain, each from files to files: what the verbs and the demo call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from deploynas.artifacts import Artifact, ensure_writable, sha256
from deploynas.check.verdict import measure_bytes
from deploynas.data import ImageDataset
from deploynas.device import Device
from deploynas.errors import InvalidInputError, require_positive
from deploynas.export.exporter import export_network, network_bytes
from deploynas.export.manifest import Manifest
from deploynas.nn import Supernet
from deploynas.profile import DeviceProfile, LatencyModel
from deploynas.search import Budget, Candidate, DataRecord, SearchResult
from deploynas.search import search as run_search
from deploynas.spaces import Archs, MobileSpace, space
from deploynas.train import (
    SupernetEvaluator,
    TrainingProgress,
    TrainingSettings,
    load_weights,
    pick_device,
    save_weights,
    train_supernet,
)

OnProgress = Callable[[str, float], None]
RUNS, EXPORTS = Path("runs"), Path("exports")


class SupernetRecord(Artifact):
    """``supernet.json`` beside the weights. Format 1 (0.1.0): first version."""

    SCHEMA = "deploynas-supernet"
    VERSION = 1

    space: dict[str, str | int | list[int]]
    data: DataRecord
    settings: TrainingSettings
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


def space_for(name: str, dataset: ImageDataset, resolutions: list[int] | None) -> MobileSpace:
    """A space with the data's classes, channels and resolutions."""
    from deploynas.data import resolutions_for

    chosen = resolutions or list(resolutions_for(dataset.size))
    return space(name, dataset.num_classes, dataset.channels, chosen)


def train(
    chosen: MobileSpace,
    dataset: ImageDataset,
    run: Path,
    settings: TrainingSettings,
    on_progress: OnProgress,
) -> TrainedSupernet:
    """Train a supernet into ``run``; goes on from a checkpoint of the same training."""
    ensure_writable(run)
    torch.manual_seed(settings.seed)
    network = Supernet(chosen).to(pick_device())
    checkpoint = run / "checkpoint.safetensors"

    def progress(state: TrainingProgress) -> None:
        text = f"training: loss {state.loss:.2f}, {state.images_per_second:.0f} images/s"
        on_progress(text, state.step / state.num_steps)

    train_supernet(network, dataset, settings, checkpoint=checkpoint, on_progress=progress)
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
    load_weights(run / "supernet.safetensors", network)
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
    """Search under a profile; writes ``run/search.json``."""
    ensure_writable(run)
    profile = DeviceProfile.read(profile_path)
    trained_space = supernet.network.space
    assert isinstance(trained_space, MobileSpace)
    chosen = profile.restrict(trained_space)
    model = LatencyModel(chosen, profile)
    evaluator = SupernetEvaluator(supernet.network, supernet.dataset, chosen)
    attached = device is not None and not profile.identity.differences(device.identity)

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
        measure_ms=measure_ms if attached else None,
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
            "device": profile.identity,
            "data": data_record(supernet.dataset),
            "supernet": str(supernet.run),
            "inputs": {str(path): sha256(path) for path in inputs},
        }
    )
    result.write(SearchResult.file_in(run))
    return result


def export(
    result: SearchResult,
    candidate: Candidate,
    supernet: TrainedSupernet,
    profile: DeviceProfile,
    folder: Path,
) -> Manifest:
    """Export one of a result's networks into ``folder``."""
    trained_space = supernet.network.space
    arch = trained_space.encode([candidate.architecture])[0]
    network = SupernetEvaluator(supernet.network, supernet.dataset).extract(arch)
    return export_network(
        network,
        candidate,
        folder,
        space=result.space,
        dataset=supernet.dataset,
        profile=profile,
        budget=result.budget,
    )


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
