"""Training a supernet and searching it, from files to files: what the verbs and the demo call.

What becomes of the chosen network stands in :mod:`deploynas.workflows.networks`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploynas.artifacts import Artifact, ensure_writable, exists, sha256, write_together
from deploynas.check.verdict import measure_bytes
from deploynas.data import ImageDataset
from deploynas.device import Device
from deploynas.errors import IncompleteProfileError, InvalidInputError, require_positive
from deploynas.export.exporter import network_bytes
from deploynas.nn import StaticNetwork, WeightSharing, supernet_of
from deploynas.profile import DeviceProfile, LatencyModel, profile_space
from deploynas.profile.device_profile import Precision
from deploynas.profile.profiler import quantize_for_timing
from deploynas.profile.shipped import is_shipped
from deploynas.search import Budget, DataRecord, SearchResult
from deploynas.search import search as run_search
from deploynas.search.job import Job
from deploynas.search.result import DecisionRecord, SearchWeights
from deploynas.search.run import MeasureMs, Outcome
from deploynas.search.strategies import Floats
from deploynas.spaces import Archs, SearchSpace, space
from deploynas.train import (
    Recipe,
    ScalarLog,
    SupernetEvaluator,
    SupernetRecipe,
    TrainingProgress,
    load_weights,
    pick_device,
    train_supernet,
    weights_of,
)
from deploynas.train.distributed import is_first, require_one_process

OnProgress = Callable[[str, float], None]
NUM_EVALUATIONS = 96
MIN_STEPS, MAX_EPOCHS = 600, 40.0  # of a training whose length nobody chose


def lengthened(recipe: Recipe, dataset: ImageDataset) -> dict[str, float]:
    """More passes for a recipe where the data set is so small that they would be few steps."""
    needed = MIN_STEPS * recipe.batch_size / len(dataset.train)
    return {"epochs": round(max(recipe.epochs, min(needed, MAX_EPOCHS)), 1)}


def for_data(recipe: Recipe, dataset: ImageDataset, epochs: float | None, seed: int) -> Recipe:
    """A recipe with a seed; its length as asked for, else as :func:`lengthened`."""
    if epochs is not None:
        return recipe.model_copy(
            update={"seed": seed, "epochs": require_positive(epochs, "--epochs")}
        )
    return recipe.model_copy(update={"seed": seed, **lengthened(recipe, dataset)})


def supernet_recipe(
    chosen: SearchSpace,
    dataset: ImageDataset,
    epochs: float | None,
    seed: int,
    schedule: str | None = None,
) -> SupernetRecipe:
    """The recipe of a supernet.

    Args:
        chosen: Its space, whose own schedule is taken where ``schedule`` is None.
        dataset: Its train split's length counts.
        epochs: Passes; 4, or more over a small data set, where None.
        seed: Of every draw.
        schedule: A key of ``SCHEDULES``.
    """
    recipe = SupernetRecipe.model_validate(
        {"seed": seed, "schedule": schedule or chosen.schedules[0]}
    )
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
    checkpoint = run / "checkpoint.safetensors"
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
    files = {"supernet.safetensors": weights, "supernet.json": record.content}
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
    record = SupernetRecord.read(run / "supernet.json")
    if record.data.fingerprint != dataset.fingerprint and not other_data:
        raise InvalidInputError(
            f"{run} was trained on {record.data.source}, not on {dataset.source}",
            "pass the same --data, or train another",
        )
    network = supernet_of(space(**record.space))  # type: ignore[arg-type]
    path = run / "supernet.safetensors"
    load_weights(path, network)
    if sha256(path) != record.weights_sha256:
        raise InvalidInputError(
            f"{path} is not what {run / 'supernet.json'} says", "train another"
        )
    network.to(pick_device()).to(memory_format=torch.channels_last)
    return TrainedSupernet(network, dataset, run)


def latency_model(
    chosen: SearchSpace,
    path: Path,
    device: Device | None,
    precision: Precision,
    on_progress: OnProgress,
) -> LatencyModel:
    """What a search predicts latency with, at the resolutions that the profile holds.

    Where it holds none whole, what lacks is measured on ``device`` and added to the file.

    Raises:
        IncompleteProfileError: Something lacks and ``device``, the profile's own, is elsewhere
            (None), or the profile ships with the package and is only read.
    """
    profile = DeviceProfile.read(path)
    try:
        return LatencyModel(profile.restrict(chosen, precision), profile, precision)
    except IncompleteProfileError:
        if device is None or is_shipped(path):
            raise
    profile, _ = profile_space(chosen, device, path, precision=precision, on_progress=on_progress)
    return LatencyModel(chosen, profile, precision)


def train_and_search(
    chosen: SearchSpace,
    dataset: ImageDataset,
    profile_path: Path,
    budget: Budget,
    run: Path,
    *,
    supernet: Path | None,
    epochs: float | None,
    device: Device | None,
    strategy: str,
    seed: int,
    num_evaluations: int,
    options: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    on_progress: OnProgress,
    on_note: Callable[[str], None],
) -> SearchResult:
    """Search ``supernet``, else the one in ``run``, else one trained now.

    An impossible budget or a profile that cannot be completed here ends before any training.
    Arguments and errors as in :func:`train`, :func:`latency_model` and :func:`search`.
    """
    require_one_process(f"a search by {strategy}")
    trained: TrainedSupernet | None = None
    if supernet is None and exists(run / "supernet.json"):
        before = SupernetRecord.read(run / "supernet.json").settings
        if epochs is not None and epochs != before.epochs:
            raise InvalidInputError(
                f"{run} holds a supernet of {before.epochs:g} epochs, not of {epochs:g}",
                "leave out --epochs to search it, or pass another --output to train one",
            )
        on_note(f"supernet {run}, trained before: {before.epochs:g} epochs, seed {before.seed}")
        supernet = run
    if supernet is not None:
        trained = open_supernet(supernet, dataset)
        chosen = trained.network.space
    model = latency_model(chosen, profile_path, device, precision, on_progress)
    if model.space.resolutions != chosen.resolutions:
        held = ", ".join(map(str, model.space.resolutions))
        on_note(f"searching at {held} px: the profile holds no other resolution of the space")
    budget.require_reachable(model, np.random.default_rng(seed))
    if trained is None:
        recipe = supernet_recipe(chosen, dataset, epochs, seed)
        trained = train(chosen, dataset, run, recipe, on_progress)
    return search(
        trained, model, profile_path, budget, run, device=device, strategy=strategy, seed=seed,
        num_evaluations=num_evaluations, options=options, on_progress=on_progress,
    )  # fmt: skip


def search(
    supernet: TrainedSupernet,
    model: LatencyModel,
    profile_path: Path,
    budget: Budget,
    run: Path,
    *,
    device: Device | None,
    strategy: str,
    seed: int,
    num_evaluations: int,
    options: Mapping[str, Any] | None = None,
    beside: bool = True,
    settle: tuple[int, Callable[[Archs], Floats]] | None = None,
    on_progress: OnProgress,
) -> SearchResult:
    """Search under a profile; writes ``run/search.json``.

    Finalists are measured on ``device``, the profile's own; None where it is elsewhere.
    ``options`` are the strategy's own; ``settle`` as in :func:`deploynas.search.search`.
    """
    ensure_writable(run)
    evaluator = SupernetEvaluator(supernet.network, supernet.dataset, model.space)
    weights = supernet.run / "supernet.safetensors"
    outcome = run_search(
        model,
        evaluator,
        budget,
        strategy=strategy,
        seed=seed,
        num_evaluations=num_evaluations,
        measure_ms=measured_by(device, evaluator.extract, model.precision),
        beside=beside,
        settle=settle,
        options=options,
        keep_in=run,
        on_progress=on_progress,
    )
    job = job_of(
        model, supernet.dataset, budget, strategy, f"inherited {sha256(weights)}", seed,
        num_evaluations, device, options,
    )  # fmt: skip
    result = as_result(
        outcome, model, profile_path, job,
        inputs=[profile_path, supernet.run / "supernet.json", weights],
        data=data_record(supernet.dataset), supernet=supernet.run, weights="shared",
    )  # fmt: skip
    result.write(SearchResult.file_in(run))
    return result


def measured_by(
    device: Device | None, extract: Callable[[Archs], StaticNetwork], precision: Precision
) -> MeasureMs | None:
    """Measures an architecture's upper confidence bound on ``device``; None where that is."""
    if device is None:
        return None

    def measure_ms(arch: Archs) -> float:
        network = extract(arch)
        content = network_bytes(network)
        if precision == "int8":
            content = quantize_for_timing(content, network.nodes[0].layer)
        return measure_bytes(device, content).estimate().high

    return measure_ms


