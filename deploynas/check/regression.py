"""Is a model slower than another one, or than it was? Decided on the interval of the ratio."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from deploynas.artifacts import Artifact, sha256, unchanged
from deploynas.check.model_file import is_onnx, open_file
from deploynas.device import Device, Estimate, Identity, Level, Samples, StopRule, measure
from deploynas.errors import DeviceMismatchError, InvalidInputError, MissingFileError
from deploynas.graph.model_file import ModelFile
from deploynas.onboard.timing import estimate
from deploynas.profile.device_profile import LevelRecord, SampleRecord

Outcome = Literal["pass", "regressed", "inconclusive"]
MIN_SESSIONS = 3
MAX_ERROR = 0.05  # that the interval of any look misses the truth
SESSION = StopRule(min_sessions=1, max_sessions=1, rounds=16)
EXAMINATIONS = 3  # of each model, for the nodes that are slower
NUM_SLOWER = 5
SAME_NAMES = 0.5  # share of the nodes that must have their names in common, to be compared by them
RECORD_MARGIN = 0.015  # what the reference level leaves of the machine's drift between two runs


class LatencyRecord(Artifact):
    """A measurement to compare later ones with. Format 1: first version; 2 (0.1.0): a digest.

    Attributes:
        identity: Who measured.
        model_sha256: What.
        level: The machine's level then.
    """

    SCHEMA: ClassVar[str] = "deploynas-latency-record"
    VERSION: ClassVar[int] = 2
    ANEW: ClassVar[str] = "measure it again: deploynas check --record"
    MIGRATIONS = {1: unchanged}

    identity: Identity
    model_sha256: str
    level: LevelRecord
    samples: SampleRecord

    @classmethod
    def of(cls, device: Device, model: Path, samples: Samples) -> LatencyRecord:
        """What was measured now."""
        level = samples.level
        return cls(
            identity=device.identity,
            model_sha256=sha256(model),
            level=LevelRecord(core_ms=level.core_ms, memory_ms=level.memory_ms),
            samples=SampleRecord.of(samples),
        )


@dataclass(frozen=True)
class Baseline:
    """What a model must not be slower than.

    Attributes:
        path: A model's file, or a record (``.json``).
        max_regression: Fraction: 0.05 lets a model be 5 % slower.
        timeout_seconds: Of the whole comparison. :data:`MIN_SESSIONS` are taken in any case; of
            a model that takes seconds they have fewer rounds.
        allow_other_device: Compare with another device's record; the outcome is then never better
            than inconclusive.
    """

    path: Path
    max_regression: float = 0.05
    timeout_seconds: float = 120.0
    allow_other_device: bool = False


@dataclass(frozen=True)
class SlowerLayer:
    """A node of the model, as the runtime runs it, beside that of the same name before.

    Attributes:
        name: With the name of the other, where few are the same and they are paired by their
            kind and order.
        before_ms: None where the baseline has no such node.
    """

    name: str
    before_ms: float | None
    now_ms: float

    @property
    def words(self) -> str:
        """For people."""
        if self.before_ms is None:
            return f"{self.name}: new, {self.now_ms:.4f} ms"
        return f"{self.name}: {self.before_ms:.4f} -> {self.now_ms:.4f} ms"


@dataclass(frozen=True)
class Look:
    """One look at the ratio.

    Attributes:
        sessions: After so many.
        confidence: Of its interval alone.
        ratio: Candidate over baseline, with that interval.
    """

    sessions: int
    confidence: float
    ratio: Estimate


@dataclass(frozen=True)
class Regression:
    """A candidate beside its baseline.

    Attributes:
        outcome: By the whole interval of the last look.
        reason: In a few words.
        looks: Until it was decided; their intervals hold the truth, all of them, in 95 % of cases.
        samples: Of the candidate.
        differences: Hard fields in which a record's device differs from this one.
        slower: What :func:`slower_layers` says, where it was asked.
    """

    outcome: Outcome
    reason: str
    looks: tuple[Look, ...]
    samples: Samples
    differences: list[str]
    slower: tuple[SlowerLayer, ...] = ()

    @property
    def ratio(self) -> Estimate:
        """Candidate over baseline, with the interval that decided."""
        return self.looks[-1].ratio


def against(
    device: Device,
    model: Path,
    baseline: Baseline,
    *,
    on_progress: Callable[[str, float], None] = lambda text, share: None,
) -> Regression:
    """Time a model and its baseline in turn until the ratio tells, or the time is over.

    A session is a process of its own, for layout makes equal models differ by some per cent as
    long as their process lives. :func:`looks` says when the ratio is looked at; the last look is
    where the time is over. Of a stored record the level of the reference models is taken
    out, and the interval is wider by what that leaves.

    Args:
        device: Where.
        model: The candidate's file.
        baseline: What it is compared with, and how.
        on_progress: Called with what is going on and its share done.

    Raises:
        MissingFileError, InvalidInputError: Of the baseline.
        DeviceMismatchError: A record of another device.
        DeviceError: A model cannot be run.
    """
    path = baseline.path
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist")
    record = LatencyRecord.read(path) if path.suffix == ".json" else None
    differences = record.identity.differences(device.identity) if record else []
    if differences and not baseline.allow_other_device:
        raise DeviceMismatchError(
            f"{path} was measured on another device ({'; '.join(differences)})",
            "measure the baseline here with --baseline MODEL, or pass --allow-other-device",
        )
    models = {"candidate": model}
    if record is None:
        takes = [[(i.type, list(i.shape)) for i in open_file(one).inputs] for one in (model, path)]
        if takes[0] != takes[1]:
            raise InvalidInputError(
                f"{model} takes {_listed(takes[0])} and the baseline {path} {_listed(takes[1])}: "
                "their times do not compare"
            )
        models["baseline"] = path
    samples: dict[str, Samples] = {}
    deadline = time.monotonic() + baseline.timeout_seconds
    number, seen = 0, list[Look]()
    outcome: Outcome = "inconclusive"
    for wanted, confidence in looks():
        while number < wanted and (number < MIN_SESSIONS or time.monotonic() < deadline):
            number += 1
            rule = replace(
                SESSION, min_sessions=number, max_sessions=number,
                max_seconds=baseline.timeout_seconds / MIN_SESSIONS,
            )  # fmt: skip
            measure(device, models, rule, samples=samples)
            share = number / max(number + 1, MIN_SESSIONS)
            on_progress(f"comparing with {path.name}", share)
        if record:
            ratio = _of_record(samples["candidate"], record, confidence)
        else:
            ratio = _paired(samples, confidence)
        seen.append(Look(number, confidence, ratio))
        outcome = decide(ratio, baseline.max_regression)
        if outcome != "inconclusive" or time.monotonic() >= deadline:
            break
    reason = (
        f"{ratio.median:.3f} times the baseline (95 % interval {ratio.low:.3f}-{ratio.high:.3f}), "
        f"allowed {1 + baseline.max_regression:.3f}"
    )
    if differences:
        outcome, reason = "inconclusive", f"{reason}; but on another device"
    return Regression(outcome, reason, tuple(seen), samples["candidate"], differences)


def _listed(takes: list[tuple[str, list[int | str]]]) -> str:
    return ", ".join(f"{kind} {shape}" for kind, shape in takes) or "nothing"


def decide(ratio: Estimate, max_regression: float) -> Outcome:
    """By the whole interval: on one side of the limit, or neither."""
    if ratio.low > 1 + max_regression:
        return "regressed"
    return "pass" if ratio.high <= 1 + max_regression else "inconclusive"


def looks() -> Iterator[tuple[int, float]]:
    """After how many sessions a comparison looks, and the confidence of the interval of each look.

    Who looks again and again errs more often than once. Here each look has half the error of the
    one before, so that all of them, however many, have :data:`MAX_ERROR` at most together
    (Bonferroni's inequality), half of it on either side. The first has the largest share, for
    Student's quantiles of few sessions are what costs most.
    """
    sessions, error = MIN_SESSIONS, MAX_ERROR / 2
    while True:
        yield sessions, 1 - error
        sessions, error = sessions + max(1, sessions // 2), error / 2


def _paired(samples: dict[str, Samples], confidence: float) -> Estimate:
    """Candidate over baseline, touch by touch of the same round."""
    pairs = zip(samples["candidate"].ms, samples["baseline"].ms, strict=True)
    return estimate([np.array(a) / np.array(b) for a, b in pairs], confidence)


def _of_record(samples: Samples, record: LatencyRecord, confidence: float) -> Estimate:
    """Candidate over record, both at the record's level of the machine.

    Both errors add up in quadrature; the record is a single draw, whose error is not spent over
    the looks.
    """
    level = Level(record.level.core_ms, record.level.memory_ms)
    now = samples.estimate(level, confidence)
    then = record.samples.thaw().estimate(level, 1 - MAX_ERROR / 2)
    ratio = now.median / then.median
    half = math.hypot(*(math.log(one.high / one.median) for one in (now, then)))
    factor = math.exp(half + RECORD_MARGIN)
    return Estimate(ratio, ratio / factor, ratio * factor, now.num_samples)


def slower_layers(device: Device, model: Path, baseline: Path) -> list[SlowerLayer]:
    """The nodes that a model spends more time in than its baseline does, by name, worst first.

    By the runtime's own per-node profile, the least of some processes of each in turn. Where few
    names are the same, nodes of ONNX files are paired by their kind and order. Empty where the
    device does not tell.
    """
    now: dict[str, float] = {}
    before: dict[str, float] = {}
    for session in range(EXAMINATIONS):
        for path, found in ((baseline, before), (model, now)):
            try:
                nodes = device.examine(path, session).nodes
            except InvalidInputError:
                return []
            for name, ms in nodes.items():
                found[name] = min(ms, found.get(name, ms))
    partner = {name: name for name in now if name in before}
    if len(partner) < SAME_NAMES * len(now) and is_onnx(model) and is_onnx(baseline):
        partner = _paired_by_kind(now, before, ModelFile(model), ModelFile(baseline))
    layers = [
        SlowerLayer(
            name if partner.get(name, name) == name else f"{name} (was {partner[name]})",
            before[partner[name]] if name in partner else None,
            ms,
        )
        for name, ms in now.items()
    ]
    slower = [layer for layer in layers if layer.now_ms > (layer.before_ms or 0.0)]
    return sorted(slower, key=lambda x: (x.before_ms or 0.0) - x.now_ms)[:NUM_SLOWER]


def _paired_by_kind(
    now: Mapping[str, float], before: Mapping[str, float], model: ModelFile, baseline: ModelFile
) -> dict[str, str]:
    """Name of a node -> name of the baseline's, the first of a kind with the first of it."""
    queues: dict[str, list[str]] = {}
    kinds = {node.name: node.op_type for node in baseline.model.graph.node}
    for name in before:
        queues.setdefault(kinds.get(name, ""), []).append(name)
    kinds = {node.name: node.op_type for node in model.model.graph.node}
    pairs = {}
    for name in now:
        waiting = queues.get(kinds.get(name, ""), [])
        if waiting:
            pairs[name] = waiting.pop(0)
    return pairs


def percentage(text: str) -> float:
    """``5%`` or ``0.05`` as a fraction.

    Raises:
        InvalidInputError: Neither, or negative.
    """
    number = text.strip()
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 10:
        raise InvalidInputError(f"a share is written 5% or 0.05, got {text!r}")
    return value
