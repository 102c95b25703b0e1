"""The whole life of a call, as quantities that can be limited: loading, calls, memory, throughput.

"Latency" is none of them: that is the median of calls in a tight loop beside reference models,
see :mod:`deploynas.onboard.timing`, which compares best. These are what a program sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deploynas.costs import Quantity
from deploynas.costs.quantity import BYTES, COUNT, MILLISECONDS
from deploynas.device import Device, Estimate
from deploynas.onboard.life import ENOUGH_CALLS, Life, LifeRule
from deploynas.onboard.timing import CONFIDENCE, interval


class Lived(Quantity):
    """What a life has of something, or has not.

    Attributes:
        field: Of a :class:`~deploynas.onboard.life.Life`.
        percentile: Of the life's calls; None where there is one value a life.
        lacking: Why a device may not tell.
        is_additive: Whether lives differ by so much, and not by so many per cent.
    """

    field: ClassVar[str]
    is_additive: ClassVar[bool] = False
    percentile: ClassVar[float | None] = None
    lacking: ClassVar[str] = "the device does not tell"

    @classmethod
    def value(cls, life: Life, batch: int) -> float | None:
        """Of one life, ``batch`` images a call."""
        found: Any = getattr(life, cls.field)
        if cls.percentile is None or found is None:
            return None if found is None else float(found)
        told = len(found) * min(cls.percentile, 100 - cls.percentile) / 100 >= 1
        return float(np.percentile(found, cls.percentile)) if told else None


class _Milliseconds(Lived):
    suffixes, shown = MILLISECONDS, ("ms", 1.0)


class _Memory(Lived):
    is_additive = True  # by pages, some of which are the system's
    suffixes, shown = BYTES, ("MB", 1e6)
    lacking = "the system there does not tell"


class FirstLoad(_Milliseconds):
    """Of the first network of a process."""

    name = field = "first_load_ms"
    help = "Opening the model as the first of a process, its files in the file cache."


class ColdLoad(_Milliseconds):
    """Of the first network of a process, from the disk."""

    name = field = "cold_load_ms"
    help = "The same from the disk: its files dropped from the file cache before."
    lacking = "the file cache cannot be dropped there"


class WarmLoad(_Milliseconds):
    """Of a network that the process had open before."""

    name = field = "warm_load_ms"
    help = "Opening it again in a process that had it open."


class FirstInference(_Milliseconds):
    """Of the first call."""

    name = field = "first_inference_ms"
    help = "The first call after that."


class Call(_Milliseconds):
    """The median of single calls."""

    name, field, percentile = "call_ms", "calls_ms", 50.0
    help = "A single call as its caller sees it, paced by --every: the median."


class Call90(Call):
    """Of ten calls the slowest."""

    name, percentile = "call_p90_ms", 90.0
    help = "Of ten such calls nine are as quick."
    lacking = "too few calls for it"


class Call99(Call90):
    """Of a hundred calls the slowest."""

    name, percentile = "call_p99_ms", 99.0
    help = f"Of a hundred such calls 99 are as quick; told of {ENOUGH_CALLS} calls a life or more."


class Throughput(Lived):
    """Images a second of all instances."""

    name, field = "throughput_per_s", "per_s"
    help = "Images a second of --instances processes beside each other; a limit is the least."
    suffixes, shown, at_least = COUNT, ("images/s", 1.0), True
    lacking = "no --instances were asked for"

    @classmethod
    def value(cls, life: Life, batch: int) -> float | None:
        """See :class:`Lived`."""
        calls = super().value(life, batch)
        return None if calls is None else calls * batch


class LoadMemory(_Memory):
    """While it is opened."""

    name = field = "load_peak_bytes"
    help = "Memory that opening it takes beyond an idle runtime's, at most."


class InferenceMemory(_Memory):
    """While it is called."""

    name = field = "inference_peak_bytes"
    help = "Memory that is held while it is called beyond an idle runtime's, weights included."


LIVED: Mapping[str, type[Lived]] = {
    kind.name: kind
    for kind in (
        FirstLoad, ColdLoad, WarmLoad, FirstInference, Call, Call90, Call99, Throughput,
        LoadMemory, InferenceMemory,
    )
}  # fmt: skip


@dataclass(frozen=True)
class LifeReport:
    """The lives of a call, and what they say.

    Attributes:
        rule: How they were lived.
        batch: Images a call.
        lives: Every raw value.
        estimates: Name of a :class:`Lived` -> median over the lives, with its interval; None where
            it cannot be told.
    """

    rule: LifeRule
    batch: int
    lives: tuple[Life, ...]
    estimates: Mapping[str, Estimate | None]

    @property
    def document(self) -> dict[str, object]:
        """For JSON."""
        return {
            "every_ms": self.rule.every_ms,
            "instances": self.rule.instances,
            "batch": self.batch,
            **{name: None if one is None else asdict(one) for name, one in self.estimates.items()},
            "raw": [asdict(life) for life in self.lives],
        }

    @property
    def lines(self) -> list[str]:
        """For people, what was asked for."""
        found = []
        for name, one in self.estimates.items():
            kind = LIVED[name]
            if one is not None:
                low, high = kind.format(one.low), kind.format(one.high)
                found.append(f"{name:<22}{kind.format(one.median):>14}  ({low} to {high})")
            elif kind is not Throughput or self.rule.instances:
                found.append(f"{name:<22}{'-':>14}  {kind.lacking}")
        return found


def lived(
    device: Device,
    model: Path,
    rule: LifeRule,
    batch: int,
    on_progress: Callable[[str, float], None],
) -> LifeReport:
    """Live calls of a model on a device.

    Raises:
        DeviceError: It cannot load or run it, or not as often.
        InvalidInputError: The device cannot tell.
    """
    lives: list[Life] = []
    on_progress("the life of a call", 0.0)
    for life in device.lives(model, rule):
        lives.append(life)
        on_progress("the life of a call", len(lives) / rule.lives)
    estimates = {name: _estimate(kind, lives, batch) for name, kind in LIVED.items()}
    return LifeReport(rule, batch, tuple(lives), estimates)


def _estimate(kind: type[Lived], lives: Sequence[Life], batch: int) -> Estimate | None:
    """Mean over lives, mostly of logarithms, with Student's interval; as of sessions elsewhere."""
    values = [value for life in lives if (value := kind.value(life, batch)) is not None]
    if len(values) < max(2, len(lives)):
        return None
    if kind.is_additive:
        low, centre, high = (max(0.0, x) for x in interval(np.array(values), CONFIDENCE))
    else:
        low, centre, high = (math.exp(x) for x in interval(np.log(values), CONFIDENCE))
    count = sum(len(life.calls_ms) for life in lives) if kind.percentile else len(values)
    return Estimate(centre, low, high, count)
