"""The timing engine: interleaved, reference-normalised rounds over any set of ONNX models.

A *round* touches every model once, in a new order, with the reference set timed before and
after each touch or a few short ones. A *session* is a worker process with its own sessions in
its own order of creation; several are drawn, because equal models in one process differ
steadily by some per cent. Rounds and sessions go on until every interval is narrow enough.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deploynas.onboard.conversation import Worker, open_worker
from deploynas.onboard.processor import BusyCores

Floats = npt.NDArray[np.float64]
MEMORY_BYTES = 12_800_000  # weights that the memory reference streams
CONFIDENCE = 0.95  # of an interval
UNSTABLE = 0.03  # relative half-width above which a report says "unstable"
PRIVATE_CACHE_BYTES = 4_000_000  # weights below this do not feel the shared memory
REFERENCE_EVERY_MS = 60.0  # of model time inside a round
READING_RUNS = 3
MAX_ROUNDS = 60  # of a session that is lengthened
LEAST_ROUNDS = 4
COPIES = 3  # of the reference set in a session: each is a draw of memory layout
NUM_REFERENCES = 2 * COPIES


@dataclass(frozen=True)
class StopRule:
    """When a measurement ends.

    Attributes:
        precision: Relative half-width of the 95 % interval that is good enough.
        min_sessions, max_sessions: Worker processes drawn.
        rounds: Rounds in each session, at least.
        session_seconds: A session of fewer seconds goes on, up to :data:`MAX_ROUNDS`. Single
            touches of fast networks scatter by some per cent, and opening a session costs
            more than a round of them.
        max_seconds: Hard limit on the whole measurement, checked between rounds; the first
            session has :data:`LEAST_ROUNDS` in any case.
        soft_seconds: Later than this no session beyond ``min_sessions`` is begun: networks that
            are fast get more sessions, for noise is a larger part of what they take.
        touch_ms: A touch of a fast model repeats it until it took about this long.
    """

    precision: float = 0.01
    min_sessions: int = 3
    max_sessions: int = 8
    rounds: int = 12
    session_seconds: float = 0.0
    max_seconds: float = math.inf
    soft_seconds: float = math.inf
    touch_ms: float = 1.0


@dataclass(frozen=True)
class Level:
    """How fast the machine was: the reference set's times in milliseconds."""

    core_ms: float
    memory_ms: float


