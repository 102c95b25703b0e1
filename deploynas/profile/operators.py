"""The operator layer: what each operator of any network takes, told from fragments timed together.

What an operator takes is fitted to whole fragments and whole networks
(:mod:`deploynas.profile.operator_fit`); nothing is timed alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deploynas.device import Device, Estimate, Samples, StopRule
from deploynas.errors import IncompleteProfileError
from deploynas.graph.fragments import build, grid
from deploynas.graph.operators import Operator, Priced, operators_of_model
from deploynas.onboard.folders import temporary_folder
from deploynas.profile.device_profile import (
    DeviceProfile,
    FragmentRecord,
    LevelRecord,
    SampleRecord,
    Validation,
    open_journal,
    profile_at,
)
from deploynas.profile.latency_model import judge
from deploynas.profile.operator_fit import fit_operators, placed, total_ms
from deploynas.profile.profiler import OnProgress, replay, timed

Floats = npt.NDArray[np.float64]
BUDGET_MINUTES = 6.0
RULE = StopRule(precision=0.01, min_sessions=3, max_sessions=12, rounds=8)
NUM_FOLDS = 6


@dataclass(frozen=True)
class PricedNode:
    """A node and its price.

    Attributes:
        name, kind: Of the node.
        ms: Milliseconds; 0 where it runs inside another, or not at all.
        is_strange: Whether nothing measured resembles it.
    """

    name: str
    kind: str
    ms: float
    is_strange: bool


@dataclass(frozen=True)
class NetworkPrice:
    """A network's predicted latency.

    Attributes:
        nodes: In order; the call itself is the last.
        ms: Their sum.
        margin: Share of ``ms`` that 95 % of networks lie from it at most, wider where operators
            are far from those measured.
        strange_share: Of ``ms``: of nodes that nothing measured resembles.
    """

    nodes: list[PricedNode]
    ms: float
    margin: float
    strange_share: float

    @property
    def low_ms(self) -> float:
        """Lower end."""
        return self.ms * max(0.0, 1 - self.margin)

    @property
    def high_ms(self) -> float:
        """Upper end."""
        return self.ms * (1 + self.margin)

    @property
    def strange(self) -> list[PricedNode]:
        """Nodes that nothing measured resembles."""
        return [node for node in self.nodes if node.is_strange]


class OperatorModel:
    """Predicts the latency of any network, node by node.

    Args:
        profile: Holds fragments.

    Attributes:
        validation: Its error on networks, each held out.

    Raises:
        IncompleteProfileError: It holds none; says what to type.
    """

    def __init__(self, profile: DeviceProfile) -> None:
        if not profile.fragments or profile.operator_validation is None:
            raise IncompleteProfileError(
                "the profile holds no operators, which price a file that no space built",
                f"add them: deploynas profile --operators --device {profile.identity.name}",
            )
        self.profile = profile
        self.validation = profile.operator_validation
        self._fit = fit_operators(*_data(profile))
        networks = [record.is_network for record in profile.fragments.values()]
        self._usual = float(np.median(self._fit.held_out_deviation[networks]))

    def predict_ms(self, graphs: Sequence[Sequence[Priced]]) -> Floats:
        """``(n,)`` milliseconds of many networks, the sum of :meth:`predict` alone."""
        return total_ms(
            self._fit, [Counter(op for node in graph for op in node.operators) for graph in graphs]
        )

    def predict(self, graph: Sequence[Priced]) -> NetworkPrice:
        """What a network takes.

        Args:
            graph: Its nodes; see :func:`deploynas.graph.operators.operators`.
        """
        fit, total = self._fit, Counter(op for node in graph for op in node.operators)
        parts = list(total)
        price = fit.price(placed(total))
        ms_of = {op: float(ms) for op, ms in zip(parts, price.ms, strict=True)}
        is_strange = dict(zip(parts, price.is_strange, strict=True))
        nodes = [
            PricedNode(
                node.name, node.kind, sum(ms_of[op] for op in node.operators),
                any(is_strange[op] for op in node.operators),
            )
            for node in graph
        ]  # fmt: skip
        ms = sum(node.ms for node in nodes)
        shares = np.array([total[op] for op in parts]) * price.guess / ms
        deviation = fit.deviation(price, shares)
        strange = sum(node.ms for node in nodes if node.is_strange) / ms
        wider = max(1.0, deviation / self._usual)
        return NetworkPrice(nodes, ms, self.validation.margin * wider + strange, strange)


def quiet_ms(profile: DeviceProfile, samples: Samples) -> Estimate:
    """What a model takes at the profile's level while nothing else runs."""
    return samples.least(profile.reference)


