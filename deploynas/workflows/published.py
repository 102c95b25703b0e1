"""A published once-for-all supernet specialised for a device without training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deploynas.artifacts import sha256
from deploynas.costs import Floats
from deploynas.data import Pixels, normalise
from deploynas.data.imagenet import (
    CROP,
    MEAN,
    STD,
    load_imagenet,
    load_unlabelled,
)
from deploynas.errors import InvalidInputError
from deploynas.nn import StaticNetwork, Supernet, recalibrate
from deploynas.search import Candidate, DataRecord, Plan, Problem, SearchResult
from deploynas.search.imagenet import ImageNetPredictor, imagenet_predictor
from deploynas.search.judging import by_score
from deploynas.search.result import AccuracyKind
from deploynas.search.strategy import Strategy
from deploynas.spaces import Archs, Resolution, SearchSpace
from deploynas.train import pick_device
from deploynas.workflows.search import Opened
from deploynas.workflows.target import OnProgress, Tell

CALIBRATION_IMAGES = 2_000
VALIDATION_PER_CLASS = 5
NUM_EVALUATIONS = 20_000
BATCH = 100  # images in a pass


PREDICTED = 4_096  # architectures at once


class Published:
    """A published supernet, the images that recalibrate its subnets, and those that judge them.

    An evaluator: a predictor in the search's loop; measured accuracy of the finalists where
    there are ImageNet images.
    """

    identity = None  # a prediction is as quick as reading it

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
        parts = np.split(archs, range(PREDICTED, len(archs), PREDICTED))
        return np.concatenate([self._predictor.predict(part) for part in parts])

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
            assert network.resolution.size == self._calibration.shape[1:3]
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


class PublishedWeights:
    """A published supernet's weights, which nothing here trains.

    Args:
        weights: The checkpoint.
        space_name: Its space.
        calibration_images: Folder of unlabelled images that set batch-norm statistics.
        data: Folder of ImageNet's validation images: finalists are measured on part of them, and
            other ones among them calibrate where ``calibration_images`` is None.

    Raises:
        UnknownNameError: No predictor knows the space.
        MissingFileError, InvalidInputError: Of the weights.
    """

    num_evaluations, at_once, beside, in_processes = NUM_EVALUATIONS, 1, True, False
    more_seconds = 0.0
    data = ""

    def __init__(
        self, weights: Path, space_name: str, calibration_images: Path | None, data: Path | None
    ) -> None:
        self.space: SearchSpace = imagenet_predictor(space_name).space
        self._weights, self._calibration, self._images = weights, calibration_images, data
        self._supernet = Supernet(self.space)
        self._supernet.load_ofa(weights)

    def require_fit(self, strategy: Strategy) -> None:
        """Check that a strategy can go by these weights.

        Raises:
            InvalidInputError: It trains its own, or fits what a search measures: nothing is
                measured here.
        """
        if strategy.weights != "any":
            raise InvalidInputError(
                f"{strategy.name} trains its own weights: leave out the others'"
            )
        if strategy.predicts:
            raise InvalidInputError(
                f"the strategy {strategy.name!r} fits what a search measures, and here nothing is "
                "measured",
                "leave out --strategy",
            )

    @property
    def identity(self) -> str:
        """Hash of the weights, and what calibrates and judges."""
        return f"published {sha256(self._weights)} {self._calibration} {self._images}"

    def forecast(self, space: SearchSpace, plan: Plan) -> float:
        """A prediction takes about 20 microseconds."""
        return plan.effort.num_evaluations * 4e-5

    def open(self, problem: Problem, plan: Plan, run: Path, tell: Tell) -> Opened:
        """Read the images."""
        space = problem.space
        predictor = imagenet_predictor(space)
        sides = ", ".join(map(str, space.resolutions))
        tell.note(f"searching at {sides} px: the accuracy predictor knows no other resolution")
        supernet = self._supernet.to(pick_device()).eval()
        size = max(space.resolutions).height  # a square, as the predictor's are
        calibration, validation = pictures(
            size, self._calibration, self._images, plan.seed, tell.progress
        )
        evaluator = Published(supernet, predictor, calibration, validation, tell.progress)

        def finish(result: SearchResult, arch: Archs) -> SearchResult:
            return result if validation is not None else _with_errors(result, predictor)

        folder = self._calibration or self._images
        return Opened(
            evaluator, evaluator.extract, _imagenet_record(self._images, size), "published",
            self._weights, inputs=[self._weights],
            num_images=0 if calibration is None else len(calibration),
            images=None if calibration is None else folder, finish=finish,
        )  # fmt: skip


def pictures(
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
        size=Resolution(size, size),
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
