"""What a comparison of strategies found: settings, winners, the table and its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploynas.artifacts import Artifact, Record, unchanged
from deploynas.profile.latency_model import kendall_tau
from deploynas.search import Budget
from deploynas.search.result import DataRecord
from deploynas.spaces import ArchRecord, SpaceRecord
from deploynas.train import Recipe

RANDOM = "random"  # what every other strategy must beat


class Settings(Record):
    """What is compared, and how.

    Attributes:
        strategies: In the order of the table; random search is among them.
        num_seeds: Each strategy searches, and each winner is trained, with seeds 0, 1, ...
        budget: Hard limits.
        evaluator: What judges them: ``inherited`` weights of a supernet, ``training`` of each, or
            ``halving``, which stops early; one-shot and gradient searches have weights of their
            own.
        num_evaluations: Networks that a strategy without gradients may evaluate.
        supernet_epochs: Of the supernet, and of a gradient search; the recipes' own where None.
        recipe: Of every winner, but for its seed.
    """

    strategies: tuple[str, ...]
    num_seeds: int
    budget: Budget
    evaluator: str
    num_evaluations: int
    supernet_epochs: float | None
    recipe: Recipe


class Winner(Record):
    """What one strategy found with one seed.

    Attributes:
        job: Hash of the search's :class:`~deploynas.search.job.Job`.
        search_seconds: Of the search, the training of the supernet that it needs included; with
            trained candidates the processor seconds of all their trainings, also of those that
            another search asked for before; so with the best few of one-shot.
        cheap: Validation accuracy as the search saw it: with the supernet's weights, or after the
            first schedule of successive halving; None where the search saw no such one, as of
            one-shot, which trains its best few.
        validation, test: Accuracy after training from scratch; None where time was up before.
        latency_ms: Measured beside all others; with the bounds of its 95 % interval.
    """

    strategy: str
    seed: int
    job: str = ""
    architecture: ArchRecord
    search_seconds: float
    predicted_latency_ms: float
    cheap: float | None = None
    validation: float | None = None
    test: float | None = None
    train_seconds: float | None = None
    latency_ms: float | None = None
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None


class Row(Record):
    """One strategy in the table.

    Attributes:
        mean, deviation: Of the test accuracy over the seeds that were trained.
        over_random: Difference of the means; ``interval`` is half of its 95 % interval (Welch),
            None with fewer than two seeds each.
        seconds: Mean cost of a search, the supernet's training included where it needs one.
        latency_ms: Median over the seeds; ``within`` whether none is over the budget.
    """

    strategy: str
    num_trained: int
    mean: float | None
    deviation: float | None
    over_random: float | None
    interval: float | None
    seconds: float
    latency_ms: float | None
    within: bool | None

    @property
    def differs(self) -> bool | None:
        """Whether the difference to random search is larger than its noise."""
        if self.over_random is None or self.interval is None:
            return None
        return abs(self.over_random) > self.interval


class Comparison(Artifact):
    """``comparison.json``.

    Format 1: first version; 2: settings name the evaluator; 3: a winner's cheap accuracy is of
    inherited weights or of a first short schedule; 4 (0.1.0): a winner names its job, and every
    seed has supernets of its own; 5: a digest.

    Attributes:
        supernet_seconds: Schedule -> mean seconds of the training of such a supernet, which every
            strategy without gradients that goes by it needs, one a seed.
        kendall_tau: Between cheap and full validation accuracy of the distinct winners; None with
            fewer than four.
        complete: Whether nothing was left out because time was up.
    """

    SCHEMA = "deploynas-comparison"
    VERSION = 5
    ANEW = "compare again: deploynas compare"
    MIGRATIONS = {3: unchanged, 4: unchanged}  # noqa: RUF012

    space: SpaceRecord
    settings: Settings
    data: DataRecord
    profile: str
    device: str
    supernet_seconds: dict[str, float]
    winners: tuple[Winner, ...]
    rows: tuple[Row, ...]
    kendall_tau: float | None
    complete: bool

    @classmethod
    def file_in(cls, run: Path) -> Path:
        """Where a run directory keeps it."""
        return run / "comparison.json"


def rows_of(winners: Sequence[Winner], settings: Settings) -> list[Row]:
    """The table, a row a strategy."""
    base = [w.test for w in winners if w.strategy == RANDOM and w.test is not None]
    limit = settings.budget.latency_ms
    rows = []
    for strategy in settings.strategies:
        own = [w for w in winners if w.strategy == strategy]
        tests = [w.test for w in own if w.test is not None]
        latencies = [w.latency_ms for w in own if w.latency_ms is not None]
        lows = [w.latency_low_ms for w in own if w.latency_low_ms is not None]
        difference, interval = None, None
        if strategy != RANDOM and tests and base:
            difference = float(np.mean(tests) - np.mean(base))
            interval = welch(tests, base)
        rows.append(
            Row(
                strategy=strategy,
                num_trained=len(tests),
                mean=float(np.mean(tests)) if tests else None,
                deviation=float(np.std(tests, ddof=1)) if len(tests) > 1 else None,
                over_random=difference,
                interval=interval,
                seconds=float(np.mean([w.search_seconds for w in own])) if own else 0.0,
                latency_ms=float(np.median(latencies)) if latencies else None,
                within=all(low <= limit for low in lows) if limit and lows else None,
            )
        )
    return rows


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Half of the 95 % interval of a difference of means (Welch 1947); None with too few."""
    if min(len(first), len(second)) < 2:
        return None
    parts = [float(np.var(x, ddof=1)) / len(x) for x in (first, second)]
    error = sum(parts)
    if error == 0:
        return 0.0
    from scipy import stats

    degrees = error**2 / sum(
        p**2 / (len(x) - 1) for p, x in zip(parts, (first, second), strict=True)
    )
    return float(stats.t.ppf(0.975, degrees) * error**0.5)


def tau_of(winners: Sequence[Winner]) -> float | None:
    """Between cheap and full evaluation of the distinct winners, over the mean of their seeds."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for w in winners:
        if w.cheap is not None and w.validation is not None:
            pairs.setdefault(str(w.architecture), []).append((w.cheap, w.validation))
    if len(pairs) < 4:
        return None
    cheap, full = np.array([np.mean(both, axis=0) for both in pairs.values()]).T
    return kendall_tau(cheap, full)