def _data(profile: DeviceProfile) -> tuple[list[Counter[Operator]], Floats, Floats]:
    """Of every fragment its operators, its time and that time's relative deviation."""
    estimates = [quiet_ms(profile, one.samples.thaw()) for one in profile.fragments.values()]
    counts = [Counter(dict(record.operators)) for record in profile.fragments.values()]
    times = np.array([one.median for one in estimates])
    return counts, times, np.array([_deviation(one) for one in estimates])


def _deviation(one: Estimate) -> float:
    """Of an estimate, relative; no more than a tenth, for few sessions hardly tell it."""
    return min(one.half_width / 2, 0.1)


def held_out(profile: DeviceProfile) -> Validation:
    """Error on the networks, each priced by a model fitted without it and those of its fold."""
    counts, times, noise = _data(profile)
    networks = np.flatnonzero([record.is_network for record in profile.fragments.values()])
    predicted = np.empty(len(networks))
    for fold in range(NUM_FOLDS):
        held = networks[fold::NUM_FOLDS]
        kept = [i for i in range(len(counts)) if i not in set(held.tolist())]
        if len(held):
            fit = fit_operators([counts[i] for i in kept], times[kept], noise[kept])
            predicted[fold::NUM_FOLDS] = total_ms(fit, [counts[i] for i in held])
    return judge(predicted, times[networks], list(2 * noise[networks]))


def profile_operators(
    device: Device,
    path: Path,
    *,
    budget_minutes: float = BUDGET_MINUTES,
    on_progress: OnProgress = lambda text, share: None,
) -> tuple[DeviceProfile, int]:
    """Measure the grid of fragments that the profile at ``path`` lacks, and save it.

    An interrupted run leaves a journal beside the file, which the next run reads.

    Args:
        device: Measures.
        path: The profile's file.
        budget_minutes: Hard limit on measuring.
        on_progress: Called with what is going on and its share done.

    Returns:
        The profile, and the number of fragments measured now.

    Raises:
        DeviceMismatchError: The file holds samples of another device.
        InvalidInputError, OutputError, DeviceError: See their classes.
    """
    started = time.monotonic()
    with open_journal(path) as journal, temporary_folder() as folder:
        profile = profile_at(path, device.identity)
        old = replay(journal, device)
        records, paths = dict(profile.fragments), {}
        lacking = [one for one in grid() if one.name not in records]
        counts = {}
        for i, one in enumerate(lacking):
            model = build(one)
            counts[one.name] = Counter(
                op for node in operators_of_model(model) for op in node.operators
            )
            paths[one.name] = folder / f"{one.name}.onnx"
            paths[one.name].write_bytes(model.SerializeToString())
            on_progress(f"writing {len(lacking)} fragments", (i + 1) / len(lacking))
        left = max(1.0, 60 * budget_minutes - (time.monotonic() - started))
        rule = StopRule(**{**asdict(RULE), "max_seconds": left, "soft_seconds": left * 0.7})
        title = f"{len(lacking)} fragments"
        samples = timed(device, paths, title, rule, journal, old, on_progress)
        for one in lacking:
            records[one.name] = FragmentRecord(
                is_network=one.is_network,
                operators=tuple(counts[one.name].items()),
                samples=SampleRecord.of(samples[one.name]),
            )
        level = profile.level or _level(samples.values())
        profile = profile.model_copy(update={"fragments": records, "level": level}, deep=True)
        validation = held_out(profile)
        profile = profile.model_copy(update={"operator_validation": validation})
        profile.write(path)
        journal.remove()
        return profile, len(lacking)


def _level(samples: Iterable[Samples]) -> LevelRecord:
    """The references' lower quartile: what they take where little else runs."""
    found = [(one.core_ms, one.memory_ms) for one in samples]
    core, memory = (
        float(np.quantile(np.concatenate([np.concatenate(one[i]) for one in found]), 0.25))
        for i in range(2)
    )
    return LevelRecord(core_ms=core, memory_ms=memory)