@dataclass
class Samples:
    """Raw samples of one model: one list a session, one entry a touch.

    Attributes:
        model_bytes: Size of the ONNX file, of which the weights are nearly all.
        ms: Milliseconds: the median of the touch's runs.
        core_ms, memory_ms: The reference levels around that touch.
    """

    model_bytes: int
    ms: list[list[float]] = field(default_factory=list)
    core_ms: list[list[float]] = field(default_factory=list)
    memory_ms: list[list[float]] = field(default_factory=list)

    def add(self, new_session: bool, ms: float, level: Level) -> None:
        """Append one touch to the last session, or to a new one."""
        values = (ms, level.core_ms, level.memory_ms)
        for sessions, value in zip(self._columns, values):
            if new_session:
                sessions.append([])
            sessions[-1].append(value)

    def clear(self) -> None:
        """Forget every touch."""
        for sessions in self._columns:
            sessions.clear()

    @property
    def _columns(self) -> tuple[list[list[float]], ...]:
        return self.ms, self.core_ms, self.memory_ms

    @property
    def num_samples(self) -> int:
        """Touches in all sessions."""
        return sum(map(len, self.ms))

    @property
    def level(self) -> Level:
        """Median reference levels over all touches."""
        return Level(
            float(np.median(np.concatenate(self.core_ms))),
            float(np.median(np.concatenate(self.memory_ms))),
        )

    def estimate(self, at: Level | None = None, confidence: float = CONFIDENCE) -> Estimate:
        """Median latency with its interval.

        Args:
            at: Normalise each touch to this level of the machine; raw times by default.
            confidence: Of the interval.
        """
        return estimate(self.sessions(at), confidence)

    def sessions(self, at: Level | None = None) -> list[Floats]:
        """A session's touches each, milliseconds; ``at`` as in :meth:`estimate`."""
        if at is None:
            return [np.array(session) for session in self.ms]
        return [np.array(ms) / slower for ms, slower in zip(self.ms, self.slowdowns(at))]

    def slowdowns(self, at: Level) -> list[Floats]:
        """A session's touches each: how much longer than at a level the model took, as a ratio."""
        share = self._memory_share(at)
        return [
            (_smooth(core) / at.core_ms) ** (1 - share) * (_smooth(memory) / at.memory_ms) ** share
            for core, memory in zip(self.core_ms, self.memory_ms)
        ]

    def least(self, at: Level) -> Estimate:
        """As :meth:`estimate`, of the least touch of each session over the least reference there.

        What other programs do only adds, and more to long models than to the references: beside
        them the least is what can be compared with the least of other models.
        """
        share = self._memory_share(at)
        sessions = [
            np.array([min(ms)])
            * (at.core_ms / min(core)) ** (1 - share)
            * (at.memory_ms / min(memory)) ** share
            for ms, core, memory in zip(*self._columns)
        ]
        return estimate(sessions)

    def _memory_share(self, at: Level) -> float:
        """How much of a change of the memory level the model feels, 0 to 1.

        Its rate of streaming weights over that of the memory reference; none where the
        weights fit into a private cache.
        """
        if self.model_bytes < PRIVATE_CACHE_BYTES:
            return 0.0
        median = float(np.median(np.concatenate(self.ms)))
        return min(1.0, self.model_bytes / median / (MEMORY_BYTES / at.memory_ms))


def typical_level(samples: Iterable[Samples]) -> Level:
    """Median reference levels over the medians of several models."""
    levels = [one.level for one in samples]
    return Level(
        float(np.median([level.core_ms for level in levels])),
        float(np.median([level.memory_ms for level in levels])),
    )


def _smooth(levels: Sequence[float]) -> Floats:
    """Running median over five touches: a reference reading has its own noise."""
    padded = np.pad(np.array(levels), 2, mode="reflect" if len(levels) > 2 else "edge")
    windows: Floats = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1)
    return windows


@dataclass(frozen=True)
class Estimate:
    """A latency in milliseconds, or a ratio, with its confidence interval.

    ``num_samples`` counts every touch.
    """

    median: float
    low: float
    high: float
    num_samples: int

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit, or at another level."""
        return Estimate(
            self.median * factor, self.low * factor, self.high * factor, self.num_samples
        )

    @property
    def half_width(self) -> float:
        """Half the interval, relative to the median."""
        return (self.high - self.low) / 2 / self.median

    @property
    def unstable(self) -> bool:
        """Whether the samples do not say much."""
        return not self.half_width <= UNSTABLE


def estimate(sessions: Sequence[Floats], confidence: float = CONFIDENCE) -> Estimate:
    """Geometric mean of the sessions' medians, with Student's interval over the sessions.

    The median discards the outliers inside a session; a session is one draw of memory layout, so
    that what the next process will see scatters as the sessions do, their own noise included. A
    single session tells nothing of others: its interval is that of its touches, and too narrow.

    Args:
        sessions: One array of touches each, milliseconds or ratios.
        confidence: Share of such intervals that hold the truth.
    """
    logs = [np.log(session) for session in sessions]
    if len(logs) > 1:
        found = interval(np.array([np.median(session) for session in logs]), confidence)
    else:  # a median's error is sqrt(pi / 2) times a mean's
        num, centre = len(logs[0]), np.median(logs[0])
        error = math.sqrt(math.pi / 2 / num) * _spread(logs[0])
        found = centre + t_quantile(confidence, max(1, num - 1)) * error * np.arange(-1, 2)
    low, median, high = (float(value) for value in np.exp(found))
    return Estimate(median, low, high, sum(map(len, sessions)))


def interval(logs: Floats, confidence: float) -> Floats:
    """``(3,)`` low end, centre and high end of Student's interval of two sessions or more.

    Args:
        logs: ``(n,)`` logarithms of the sessions' medians; see :func:`_drawn_in`.
        confidence: Share of such intervals that hold the truth.
    """
    drawn = _drawn_in(logs)
    num = len(drawn)
    half = t_quantile(confidence, num - 1) * drawn.std(ddof=1) / math.sqrt(num)
    around: Floats = drawn.mean() + half * np.arange(-1, 2)
    return around


def _spread(values: Floats) -> float:
    """Standard deviation, told by the median absolute deviation."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _drawn_in(logs: Floats) -> Floats:
    """Medians of sessions, those that something disturbed as a whole drawn in to the others.

    To 6 robust standard deviations, and no nearer than 2 %; of fewer than six sessions none is.
    Further out than sessions that merely differ ever are: to leave sessions out, or to draw in
    nearer ones, would make the interval too narrow.
    """
    if len(logs) < 6:
        return logs
    centre, bound = np.median(logs), max(6 * _spread(logs), 0.02)
    return np.clip(logs, centre - bound, centre + bound)


