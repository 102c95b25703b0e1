"""The life of a call: what a program sees that opens a network and calls it, from the start on.

A *life* is one worker process that has nothing open. It opens the network, calls it once, calls
it again and again, a call at a time and as often as a program would, closes it and opens it once
more. Several are lived, for each is a draw of memory layout, on cores that rotate.
"""

from __future__ import annotations

import gc
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from deploynas.errors import DeviceError
from deploynas.onboard.conversation import open_worker
from deploynas.onboard.folders import PREFIX, place
from deploynas.onboard.runtime import inputs_beside

Command = Callable[[int], Sequence[str]]
LEAST_CALLS, ENOUGH_CALLS, MOST_CALLS = 20, 100, 2_000  # in a life; a hundred tell a percentile
CALL_SECONDS, MOST_SECONDS = 1.5, 10.0  # the latter where the least are enough
TOGETHER_SECONDS = 1.5  # that instances run beside each other
SETTLING_CALLS = 5
SLACK = 1.05  # of the interval of paced calls, that a call may take


@dataclass(frozen=True)
class LifeRule:
    """How lives are lived.

    Attributes:
        lives: Processes.
        every_ms: Between the starts of two calls; 0: each follows the one before.
        instances: Processes that run beside each other, for the throughput; 0: it is not asked.
    """

    lives: int = 7
    every_ms: float = 0.0
    instances: int = 0


@dataclass(frozen=True)
class Life:
    """What one process saw; None and empty where it cannot be told or was not asked.

    Attributes:
        first_load_ms: Of the first network that the process opens, its files in the file cache.
        cold_load_ms: The same of another process, its files dropped from the file cache before.
        warm_load_ms: Opening it again, once it was closed.
        first_inference_ms: The first call.
        calls_ms: Single calls after it, in order.
        load_peak_bytes: Memory beyond the idle runtime's while it is opened, at most.
        inference_peak_bytes: The same while it is called, its weights included.
        per_s: Calls a second of all the instances together.
    """

    first_load_ms: float
    warm_load_ms: float
    first_inference_ms: float
    calls_ms: list[float]
    cold_load_ms: float | None = None
    load_peak_bytes: float | None = None
    inference_peak_bytes: float | None = None
    per_s: float | None = None

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Life:
        """From an answer over a wire.

        Raises:
            DeviceError: It is none.
        """
        try:
            found = {one.name: answer[one.name] for one in fields(cls)}
            times = [*found["calls_ms"], *(found[name] for name in _ALWAYS)]
            times += [found[name] for name in _MAYBE if found[name] is not None]
            memory = [found[name] for name in _MEMORY if found[name] is not None]
            if not found["calls_ms"] or not all(0 < float(x) < math.inf for x in times):
                raise ValueError
            if not all(0 <= float(x) < math.inf for x in memory):
                raise ValueError
            return cls(**found)
        except (KeyError, TypeError, ValueError):
            raise DeviceError("the device cannot say how a call lives there") from None


_ALWAYS = ("first_load_ms", "warm_load_ms", "first_inference_ms")
_MAYBE = ("cold_load_ms", "per_s")
_MEMORY = ("load_peak_bytes", "inference_peak_bytes")


def lives(
    command: Command, runtime: str, files: Sequence[Path], name: str, rule: LifeRule
) -> Iterator[Life]:
    """Live, one after the other.

    Args:
        command: Command line of a worker, by its number.
        runtime: What errors call it.
        files: Of the network, the one that is opened first.
        name: What errors call the network.
        rule: How.

    Raises:
        DeviceError, ModelError: A worker died, or cannot run it.
    """
    for number in range(rule.lives):
        # none of ours with a mark: in these a runtime keeps what it compiles
        with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
            own = [place(file, Path(folder) / file.name) for file in files]
            if (given := inputs_beside(files[0])).is_file():
                place(given, Path(folder) / given.name)
            found: dict[str, Any] = {"per_s": None}
            for asked in ({"every_ms": rule.every_ms}, {}):
                with open_worker(command(number), [], runtime) as worker:
                    found.update(worker.live(own, name, asked))
            if rule.instances:
                found["per_s"] = _together(
                    command, runtime, own[0], name, number * rule.instances, rule.instances
                )
            yield Life.of(found)


