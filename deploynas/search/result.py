"""The one result format of every strategy."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from deploynas.artifacts import Artifact, Record
from deploynas.device import Identity
from deploynas.search.budget import Budget

AccuracyKind = Literal["measured", "predicted"]


class Candidate(Record):
    """A network with its costs.

    Attributes:
        predicted_latency_ms: At the profile's reference level; None where a new classifier is
            not in the profile.
        prediction_error: Relative half-width of the latency model's held-out 95 % residual.
        extrapolated: The prediction lies outside the calibrated range.
        accuracy: A fraction: measured on the whole validation split, or what a predictor expects.
        accuracy_error: Of a predicted accuracy: the predictor's held-out RMSE, a fraction.
        accuracy_extrapolated: The predictor was fitted to nothing like this network.
    """

    architecture: dict[str, int | list[int]]
    predicted_latency_ms: float | None
    prediction_error: float
    extrapolated: bool
    macs: int
    params: int
    peak_memory_bytes: int
    accuracy: float
    accuracy_kind: AccuracyKind = "measured"
    accuracy_error: float | None = None
    accuracy_extrapolated: bool = False


class FrontPoint(Record):
    """A network that no other evaluated one beats in both latency and accuracy.

    ``accuracy`` is that of the search's inner loop: on part of the validation split, or
    predicted.
    """

    architecture: dict[str, int | list[int]]
    predicted_latency_ms: float
    accuracy: float


class DataRecord(Record):
    """What the network was trained on; enough to preprocess an image.

    Attributes:
        fingerprint: Of the images; empty where they are not here.
        crop: Share of an image's shorter side that its centre crop keeps.
    """

    name: str
    source: str
    fingerprint: str
    classes: tuple[str, ...]
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0


class SearchResult(Artifact):
    """What a search found. Format 1 (0.1.0): first version.

    Attributes:
        best: The chosen network; ``random_best``: the best of a random search with as many
            evaluations; ``uniform_best``: the best evaluated network with one depth, kernel
            size and expand ratio everywhere, where one keeps the budget.
        front: The Pareto front among what the strategy evaluated, cheapest first.
        not_binding: Limits that even the dearest network keeps.
        measured_latency_ms: Of the chosen network, where the device was attached.
        profile: Path of the device profile; ``device`` is whose it is.
        core_ms, memory_ms: The reference level of the predicted latencies.
        supernet: Run of a trained supernet, or the file of a published one.
        is_published: Which of the two.
        inputs: Path -> SHA-256 of every file the search read.
    """

    SCHEMA: ClassVar[str] = "deploynas-search-result"
    VERSION: ClassVar[int] = 1

    space: dict[str, str | int | list[int]]
    strategy: str
    seed: int
    budget: Budget
    not_binding: tuple[str, ...]
    num_evaluations: int
    best: Candidate
    random_best: Candidate | None
    uniform_best: Candidate | None
    largest: Candidate
    smallest: Candidate
    front: tuple[FrontPoint, ...]
    measured_latency_ms: float | None
    profile: str
    device: Identity
    core_ms: float
    memory_ms: float
    data: DataRecord
    supernet: str
    is_published: bool
    inputs: dict[str, str]

    @classmethod
    def file_in(cls, run: Path) -> Path:
        """Where a run directory keeps its result."""
        return run / "search.json"