@functools.cache
def t_quantile(share: float, df: int) -> float:
    """Within what, either way, Student's t of ``df`` degrees of freedom stays by ``share``.

    By the finite series of its distribution (Abramowitz and Stegun, 26.7.3 and 26.7.4); a board
    has no scipy.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(53):  # halves an angle to the last bit
        angle = (low + high) / 2
        below = _t_within(angle, df) < share
        low, high = (angle, high) if below else (low, angle)
    return math.sqrt(df) * math.tan(low)


def _t_within(angle: float, df: int) -> float:
    """Share of Student's t within +-sqrt(df) tan(angle)."""
    odd = df % 2
    total, term = 0.0, math.cos(angle) if odd else 1.0
    for power in range(odd, df - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    share = math.sin(angle) * total
    return 2 / math.pi * (angle + share) if odd else share


@dataclass(frozen=True)
class Round:
    """What one round measured.

    Attributes:
        number: In its session, from 0.
        touches: Name -> milliseconds, and the machine's level around them.
        done: Share of the expected work.
        others: Cores that other programs, or other guests of the machine, have kept busy since
            the session began; NaN where the system does not tell.
    """

    number: int
    touches: dict[str, tuple[float, Level]]
    done: float
    others: float


def run_rounds(
    command: Callable[[int], Sequence[str]],
    runtime: str,
    references: Sequence[Path],
    models: Mapping[str, Path],
    rule: StopRule,
    samples: dict[str, Samples],
    seed: int,
) -> Generator[Round, None, None]:
    """The engine: time ``models`` (name -> ONNX file), a round after the other.

    Args:
        command: Command line of a worker, by the session's number: it goes on from the sessions
            that are there, so that cores rotate over several measurements of the same samples.
        runtime: What errors call it.
        references: Files of the reference set.
        models: What.
        rule: When to stop. Models that are precise enough leave after ``min_sessions``.
        samples: Filled in place; sessions that are there already count.
        seed: Of the orders of creation and of touching.

    Raises:
        DeviceError: The device vanished or crashed.
        ModelError: It cannot run a model.
    """
    rng = np.random.default_rng([seed, *(len(s.ms) for s in samples.values())])
    start = time.monotonic()
    total = max(rule.min_sessions - len(samples[name].ms) for name in models)
    before = max(len(samples[name].ms) for name in models)
    for session in range(rule.max_sessions):
        elapsed = time.monotonic() - start
        late = elapsed > rule.soft_seconds
        open_names = [n for n in models if _is_open(samples[n], rule, late)]
        out_of_time = elapsed > rule.max_seconds
        if not open_names or (session and out_of_time):
            break
        names = [open_names[i] for i in rng.permutation(len(open_names))]
        files = [*[("the reference model", path) for path in references] * COPIES]
        files += [(name, models[name]) for name in names]
        with open_worker(command(before + session), files, runtime) as worker:
            plan = _Plan(worker, names, rule.touch_ms)
            load = BusyCores(worker.pid)
            opened, round_number, done = time.monotonic(), 0, 0.0
            while done < 1.0:
                has_some = session > 0 or round_number >= LEAST_ROUNDS
                if has_some and time.monotonic() - start > rule.max_seconds:
                    break
                touches = plan.round(rng)
                for name, (ms, level) in touches.items():
                    samples[name].add(round_number == 0, ms, level)
                done = _session_done(rule, round_number + 1, time.monotonic() - opened)
                share = (session + done) / max(1, total)
                yield Round(round_number, touches, min(1.0, share), load.others())
                round_number += 1


def _session_done(rule: StopRule, num_rounds: int, seconds: float) -> float:
    """Share of a session that is done: 1 when it has both its rounds and its seconds."""
    by_rounds = num_rounds / rule.rounds
    by_time = seconds / rule.session_seconds if rule.session_seconds else 1.0
    return min(1.0, by_rounds, max(by_time, num_rounds / max(MAX_ROUNDS, rule.rounds)))


def _is_open(samples: Samples, rule: StopRule, late: bool) -> bool:
    """Whether a model needs another session; ``late``, only where it lacks the minimum."""
    if len(samples.ms) < rule.min_sessions:
        return True
    if late or len(samples.ms) >= rule.max_sessions:
        return False
    return _width(samples) > rule.precision


def _width(samples: Samples) -> float:
    return samples.estimate(at=samples.level).half_width


class _Plan:
    """One worker's rounds.

    In its numbering the copies of the references come first (core and memory in turn), then
    ``names``.
    """

    def __init__(self, worker: Worker, names: Sequence[str], touch_ms: float) -> None:
        self._worker = worker
        self._names = names
        self._readings = 0
        self._expected_ms = self._warm_up()
        self._runs = np.clip(np.ceil(touch_ms / self._expected_ms), 2, 15).astype(int)

    def _warm_up(self) -> Floats:
        """Touch every model until its time stops falling; returns the times."""
        count = NUM_REFERENCES + len(self._names)
        last = np.full(count, np.inf)
        for _ in range(5):
            now = np.array([min(t) for t in self._worker.time([(i, 2) for i in range(count)])])
            settled = np.median(now / last) > 0.98
            last = np.minimum(last, now)
            if settled:
                break
        return last

    def round(self, rng: np.random.Generator) -> dict[str, tuple[float, Level]]:
        """Touch every model once, references in between: name -> (ms, level around it)."""
        order = rng.permutation(len(self._names))
        touches, places, since_reference = self._reading(), [], 0.0
        for i in order:
            places.append(len(touches))
            model = NUM_REFERENCES + int(i)
            touches.append((model, int(self._runs[model])))
            since_reference += self._expected_ms[model] * (self._runs[model] + 1)
            if since_reference > REFERENCE_EVERY_MS or i == order[-1]:
                touches += self._reading()
                since_reference = 0.0
        times = self._worker.time(touches)
        readings = [
            p for p, (model, _) in enumerate(touches) if model < NUM_REFERENCES and model % 2 == 0
        ]
        # the fastest run: what disturbs a run must not disturb the yardstick
        core = [min(times[p]) for p in readings]
        memory = [min(times[p + 1]) for p in readings]
        result = {}
        for i, place in zip(order, places):
            after = int(np.searchsorted(readings, place))
            level = Level(
                math.sqrt(core[after - 1] * core[after]),
                math.sqrt(memory[after - 1] * memory[after]),
            )
            result[self._names[i]] = (float(np.median(times[place])), level)
        return result

    def _reading(self) -> list[tuple[int, int]]:
        """Touches of both references, of another copy each time."""
        self._readings += 1
        core = 2 * (self._readings % COPIES)
        return [(core, READING_RUNS), (core + 1, READING_RUNS)]
