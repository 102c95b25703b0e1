"""A published once-for-all supernet specialised for a device without training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploynas.artifacts import ensure_writable, sha256
from deploynas.data import Pixels, normalise
from deploynas.data.published import (
    CROP,
    MEAN,
    STD,
    load_imagenet,
    load_unlabelled,
)
from deploynas.device import Device
from deploynas.errors import InvalidInputError
from deploynas.nn import StaticNetwork, Supernet, recalibrate
from deploynas.profile.device_profile import Precision
from deploynas.search import Budget, Candidate, DataRecord, SearchResult
from deploynas.search import search as run_search
from deploynas.search.imagenet import ImageNetPredictor, imagenet_predictor
from deploynas.search.result import AccuracyKind
from deploynas.search.run import by_score
from deploynas.search.strategies import Floats
from deploynas.spaces import Archs
from deploynas.train import pick_device
from deploynas.train.distributed import require_one_process
from deploynas.workflows.networks import save_chosen
from deploynas.workflows.steps import OnProgress, as_result, job_of, latency_model, measured_by

CALIBRATION_IMAGES = 2_000
VALIDATION_PER_CLASS = 5
NUM_EVALUATIONS = 20_000
BATCH = 100


class Published:
    """A published supernet, the images that recalibrate its subnets, and those that judge them.

    An evaluator: a predictor in the search's loop; measured accuracy of the finalists where
    there are ImageNet images.
    """

    identity = None  # a prediction is as quick as reading it
    chunk = 4_096

    def __init__(
        self,
        supernet: Supernet,
        predictor: ImageNetPredictor,
        calibration: Pixels | None,
        validation: tuple[Pixels, np.ndarray] | None,
        on_progress: OnProgress,
    ) -> None:
        self._supernet = supernet
        self._predictor = predictor
        self._calibration = calibration
        self._validation = validation
        self._on_progress = on_progress
        self._device = next(supernet.parameters()).device
        self.kind: AccuracyKind = "predicted" if validation is None else "measured"
        self.num_finalists = 5 if validation is None else 3

    def quick(self, archs: Archs) -> Floats:
        """``(n,)`` predicted accuracies."""
        return self._predictor.predict(archs)

    def promising(self, archs: Archs, scores: Floats) -> list[int]:
        """Indices, the highest score first."""
        return by_score(scores)

    def final(self, archs: Archs) -> Floats:
        """``(n,)`` accuracies, measured where there are images to measure with."""
        if self._validation is None:
            return self.quick(archs)
        return np.array([self._measured(arch) for arch in archs])

    def extract(self, arch: Archs) -> StaticNetwork:
        """The static network of ``arch``; batch norms recalibrated where there are images."""
        network = self._supernet.extract(arch).to(memory_format=torch.channels_last)
        if self._calibration is not None:
            side = network.nodes[0].layer.height
            assert side == self._calibration.shape[1]
            recalibrate(network, self._batches(self._calibration, "calibrating batch norms"))
        return network

    @torch.no_grad()
    def _measured(self, arch: Archs) -> float:
        assert self._validation is not None
        images, labels = self._validation
        network = self.extract(arch)
        found = [
            network(x).argmax(1).cpu().numpy() for x in self._batches(images, "validation images")
        ]
        return float((np.concatenate(found) == labels).mean())

    def _batches(self, images: Pixels, what: str) -> Iterator[Tensor]:
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(normalise(images[start : start + BATCH], MEAN, STD))
            yield batch.to(self._device, memory_format=torch.channels_last)
            self._on_progress(what, min(1.0, (start + BATCH) / len(images)))


def search(
    weights: Path,
    space_name: str,
    profile_path: Path,
    budget: Budget,
    run: Path,
    *,
    device: Device | None,
    calibration_images: Path | None,
    data: Path | None,
    strategy: str,
    seed: int,
    num_evaluations: int,
    options: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    on_progress: OnProgress,
    on_note: Callable[[str], None],
) -> SearchResult:
    """Search a published supernet under a profile; writes ``run/search.json`` and the weights.

    Args:
        weights: The checkpoint.
        space_name: Its space.
        profile_path: Device profile.
        budget: Hard limits.
        run: Directory, created.
        device: The profile's, which measures finalists; None where it is elsewhere.
        calibration_images: Folder of unlabelled images that set batch-norm statistics.
        data: Folder of ImageNet's validation images: finalists are measured on part of them, and
            other ones among them calibrate where ``calibration_images`` is None.
        strategy: A key of ``STRATEGIES``.
        seed: Of every draw.
        num_evaluations: Networks whose accuracy is predicted.
        options: The strategy's own.
        precision: Of the latencies.
        on_progress: Called with what is going on and its share done.
        on_note: Called with what a user should know.

    Raises:
        UnknownNameError: No predictor knows the space.
        MissingFileError, InvalidInputError: Of the weights, images, profile, or strategy.
        InfeasibleBudgetError: No network keeps the budget.
    """
    require_one_process("a search under published weights")
    if strategy == "predictor":
        raise InvalidInputError(
            "the strategy 'predictor' fits what a search measures, and here nothing is measured",
            "leave out --strategy",
        )
    space = imagenet_predictor(space_name).space
    predictor = imagenet_predictor(space)
    sides = ", ".join(map(str, space.resolutions))
    on_note(f"searching at {sides} px: the accuracy predictor knows no other resolution")
    model = latency_model(space, profile_path, device, precision, on_progress)
    budget.require_reachable(model, np.random.default_rng(seed))
    supernet = Supernet(space)
    supernet.load_ofa(weights)
    supernet.to(pick_device()).eval()
    ensure_writable(run)
    size = max(space.resolutions)
    calibration, validation = _images(size, calibration_images, data, seed, on_progress)
    evaluator = Published(supernet, predictor, calibration, validation, on_progress)
    outcome = run_search(
        model,
        evaluator,
        budget,
        strategy=strategy,
        seed=seed,
        num_evaluations=num_evaluations,
        measure_ms=measured_by(device, supernet.extract, precision),
        options=options,
        on_progress=on_progress,
    )
    job = job_of(
        model, None, budget, strategy, f"published {sha256(weights)} {calibration_images} {data}",
        seed, num_evaluations, device, options,
    )  # fmt: skip
    result = as_result(
        outcome, model, profile_path, job,
        inputs=[profile_path, weights], data=_imagenet_record(data, size), supernet=weights,
        weights="published",
    )  # fmt: skip
    if evaluator.kind == "predicted":
        result = _with_errors(result, predictor)
    chosen = space.encode([result.best.architecture])[0]
    save_chosen(
        run, result, evaluator.extract(chosen),
        num_images=0 if calibration is None else len(calibration),
        images=None if calibration is None else calibration_images or data,
    )  # fmt: skip
    return result


def _images(
    size: int, unlabelled: Path | None, data: Path | None, seed: int, on_progress: OnProgress
) -> tuple[Pixels | None, tuple[Pixels, np.ndarray] | None]:
    """Images that calibrate, and images with labels that judge; no image does both."""

    def progress(done: int, total: int) -> None:
        on_progress("reading images", done / total)

    calibration = None
    if unlabelled is not None:
        calibration = load_unlabelled(
            unlabelled, size, CALIBRATION_IMAGES, seed=seed, progress=progress
        )
    if data is None:
        return calibration, None
    extra = 0 if calibration is not None else 2
    images, labels = load_imagenet(
        data, size, VALIDATION_PER_CLASS + extra, seed=seed, progress=progress
    )
    if calibration is None:
        num = min(CALIBRATION_IMAGES, len(images) // 2)
        calibration, images, labels = images[:num], images[num:], labels[num:]
    return calibration, (images, labels)


def _imagenet_record(data: Path | None, size: int) -> DataRecord:
    from torchvision.models import MobileNet_V3_Large_Weights

    categories = MobileNet_V3_Large_Weights.IMAGENET1K_V1.meta["categories"]
    return DataRecord(
        name="imagenet",
        source=str(data or "imagenet"),
        fingerprint="",
        classes=tuple(categories),
        channels=3,
        size=size,
        mean=MEAN,
        std=STD,
        crop=CROP,
    )


def _with_errors(result: SearchResult, predictor: ImageNetPredictor) -> SearchResult:
    """The result, its predicted accuracies with their error."""

    def stated(candidate: Candidate | None) -> Candidate | None:
        if candidate is None:
            return None
        arch = predictor.space.encode([candidate.architecture])
        return candidate.model_copy(
            update={
                "accuracy_error": predictor.rmse,
                "accuracy_extrapolated": bool(predictor.extrapolates(arch)[0]),
            }
        )

    names = ("best", "random_best", "uniform_best", "largest", "smallest")
    return result.model_copy(update={name: stated(getattr(result, name)) for name in names})
