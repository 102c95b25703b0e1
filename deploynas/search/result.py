"""The one result format of every strategy."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from deploynas.artifacts import Artifact, Record
from deploynas.device import Identity
from deploynas.search.budget import Budget


class Candidate(Record):
    """A network with its costs.

    Attributes:
        predicted_latency_ms: At the profile's reference level.
        prediction_error: Relative half-width of the latency model's held-out 95 % residual.
        extrapolated: The prediction lies outside the calibrated range.
        accuracy: On the whole validation split, a fraction.
    """

    architecture: dict[str, int | list[int]]
    predicted_latency_ms: float
    prediction_error: float
    extrapolated: bool
    macs: int
    params: int
    peak_memory_bytes: int
    accuracy: float
    accuracy_kind: Literal["measured", "predicted"] = "measured"


class DataRecord(Record):
    """What the network was trained on; enough to preprocess an image."""

    name: str
    source: str
    fingerprint: str
    classes: tuple[str, ...]
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class SearchResult(Artifact):
    """What a search found. Format 1 (0.1.0): first version.

    Attributes:
        best: The chosen network; ``random_best``: the best of a random search with as many
            evaluations; ``uniform_best``: the best evaluated network with one depth, kernel
            size and expand ratio everywhere, where one keeps the budget.
        not_binding: Limits that even the dearest network keeps.
        measured_latency_ms: Of the chosen network, where the device was attached.
        profile: Path of the device profile; ``device`` is whose it is.
        core_ms, memory_ms: The reference level of the predicted latencies.
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
    measured_latency_ms: float | None
    profile: str
    device: Identity
    core_ms: float
    memory_ms: float
    data: DataRecord
    supernet: str
    inputs: dict[str, str]

    @classmethod
    def file_in(cls, run: Path) -> Path:
        """Where a run directory keeps its result."""
        return run / "search.json"
