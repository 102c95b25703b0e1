"""What is learnt: head, preprocessing, loss and metric in one object.

Whoever trains or judges a network on images asks the task; classification is the one that ships.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from deploynas.data import ImageDataset


class Task(Protocol):
    """What a network is for.

    Attributes:
        name: In files.
        metric: What :meth:`score` is the mean of, in words; more is better.
    """

    name: str
    metric: str

    def num_outputs(self, dataset: ImageDataset) -> int:
        """Of the head, for some data."""
        ...

    def inputs(self, pixels_nhwc: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """What enters a network.

        Args:
            pixels_nhwc: uint8, at the network's resolution.
            mean: ``(1, c, 1, 1)`` levels of 0 to 255.
            std: The same.

        Returns:
            float32 ``(n, c, h, w)``, channels last.
        """
        ...

    def targets(self, labels: Tensor, num_outputs: int, smoothing: float) -> Tensor:
        """What the outputs should be, in the form that :meth:`taught` has."""
        ...

    def taught(self, outputs: Tensor) -> Tensor:
        """A network's outputs as targets of others."""
        ...

    def loss(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """Mean over the images, float32.

        Args:
            outputs: A network's.
            wanted: Labels, or targets.
        """
        ...

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """``(n,)`` what the metric is the mean of."""
        ...


class Classification:
    """One class an image; a label is its number."""

    name = "classification"
    metric = "top-1 accuracy"

    def num_outputs(self, dataset: ImageDataset) -> int:
        """See :class:`Task`: a logit a class."""
        return dataset.num_classes

    def inputs(self, pixels_nhwc: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """See :class:`Task`: what :func:`deploynas.data.normalise` does."""
        images = (pixels_nhwc.permute(0, 3, 1, 2).float() - mean) / std
        return images.contiguous(memory_format=torch.channels_last)

    def targets(self, labels: Tensor, num_outputs: int, smoothing: float) -> Tensor:
        """See :class:`Task`: ``(n, num_classes)`` probabilities."""
        one_hot = nn.functional.one_hot(labels, num_outputs)
        return one_hot * (1 - smoothing) + smoothing / num_outputs

    def taught(self, outputs: Tensor) -> Tensor:
        """See :class:`Task`: soft predictions."""
        return _wide(outputs).softmax(1)

    def loss(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """See :class:`Task`: the cross entropy."""
        return nn.functional.cross_entropy(_wide(outputs), wanted)

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """See :class:`Task`: whether the likeliest class is right."""
        return outputs.argmax(1) == labels


def _wide(outputs: Tensor) -> Tensor:
    """In float32, where they are not at least that."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


CLASSIFICATION: Task = Classification()


def task_of(dataset: ImageDataset) -> Task:
    """What a data set is for."""
    return CLASSIFICATION
