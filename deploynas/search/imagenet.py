"""Predicted ImageNet accuracy of subnets of a published once-for-all supernet.

The predictor of a space is a small file beside this module. ``benchmarks/imagenet_predictor.py``
fits it to measured accuracies and prints its held-out error.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from deploynas.artifacts import Artifact, unchanged
from deploynas.errors import UnknownNameError
from deploynas.search.accuracy_model import Floats, predict
from deploynas.spaces import Archs, SearchSpace, space

FOLDER = Path(__file__).parent
SUFFIX = ".imagenet.json"


class ImageNetRecord(Artifact):
    """A fitted predictor. Format 1: first version; 2 (0.1.0): a digest.

    Attributes:
        space: Name of the space; ``resolutions``: the only ones that it knows.
        provenance: Whose measurements it was fitted to, and how many.
        ceiling, weights: See :mod:`deploynas.search.accuracy_model`.
        rmse, bias, spearman: Held out, each source of measurements by a model of the others;
            means over the sources, of the biases' sizes. Fractions.
        accuracy_range, macs_range: Of the networks that it was fitted to.
    """

    SCHEMA: ClassVar[str] = "deploynas-imagenet-predictor"
    VERSION: ClassVar[int] = 2
    ANEW: ClassVar[str] = "install deploynas again"
    MIGRATIONS = {1: unchanged}

    space: str
    resolutions: tuple[int, ...]
    provenance: str
    num_networks: int
    ceiling: float
    weights: tuple[float, ...]
    rmse: float
    bias: float
    spearman: float
    accuracy_range: tuple[float, float]
    macs_range: tuple[int, int]


class ImageNetPredictor:
    """ImageNet top-1 accuracy of recalibrated subnets, as fractions.

    Attributes:
        record: The file, with its provenance and held-out error.
        space: The space at the resolutions that the predictor knows.
        rmse: Held-out error, a fraction.
    """

    def __init__(self, record: ImageNetRecord, given: SearchSpace) -> None:
        self.record = record
        self.rmse = record.rmse
        self.space = given.with_resolutions(record.resolutions)
        self._given = given
        self._weights = np.array(record.weights)

    def predict(self, archs: Archs) -> Floats:
        """``(n,)`` accuracies; NaN at resolutions that the predictor does not know.

        Args:
            archs: Rows of ``space``, or of the space that the predictor was asked for.
        """
        rows, known = self._own(archs)
        accuracies = np.full(len(rows), np.nan)
        x = self.space.features(rows[known])
        accuracies[known] = predict(self.record.ceiling, self._weights, x)
        return accuracies

    def extrapolates(self, archs: Archs) -> np.ndarray:
        """``(n,)`` whether a network is unlike those fitted to: by accuracy, MACs, resolution."""
        rows, known = self._own(archs)
        accuracies, macs = self.predict(archs), self.space.macs(rows)
        low, high = self.record.accuracy_range
        fewest, most = self.record.macs_range
        inside: np.ndarray = (
            known & (accuracies >= low) & (accuracies <= high) & (macs >= fewest) & (macs <= most)
        )
        return ~inside

    def _own(self, archs: Archs) -> tuple[Archs, np.ndarray]:
        """The rows as rows of ``self.space``, and which of them it holds."""
        own, column = self.space.resolutions, self.space.resolution_column
        options = np.array(
            [own.index(one) if one in own else -1 for one in self._given.resolutions]
        )
        found = options[self._given.resolution_index(archs)]
        rows = np.array(archs)
        if column is not None:
            rows[:, column] = np.maximum(found, 0)
        return rows, found >= 0


def imagenet_predictor(name: str | SearchSpace) -> ImageNetPredictor:
    """The ImageNet accuracy predictor of a space.

    Args:
        name: Of the space, at all its resolutions; or a space, whose rows are then understood.

    Raises:
        UnknownNameError: There is none for that space.
    """
    given = space(name) if isinstance(name, str) else name
    path = FOLDER / f"{given.name}{SUFFIX}"
    if not path.exists():
        known = [p.name.removesuffix(SUFFIX) for p in FOLDER.glob(f"*{SUFFIX}")]
        raise UnknownNameError("space of an ImageNet accuracy predictor", given.name, known)
    return ImageNetPredictor(ImageNetRecord.read(path), given)
