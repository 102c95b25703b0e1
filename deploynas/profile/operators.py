"""The operator layer: what each operator of any network takes, told from fragments timed together.

The time of a fragment is the sum of its operators'. What an operator takes is a first guess, by
its kind and its numbers of multiply-adds and bytes, times a correction that is smooth in its
shape: 1 + g, g a Gaussian process (Rasmussen and Williams 2006, chapter 2) that operators of one
kind share the more the more alike they are. Sums of a Gaussian process are one too, so that whole
fragments and whole networks are what it is fitted to; nothing is timed alone. Its own deviation
tells how far from the grid an operator is.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deploynas.device import Device, StopRule
from deploynas.errors import IncompleteProfileError
from deploynas.graph.fragments import build, grid
from deploynas.graph.operators import BLOCK, Operator, Priced, operators_of_model
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.timing import typical_level
from deploynas.profile.device_profile import (
    DeviceProfile,
    FragmentRecord,
    LevelRecord,
    SampleRecord,
    Validation,
    open_journal,
)
from deploynas.profile.latency_model import judge
from deploynas.profile.profiler import OnProgress, replay, timed

Floats = npt.NDArray[np.float64]
BUDGET_MINUTES = 6.0
RULE = StopRule(precision=0.01, min_sessions=3, max_sessions=12, rounds=8)
NUM_FOLDS = 6
# The process: deviation of corrections, the parts of it that operators of one kind, of one kind
# and variant, and of alike shapes share, and over how many octaves shapes are alike.
DEVIATION = 0.4
OF_KIND, OF_VARIANT, OF_SHAPE, OF_NEAR = 0.2, 0.2, 0.4, 0.2
OCTAVES, NEAR_OCTAVES = 3.0, 1.0
NOISE = 0.015  # what a session's layout of memory adds to a fragment's time
LEAST = 0.2  # of the first guess, whatever the correction
STRANGE = 0.35  # an operator is strange where so much of its correction's deviation is left
_CACHES = (1e6, 4e6, 16e6, 64e6)  # bytes of weights beyond which they may be streamed
_DENSE = ("conv", "pointwise", "depthwise", "grouped")


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

    def predict(self, graph: Sequence[Priced]) -> NetworkPrice:
        """What a network takes.

        Args:
            graph: Its nodes; see :func:`deploynas.graph.operators.operators`.
        """
        fit, total = self._fit, Counter(op for node in graph for op in node.operators)
        parts = list(total)
        price = fit.price(parts)
        stream = fit.stream_per_byte(sum(op.weight_bytes * n for op, n in total.items()))
        ms_of = {
            op: float(ms) + stream * op.weight_bytes
            for op, ms in zip(parts, price.ms, strict=True)
        }
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
        deviation = fit.deviation(price.covariance, price.known, shares)
        strange = sum(node.ms for node in nodes if node.is_strange) / ms
        wider = max(1.0, deviation / self._usual)
        return NetworkPrice(nodes, ms, self.validation.margin * wider + strange, strange)


def _data(profile: DeviceProfile) -> tuple[list[Counter[Operator]], Floats, Floats]:
    """Of every fragment its operators, its time and that time's relative deviation."""
    estimates = [profile.estimate(record.samples) for record in profile.fragments.values()]
    counts = [Counter(dict(record.operators)) for record in profile.fragments.values()]
    times = np.array([one.median for one in estimates])
    return counts, times, np.array([min(one.half_width, 0.5) / 2 for one in estimates])


# the first guess


def _group(op: Operator) -> str:
    """Operators whose first guess has the same rates."""
    if op.kind in _DENSE:
        return f"{op.kind} {'blocked' if op.blocked else 'plain'}"
    if op.kind == "elementwise":
        name, _, where = op.variant.partition(" ")
        costly = "costly" if name not in _CHEAP else "cheap"
        return f"{op.kind} {costly} {where}"
    return f"{op.kind} {op.variant}" if op.kind in ("pool", "global_pool", "norm") else op.kind


_CHEAP = ("Abs", "Add", "Clip", "Div", "LeakyRelu", "Max", "Min", "Mul", "Neg", "PRelu", "Relu",
          "Sub")  # fmt: skip


def _work(op: Operator) -> tuple[float, ...]:
    """One call, its multiply-adds as the device pads channels, bytes read, written, of weights."""
    macs = float(op.macs)
    if op.blocked and op.kind != "depthwise":
        macs *= _padding(op.in_channels) * _padding(op.out_channels)
    elif op.blocked:
        macs *= _padding(op.groups)
    return 1.0, macs, float(op.in_bytes), float(op.out_bytes), float(op.weight_bytes)


