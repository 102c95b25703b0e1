"""One-shot search: single paths train the supernet, its weights rank, the best few are retrained.

Guo et al. 2020, "Single path one-shot neural architecture search with uniform sampling": uniform
paths (section 3.2), evolution under the budget on inherited weights (section 3.4), and training
from scratch of what is found; here of the best few, of which the one that validates best is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from deploynas.artifacts import ensure_writable, exists
from deploynas.data import ImageDataset
from deploynas.device import Device
from deploynas.nn import StaticNetwork
from deploynas.profile.device_profile import Precision
from deploynas.search import Budget, SearchResult
from deploynas.search import search as run_search
from deploynas.spaces import Archs, SearchSpace
from deploynas.train import SupernetEvaluator
from deploynas.train.distributed import require_one_process
from deploynas.train.evaluate import CALIBRATION_IMAGES
from deploynas.workflows import steps
from deploynas.workflows.candidates import TrainedCandidates
from deploynas.workflows.networks import FROM_SCRATCH, save_chosen
from deploynas.workflows.steps import OnProgress

TOP_K = 3  # of the search, trained from scratch
LONGER = 3.0  # their epochs, over those of the supernet


def search(
    chosen: SearchSpace,
    dataset: ImageDataset,
    profile_path: Path,
    budget: Budget,
    run: Path,
    *,
    epochs: float | None,
    device: Device | None,
    seed: int,
    num_evaluations: int,
    precision: Precision = "fp32",
    on_progress: OnProgress,
    on_note: Callable[[str], None],
) -> SearchResult:
    """Train by single paths, search, retrain the best few; goes on where it was stopped.

    Arguments and errors as in :func:`deploynas.workflows.steps.train_and_search`, but that the
    best few are trained for :data:`LONGER` times as many epochs as the supernet. The run holds
    the chosen network's weights.
    """
    require_one_process("a one-shot search")
    model = steps.latency_model(chosen, profile_path, device, precision, on_progress)
    space = model.space
    budget.require_reachable(model, np.random.default_rng(seed))
    ensure_writable(run)
    recipe = steps.supernet_recipe(space, dataset, epochs, seed, "single-path")
    record = run / "supernet.json"
    if exists(record) and steps.SupernetRecord.read(record).settings == recipe:
        on_note(f"supernet {run}, trained before")
        supernet = steps.open_supernet(run, dataset)
    else:
        supernet = steps.train(space, dataset, run, recipe, on_progress)
    evaluator = SupernetEvaluator(supernet.network, dataset, space)
    longer = None if epochs is None else LONGER * epochs
    alone = steps.for_data(FROM_SCRATCH, dataset, longer, seed)
    retrained = TrainedCandidates(space, dataset, alone, run / "trained", on_progress=on_progress)

    def extract(arch: Archs) -> StaticNetwork:
        of = retrained if retrained.is_trained(arch) else evaluator
        return of.extract(arch)

    outcome = run_search(
        model, evaluator, budget, strategy="one-shot", seed=seed, num_evaluations=num_evaluations,
        measure_ms=steps.measured_by(device, extract, precision), settle=(TOP_K, retrained.final),
        keep_in=run, on_progress=on_progress,
    )  # fmt: skip
    job = steps.job_of(
        model, dataset, budget, "one-shot",
        f"one-shot {recipe.model_dump_json()} {alone.model_dump_json()}", seed, num_evaluations,
        device,
    )  # fmt: skip
    best = space.encode([outcome.best.architecture])[0]
    result = steps.as_result(
        outcome, model, profile_path, job,
        inputs=[profile_path, record, run / "supernet.safetensors"],
        data=steps.data_record(dataset), supernet=run, weights="trained",
    )  # fmt: skip
    num_images = min(CALIBRATION_IMAGES, len(dataset.train))
    save_chosen(run, result, extract(best), num_images=num_images)
    return result