def job_of(
    model: LatencyModel,
    dataset: ImageDataset | None,
    budget: Budget,
    strategy: str,
    evaluator: str,
    seed: int,
    num_evaluations: int,
    device: Device | None,
    options: Mapping[str, Any] | None = None,
) -> Job:
    """What a search is, from what its workflow was given."""
    return Job.model_validate(
        {
            "space": model.space.spec,
            "data": "" if dataset is None else dataset.fingerprint,
            "profile": model.fingerprint,
            "budget": budget,
            "strategy": strategy,
            "options": str(dict(sorted((options or {}).items()))) if options else "",
            "evaluator": evaluator,
            "num_evaluations": num_evaluations,
            "precision": model.precision,
            "seed": seed,
            "attached": device is not None,
        }
    )


def as_result(
    outcome: Outcome,
    model: LatencyModel,
    profile_path: Path,
    job: Job,
    *,
    inputs: Sequence[Path],
    data: DataRecord,
    supernet: Path,
    weights: SearchWeights,
    decision: DecisionRecord | None = None,
) -> SearchResult:
    """The one result format: what was found, under whose latency, from which files."""
    level = model.profile.reference
    return SearchResult.model_validate(
        {
            **vars(outcome),
            "job": job.key,
            "space": model.space.spec,
            "strategy": job.strategy,
            "seed": job.seed,
            "budget": job.budget,
            "profile": str(profile_path),
            "precision": model.precision,
            "device": model.profile.identity,
            "core_ms": level.core_ms,
            "memory_ms": level.memory_ms,
            "data": data,
            "supernet": str(supernet),
            "weights": weights,
            "decision": decision,
            "inputs": {str(path): sha256(path) for path in inputs},
        }
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