def _padding(channels: int) -> float:
    return -(-channels // BLOCK) * BLOCK / channels if channels >= BLOCK else 1.0


@dataclass(frozen=True)
class _Guess:
    """Rates of each group of operators, and of any operator."""

    rates: dict[str, Floats]
    general: Floats
    stream: Floats

    def __call__(self, ops: Sequence[Operator]) -> Floats:
        """``(n,)`` milliseconds; of groups that were never measured by the general rates."""
        found = np.empty(len(ops))
        for i, op in enumerate(ops):
            work, general = np.array(_work(op)), float(np.dot(_work(op), self.general))
            rates = self.rates.get(_group(op))
            found[i] = general if rates is None else max(float(work @ rates), 0.02 * general)
        return found


def _guess(counts: list[Counter[Operator]], times: Floats) -> _Guess:
    """Rates that are not negative, fitted to relative errors."""
    names = sorted({_group(op) for count in counts for op in count})
    place = {name: 5 * i for i, name in enumerate(names)}
    table = np.zeros((len(counts), 5 * len(names) + len(_CACHES)))
    for row, count in zip(table, counts, strict=True):
        weights = 0.0
        for op, num in count.items():
            start = place[_group(op)]
            row[start : start + 5] += num * np.array(_work(op))
            weights += num * op.weight_bytes
        row[len(row) - len(_CACHES) :] = _streams(weights) * weights
    whole = table[:, : 5 * len(names)].reshape(len(table), -1, 5)
    scaled = whole.sum(axis=1) / times[:, None]
    general = _not_negative(scaled, np.ones(len(times)))
    # a weak prior: every group as any other
    prior = np.concatenate([np.tile(general, len(names)), np.zeros(len(_CACHES))])
    x = table / times[:, None]
    rates = _not_negative(x, np.ones(len(times)), prior)
    own = rates[: 5 * len(names)].reshape(-1, 5)
    return _Guess(
        dict(zip(names, own, strict=True)), np.maximum(general, 0), rates[5 * len(names) :]
    )


def _streams(total_bytes: float) -> Floats:
    """Share of a network's weights that do not stay in caches of some sizes."""
    return np.array([max(0.0, 1 - cache / max(total_bytes, 1.0)) for cache in _CACHES])


def _not_negative(x: Floats, y: Floats, prior: Floats | None = None) -> Floats:
    """Least squares with no negative weight, drawn weakly to ``prior``; coordinate descent."""
    scale = np.sqrt((x**2).sum(axis=0)) + 1e-30
    z = x / scale
    start = np.zeros(x.shape[1]) if prior is None else prior * scale
    weights = start.copy()
    gram, wanted = z.T @ z, z.T @ y
    penalty = 1e-6 if prior is None else 0.01
    for _ in range(400):
        before = weights.copy()
        for j in range(len(weights)):
            rest = wanted[j] - gram[j] @ weights + gram[j, j] * weights[j] + penalty * start[j]
            weights[j] = max(0.0, rest / (gram[j, j] + penalty))
        if np.abs(weights - before).max() < 1e-7 * max(1.0, np.abs(weights).max()):
            break
    found: Floats = weights / scale
    return found


# the correction


def _shape(op: Operator) -> tuple[float, ...]:
    """What makes operators of a kind alike: octaves."""
    high, wide = op.kernel
    pads = (_padding(op.in_channels), _padding(op.out_channels), _padding(op.groups))
    return (
        math.log2(op.in_channels), math.log2(op.out_channels), math.log2(op.groups),
        math.log2(max(1, op.out_pixels)), 2 * math.log2(max(1, op.in_pixels) / max(1, op.out_pixels)),
        1.5 * math.log2(high * wide), 2 * math.log2(high / wide),
        *(3 * math.log2(pad) if op.blocked else 0.0 for pad in pads),
    )  # fmt: skip


@dataclass(frozen=True)
class _Table:
    """Operators as columns.

    Attributes:
        kinds, variants: ``(n,)`` texts.
        shapes: ``(n, 10)``.
    """

    kinds: npt.NDArray[np.str_]
    variants: npt.NDArray[np.str_]
    shapes: Floats

    @classmethod
    def of(cls, ops: Sequence[Operator]) -> _Table:
        return cls(
            np.array([op.kind for op in ops]),
            np.array([f"{op.variant} {op.blocked}" for op in ops]),
            np.array([_shape(op) for op in ops]),
        )

    def covariance(self, other: _Table) -> Floats:
        """``(n, m)`` of corrections."""
        found = np.zeros((len(self.kinds), len(other.kinds)))
        for kind in set(self.kinds) & set(other.kinds):
            own, others = np.flatnonzero(self.kinds == kind), np.flatnonzero(other.kinds == kind)
            a, b = self.shapes[own], other.shapes[others]
            squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
            same = self.variants[own][:, None] == other.variants[others]
            # where variants differ, what shapes tell is half as good
            alike = OF_SHAPE * np.exp(-squares / (2 * OCTAVES**2))
            alike += OF_NEAR * np.exp(-squares / (2 * NEAR_OCTAVES**2))
            found[np.ix_(own, others)] = OF_KIND + same * OF_VARIANT + (0.5 + 0.5 * same) * alike
        return DEVIATION**2 * found


@dataclass(frozen=True)
class _Price:
    """Prices of operators, their first guess, and what their deviation is told from."""

    ms: Floats
    guess: Floats
    is_strange: npt.NDArray[np.bool_]
    covariance: Floats
    known: Floats


class OperatorFit:
    """Fitted to fragments; see the module.

    Args:
        guess: The first guess.
        counts: Operators of each fragment.
        times: ``(n,)`` milliseconds.
        noise: ``(n,)`` relative deviations of them.

    Attributes:
        held_out_deviation: ``(n,)`` of each fragment's time were it not known, relative.
    """

    def __init__(
        self, guess: _Guess, counts: list[Counter[Operator]], times: Floats, noise: Floats
    ) -> None:
        self._guess = guess
        ops = sorted({op for count in counts for op in count}, key=repr)
        place = {op: i for i, op in enumerate(ops)}
        first = guess(ops)
        shares, streamed = np.zeros((len(counts), len(ops))), np.zeros(len(counts))
        for row, count in enumerate(counts):
            for op, num in count.items():
                shares[row, place[op]] = num * first[place[op]]
            weights = sum(num * op.weight_bytes for op, num in count.items())
            streamed[row] = weights * self.stream_per_byte(weights)
        whole = shares.sum(axis=1) + streamed
        shares /= whole[:, None]
        self._table, self._shares = _Table.of(ops), shares
        own = shares @ self._table.covariance(self._table) @ shares.T
        own += np.diag(noise**2 + NOISE**2)
        self._inverse = np.linalg.inv(own)
        self._solved = shares.T @ (self._inverse @ (times / whole - 1))
        self.held_out_deviation: Floats = 1 / np.sqrt(np.diag(self._inverse))

    def stream_per_byte(self, total_bytes: float) -> float:
        """Milliseconds a byte of weights costs more in a network that has so many of them."""
        return float(_streams(total_bytes) @ self._guess.stream)

    def price(self, ops: Sequence[Operator]) -> _Price:
        """Milliseconds of operators, weights in a cache."""
        table = _Table.of(ops)
        across = table.covariance(self._table)
        guess = self._guess(ops)
        ms = guess * np.maximum(1 + across @ self._solved, LEAST)
        covariance = table.covariance(table)
        nearest = across.max(axis=1, initial=0.0) / np.diag(covariance)
        return _Price(ms, guess, nearest < STRANGE, covariance, across @ self._shares.T)

    def deviation(self, covariance: Floats, known: Floats, shares: Floats) -> float:
        """Relative deviation of a network's time.

        Args:
            covariance: ``(n, n)`` of its operators' corrections.
            known: ``(n, num_fragments)``: with the fragments.
            shares: ``(n,)`` of its time.
        """
        told = shares @ known
        left = shares @ covariance @ shares - told @ self._inverse @ told
        return math.sqrt(max(left, 0.0) + NOISE**2)


def fit_operators(counts: list[Counter[Operator]], times: Floats, noise: Floats) -> OperatorFit:
    """Fit to fragments.

    Args:
        counts: Operators of each, and how many.
        times: ``(n,)`` milliseconds.
        noise: ``(n,)`` relative deviations of them.
    """
    return OperatorFit(_guess(counts, times), counts, times, noise)


def total_ms(fit: OperatorFit, counts: Sequence[Counter[Operator]]) -> Floats:
    """``(n,)`` milliseconds of networks by their operators."""
    found = []
    for count in counts:
        ops = list(count)
        weights = sum(num * op.weight_bytes for op, num in count.items())
        ms = fit.price(ops).ms @ np.array([count[op] for op in ops])
        found.append(float(ms) + weights * fit.stream_per_byte(weights))
    return np.array(found)


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


# measuring


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
        profile = DeviceProfile.read(path) if path.exists() else None
        profile = profile or DeviceProfile(identity=device.identity)
        profile.require_same_device(device.identity, path, "choose another file with --output")
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
        samples = timed(device, paths, (title, rule), journal, old, on_progress)
        for one in lacking:
            records[one.name] = FragmentRecord(
                is_network=one.is_network,
                operators=tuple(counts[one.name].items()),
                samples=SampleRecord.of(samples[one.name]),
            )
        level = profile.level or LevelRecord(**asdict(typical_level(samples.values())))
        profile = profile.model_copy(update={"fragments": records, "level": level}, deep=True)
        validation = held_out(profile)
        profile = profile.model_copy(update={"operator_validation": validation})
        profile.write(path)
        journal.remove()
        return profile, len(lacking)
