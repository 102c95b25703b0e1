"""Accuracy of subnets: extract, recalibrate, count."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import nn

from deploynas.data import ImageDataset
from deploynas.errors import InvalidInputError
from deploynas.nn import StaticNetwork, WeightSharing, recalibrate
from deploynas.nn.state import digest
from deploynas.spaces import Archs, Resolution, ResolutionLike, SearchSpace
from deploynas.train.batches import Batches

CALIBRATION_IMAGES = 2_048
QUICK_IMAGES, QUICK_CALIBRATION = 2_000, 512  # of an evaluation inside a search's loop


@torch.no_grad()
def accuracy(
    network: nn.Module, batches: Batches, resolution: ResolutionLike, num_images: int | None = None
) -> float:
    """Top-1 accuracy of ``network`` on the first ``num_images`` images, a fraction.

    Raises:
        InvalidInputError: There is no image.
    """
    scores = [
        batches.task.score(network(images), labels)
        for images, labels in batches.in_order(resolution, num_images)
    ]
    if not scores:
        raise InvalidInputError("there are no images to measure accuracy on")
    return float(torch.cat(scores).double().mean())


class SupernetEvaluator:
    """Validation accuracy of subnets that inherit the supernet's weights.

    Args:
        supernet: Trained weights, shared (once-for-all) or a set a path.
        dataset: Its train split recalibrates batch norms, its val split judges.
        space: The space whose rows are judged, where it is not the supernet's own (a profile may
            hold fewer resolutions).
    """

    kind: Literal["measured"] = "measured"
    num_finalists = 5

    def __init__(
        self,
        supernet: WeightSharing,
        dataset: ImageDataset,
        space: SearchSpace | None = None,
    ) -> None:
        self._supernet = supernet
        self._space = space or supernet.space
        self._of_data = f"{dataset.fingerprint} {dataset.channels} {dataset.mean} {dataset.std}"
        device = next(supernet.parameters()).device
        self._train = Batches(dataset, dataset.train, device)
        self._val = Batches(dataset, dataset.val, device)
        self._calibration: dict[tuple[Resolution, int], list[torch.Tensor]] = {}

    @property
    def space(self) -> SearchSpace:
        """The space whose rows are judged."""
        return self._space

    def extract(self, arch: Archs, calibration_images: int = CALIBRATION_IMAGES) -> StaticNetwork:
        """The static network of ``arch``, batch norms recalibrated at its resolution."""
        network = self._supernet.extract(self._own(arch)).to(memory_format=torch.channels_last)
        resolution = network.resolution
        key = (resolution, calibration_images)
        if key not in self._calibration:
            self._calibration[key] = self._train.calibration(resolution, calibration_images)
        recalibrate(network, self._calibration[key])
        return network

    def _own(self, arch: Archs) -> Archs:
        """The supernet's row of an architecture."""
        own: Archs = self._supernet.space.encode(self._space.decode(arch.reshape(1, -1)))[0]
        return own

    def accuracy(
        self,
        arch: Archs,
        num_images: int | None = None,
        calibration_images: int = CALIBRATION_IMAGES,
    ) -> float:
        """Accuracy on the first ``num_images`` validation images."""
        network = self.extract(arch, calibration_images)
        return accuracy(network, self._val, network.resolution, num_images)

    @cached_property
    def identity(self) -> str:
        """Of the weights and of the images that recalibrate and judge."""
        images = f"{self._of_data} {QUICK_IMAGES} {QUICK_CALIBRATION}"
        whole = f"{digest(self._supernet.state_dict())} {images}"
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    def promising(self, archs: Archs, scores: np.ndarray) -> list[int]:
        """Indices, the highest score first."""
        return [int(i) for i in np.argsort(-scores, kind="stable")]

    def quick(self, archs: Archs) -> Iterator[float]:
        """Accuracies on the first images of the validation split, one by one."""
        for arch in archs:
            yield self.accuracy(arch, QUICK_IMAGES, QUICK_CALIBRATION)

    def final(self, archs: Archs) -> np.ndarray:
        """``(n,)`` accuracies on the whole validation split."""
        return np.array([self.accuracy(arch) for arch in archs])