def _together(
    command: Command, runtime: str, file: Path, name: str, first: int, instances: int
) -> float:
    """Calls a second of so many workers beside each other, while all of them ran."""
    with ExitStack() as stack:
        workers = [
            stack.enter_context(open_worker(command(first + i), [(name, file)], runtime))
            for i in range(instances)
        ]
        with ThreadPoolExecutor(instances) as pool:
            ends = list(pool.map(lambda worker: worker.run_on(TOGETHER_SECONDS), workers))
    start, end = max(one[0] for one in ends), min(one[-1] for one in ends)
    if end <= start:  # one had ended before another began
        raise DeviceError(f"{instances} instances do not run at the same time here")
    # the calls in between by their parts that lie in between
    calls = 0.0
    for one in ends:
        for before, after in zip(one, one[1:]):
            calls += max(0.0, min(after, end) - max(before, start)) / (after - before)
    return float(calls / (end - start))


def live(
    opened: Callable[[], Any],
    prepared: Callable[[Any], Callable[[], object]],
    files: Sequence[str],
    every_ms: float,
    peak: Callable[[bool], int | None],
) -> dict[str, Any]:
    """One life, in a process that has nothing open; the fields of a :class:`Life`.

    Args:
        opened: Opens the network: a session.
        prepared: What calls a session.
        files: Of the network.
        every_ms: See :func:`paced`.
        peak: The most memory that was held since it was last told to forget that.
    """
    for file in files:  # into the file cache
        Path(file).read_bytes()
    idle = peak(True)
    first_load, session = _timed(opened)
    load_peak = peak(False)
    call = prepared(session)
    peak(True)
    first, _ = _timed(call)
    calls = paced(call, every_ms)
    run_peak = peak(False)
    del session, call
    gc.collect()
    warm_load, _ = _timed(opened)
    return {
        "first_load_ms": first_load,
        "warm_load_ms": warm_load,
        "first_inference_ms": first,
        "calls_ms": calls,
        "load_peak_bytes": _beyond(load_peak, idle),
        "inference_peak_bytes": _beyond(run_peak, idle),
    }


def cold_load(opened: Callable[[], Any], files: Sequence[str]) -> dict[str, Any]:
    """Milliseconds of opening a network whose files are not in the file cache; None untold."""
    return {"cold_load_ms": _timed(opened)[0] if dropped(files) else None}


def paced(call: Callable[[], object], every_ms: float) -> list[float]:
    """Milliseconds of single calls, one after the other, or started so often.

    Raises:
        ValueError: A call takes longer than that.
    """
    for _ in range(SETTLING_CALLS):
        call()
    times: list[float] = []
    start = time.perf_counter_ns()
    while len(times) < MOST_CALLS:
        now = time.perf_counter_ns()
        enough = CALL_SECONDS if len(times) >= ENOUGH_CALLS else MOST_SECONDS
        if len(times) >= LEAST_CALLS and now - start > enough * 1e9:
            break
        if every_ms:
            due = start + len(times) * every_ms * 1e6
            if due > now:
                time.sleep((due - now) / 1e9)
        took, _ = _timed(call)
        times.append(took)
        if every_ms and len(times) == 10 and sorted(times)[4] > every_ms * SLACK:
            raise ValueError(
                f"a call takes {sorted(times)[4]:.3g} ms, so that none can start every "
                f"{every_ms:g} ms"
            )
    return times


def run_on(call: Callable[[], object], seconds: float) -> list[float]:
    """Call again and again for so long: when the first began, and when each ended, in seconds."""
    call()
    ends = [time.monotonic()]
    while len(ends) < 3 or ends[-1] - ends[0] < seconds:
        call()
        ends.append(time.monotonic())
    return ends


def dropped(files: Sequence[str]) -> bool:
    """Drop files from the file cache; whether they are gone from it."""
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
        return False
    for file in files:
        try:
            with Path(file).open("rb") as opened:
                number = opened.fileno()
                os.fsync(number)  # what is not yet on the disk stays
                os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
                size = os.fstat(number).st_size
                for place in {0, size // 2, max(0, size - 1)}:
                    try:
                        os.preadv(number, [bytearray(1)], place, os.RWF_NOWAIT)
                        return False
                    except BlockingIOError:
                        pass
        except OSError:
            return False
    return True


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter_ns()
    found = call()
    return (time.perf_counter_ns() - start) / 1e6, found


def _beyond(peak: int | None, idle: int | None) -> int | None:
    return None if peak is None or idle is None else max(0, peak - idle)
