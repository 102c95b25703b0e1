"""The one result format of every strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from deploynas.artifacts import Artifact, Record, unchanged
from deploynas.device import Drift, Identity
from deploynas.profile.device_profile import Precision
from deploynas.search.budget import Budget
from deploynas.spaces import ArchRecord, Resolution, SpaceRecord

AccuracyKind = Literal["measured", "predicted"]
FoundBy = Literal["strategy", "random", "uniform", "largest", "drawn"]
SearchWeights = Literal["shared", "published", "paths", "trained"]


class Candidate(Record):
    """A network with its costs.

    Attributes:
        predicted_latency_ms: At the result's reference level; None where a new classifier is not
            in the profile.
        prediction_error: Relative half-width of the latency model's bound.
        extrapolated: The prediction lies outside the calibrated range.
        accuracy: A fraction: measured on the whole validation split, or what a predictor expects.
        accuracy_error: Of a predicted accuracy: the predictor's held-out RMSE, a fraction.
        accuracy_extrapolated: The predictor was fitted to nothing like this network.
        costs: Name -> prediction, of what else was limited.
    """

    architecture: ArchRecord
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
    costs: dict[str, float] = {}


class FrontPoint(Record):
    """A network that no other evaluated one beats in accuracy and in every cost of the front.

    Attributes:
        costs: In the order of the front's.
        accuracy: That of the search's inner loop: on part of the validation split, or predicted.
    """

    architecture: ArchRecord
    predicted_latency_ms: float
    costs: tuple[float, ...]
    accuracy: float


class TradeOff(Record):
    """What a front is worth.

    Attributes:
        costs: Names; the predicted latency alone where no others were asked for.
        hypervolume: That the front dominates up to ``worst`` and ``worst_accuracy``, the
            corner of what was evaluated, as a share of the box between that corner and the
            front's own best costs and accuracy: 1 where one network is best in all.
        worst: The corner's costs.
        knee: Index in the front of the member furthest above the line between its ends: beyond it
            accuracy gets dear.
    """

    costs: tuple[str, ...]
    hypervolume: float
    worst: tuple[float, ...]
    worst_accuracy: float
    knee: int


class DecisionRecord(Record):
    """How a gradient search came from probabilities to a network.

    Attributes:
        log_probability: Of the chosen network.
        kept_log_probability: Of the likeliest network within budget, however cheap; above the
            chosen one's where that was raised to use the budget.
        free_log_probability: Of the likeliest network without a budget; what is between the two is
            what the budget cost.
        free_architecture: That network.
        num_changed: Blocks that the budget decided otherwise.
        num_raised: Blocks that are dearer than in the likeliest within budget, to use it.
        is_exact: No network within budget is likelier than the likeliest that was found.
        expected: E[cost] of every limited cost in the end.
        entropy: Mean over the blocks in the end, as a share of its maximum.
    """

    log_probability: float
    kept_log_probability: float
    free_log_probability: float
    free_architecture: ArchRecord
    num_changed: int
    num_raised: int
    is_exact: bool
    expected: dict[str, float]
    entropy: float


class DataRecord(Record):
    """What the network was trained on; enough to preprocess an image.

    Attributes:
        fingerprint: Of the images; empty where they are not here.
        size: At which they were loaded.
        crop: What their centre crop keeps: see :meth:`Resolution.part_of`.
    """

    name: str
    source: str
    fingerprint: str
    classes: tuple[str, ...]
    channels: int
    size: Resolution
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0


def _one_measured(document: dict[str, Any]) -> dict[str, Any]:
    latency = document.pop("measured_latency_ms")
    return document | {"measured": {} if latency is None else {"latency_ms": latency}}


class SearchResult(Artifact):
    """What a search found.

    Format 1: first version; 2: a front names its costs; 3 (0.1.0): the job, and who found the
    network; 4 (0.1.0): whatever was limited may be measured, and profiles may be several;
    5: a digest.

    Attributes:
        job: Hash of the whole :class:`~deploynas.search.job.Job`; empty before format 3.
        found_by: The strategy, or what was evaluated beside it: the random search, the uniform
            networks, or the largest network, where no limit binds; or what was drawn in the end,
            where nothing evaluated was quick enough.
        best: The chosen network; ``random_best``: the best of a random search with as many
            evaluations; ``uniform_best``: the best evaluated network with one depth, kernel
            size and expand ratio everywhere, where one keeps the budget; ``largest`` and
            ``smallest``: the space's. None where nothing was evaluated beside the strategy.
        front: The Pareto front among what the strategy evaluated, cheapest first; ``trade_off``
            says what it is worth.
        not_binding: Limits that even the dearest network keeps.
        measured: Of the chosen network: limited cost -> upper confidence bound, where the devices
            were attached.
        options: The strategy's own.
        profile: Path of the device profile; ``device`` is whose it is.
        profiles: Of other devices whose latency was limited: name -> path.
        precision: Of the latencies: what the network is to be exported in.
        core_ms, memory_ms: The reference level of the predicted latencies.
        drift: Of the machine since its profile, with which they are predicted; None in earlier
            files. ``drifts``: of other devices, by name.
        supernet: Run of a trained supernet, the file of a published one, or the search's own run.
        weights: Which of the three: ``shared``, ``published``, or a set a path; or ``trained``:
            from scratch, in the search's own run.
        decision: Of a gradient search.
        inputs: Path -> SHA-256 of every file the search read.
    """

    SCHEMA: ClassVar[str] = "deploynas-search-result"
    VERSION: ClassVar[int] = 5
    ANEW: ClassVar[str] = "search again: deploynas search"
    MIGRATIONS: ClassVar[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {
        2: unchanged, 3: _one_measured, 4: unchanged
    }  # fmt: skip

    job: str = ""
    found_by: FoundBy = "strategy"
    space: SpaceRecord
    strategy: str
    seed: int
    budget: Budget
    not_binding: tuple[str, ...]
    num_evaluations: int
    best: Candidate
    random_best: Candidate | None
    uniform_best: Candidate | None
    largest: Candidate | None
    smallest: Candidate | None
    front: tuple[FrontPoint, ...]
    trade_off: TradeOff | None = None
    measured: dict[str, float]
    options: dict[str, Any] = {}
    profile: str
    profiles: dict[str, str] = {}
    precision: Precision = "fp32"
    device: Identity
    core_ms: float
    memory_ms: float
    drift: Drift | None = None
    drifts: dict[str, Drift] = {}
    data: DataRecord
    supernet: str
    weights: SearchWeights
    decision: DecisionRecord | None = None
    inputs: dict[str, str]

    @property
    def measured_latency_ms(self) -> float | None:
        """Of the chosen network, where the profile's device was attached."""
        return self.measured.get("latency_ms")

    @property
    def has_images(self) -> bool:
        """Whether it trained on images that are here, and not somebody else on theirs."""
        return self.weights != "published"

    @property
    def has_file(self) -> bool:
        """Whether the chosen network's weights are a file of their own in the run."""
        return self.weights != "shared"

    @property
    def needs_training(self) -> bool:
        """Whether the weights that judged the network are not worth to be exported."""
        return self.weights == "paths"

    @classmethod
    def file_in(cls, run: Path) -> Path:
        """Where a run directory keeps its result."""
        return run / "search.json"
