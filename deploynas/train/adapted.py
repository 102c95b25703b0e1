"""Networks that are cut out of a trained one, judged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from deploynas.data import ImageDataset, Source
from deploynas.nn import recalibrate
from deploynas.nn.adapt.answers import first_output
from deploynas.nn.adapt.space import AdaptedSpace
from deploynas.nn.state import digest
from deploynas.spaces import Archs
from deploynas.train.batches import Batches
from deploynas.train.evaluate import CALIBRATION_IMAGES, accuracy
from deploynas.train.task import task_of

# Images of a quick score, of networks of up to so many multiply-adds; of larger ones fewer, down
# to the least. A fourth as many recalibrate.
QUICK_IMAGES, LEAST_IMAGES, QUICK_MACS = 512, 128, 45e6


class AdaptedEvaluator:
    """Worth of networks cut out of a trained one, batch norms recalibrated, nothing trained.

    A quick score is ``exp(-loss)`` on the first images of the validation split: the geometric
    mean of the probability of the right class, which says more on few images than how many are
    right.

    Args:
        space: Whose networks.
        dataset: Its train split recalibrates, its val split judges, normalised as the network
            wants it.

    Attributes:
        num_quick: Images of a quick score.
    """

    kind: Literal["measured"] = "measured"
    num_finalists = 5

    def __init__(self, space: AdaptedSpace, dataset: ImageDataset) -> None:
        self._space, self._dataset = space, dataset
        self._resolution = space.resolutions[0]
        self._task = task_of(dataset)
        self._train = Batches(dataset, dataset.train, torch.device("cpu"))
        self._val = Batches(dataset, dataset.val, torch.device("cpu"))
        self._calibration: dict[int, list[Tensor]] = {}
        macs = float(space.macs(space.largest())[0])
        num = int(np.clip(QUICK_IMAGES * QUICK_MACS / macs, LEAST_IMAGES, QUICK_IMAGES))
        self.num_quick = num // 4 * 4

    @cached_property
    def identity(self) -> str:
        """Of the weights, their order, and of the images that recalibrate and judge."""
        data = self._dataset
        images = f"{data.fingerprint} {data.mean} {data.std} {self.num_quick}"
        order = hashlib.sha256(repr(self._space.order).encode()).hexdigest()
        whole = f"{digest(self._space.reading.module.state_dict())} {order} {images}"
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    def network(self, arch: Archs, num_images: int = CALIBRATION_IMAGES) -> nn.Module:
        """The network of an architecture, batch norms recalibrated on so many images."""
        return self.recalibrated(self._space.module(arch), num_images)

    def recalibrated(self, network: nn.Module, num_images: int = CALIBRATION_IMAGES) -> nn.Module:
        """A network whose batch norms' statistics are those of training images."""
        if num_images not in self._calibration:
            found = self._train.calibration(self._resolution, num_images)
            self._calibration[num_images] = found
        network = network.to(memory_format=torch.channels_last)
        with torch.no_grad():
            recalibrate(network, self._calibration[num_images])
        return network

    @torch.no_grad()
    def score(self, network: nn.Module) -> float:
        """``exp(-loss)`` on the first :attr:`num_quick` validation images."""
        total, count = 0.0, 0
        for images, labels in self._val.in_order(self._resolution, self.num_quick):
            outputs = first_output(network(images))
            total += float(self._task.loss(outputs, labels)) * len(labels)
            count += len(labels)
        return float(np.exp(-total / count)) if np.isfinite(total) else 0.0

    def quick(self, archs: Archs) -> Iterator[float]:
        """Scores, one by one."""
        for arch in archs:
            yield self.score(self.network(arch, self.num_quick // 4))

    def promising(self, archs: Archs, scores: np.ndarray) -> list[int]:
        """Indices, the highest score first."""
        return [int(i) for i in np.argsort(-scores, kind="stable")]

    def final(self, archs: Archs) -> np.ndarray:
        """``(n,)`` accuracies on the whole validation split."""
        return np.array([self.accuracy(self.network(arch)) for arch in archs])

    def accuracy(self, network: nn.Module, source: Source | None = None) -> float:
        """Of a network in eval mode, on the validation split or another."""
        batches = self._val
        if source is not None:
            batches = Batches(self._dataset, source, torch.device("cpu"))
        return accuracy(Whole(network), batches, self._resolution)

    def examples(self, num_images: int, batch_size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of random training images and their labels, always the same."""
        rng = np.random.default_rng(0)
        rows = rng.permutation(len(self._train))[:num_images]
        for part in np.array_split(rows, max(1, len(rows) // batch_size)):
            images = self._train.images(part, self._resolution)
            yield images, self._train.labels[torch.from_numpy(part)]


class Whole(nn.Module):
    """A network whose answer is its first output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """``(n, num_outputs)``."""
        return first_output(self.network(x))
