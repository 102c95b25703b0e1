"""The worker: ONNX Runtime sessions, timed on request.

Run as ``python worker.py PROVIDER THREADS CORES``; see :mod:`deploynas.onboard.conversation` for
its other end. It is a script on purpose: it imports numpy and ONNX Runtime, nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any

if sys.path[0] == str(Path(__file__).resolve().parent):
    del sys.path[0]  # its files must not shadow modules of the runtime

EXAMINED_RUNS = 20
EXAMINE_SECONDS = 1.0  # of a slow model fewer runs are enough


def main() -> None:
    """Answer one JSON document a line until standard input ends, in the middle of one or not."""
    provider, threads, cores = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the runtime prints must not reach the conversation
    questions: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(questions,), daemon=True).start()
    import numpy as np
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    sessions: list[tuple[Any, dict[str, Any]]] = []
    rng = np.random.default_rng(0)
    while True:
        question = json.loads(questions.get())
        try:
            if "load" in question:
                session = open_session(ort, question["load"], provider, threads)
                feeds = {i.name: random_input(np, rng, i) for i in session.get_inputs()}
                sessions.append((session, feeds))
                answer: dict[str, object] = {"loaded": len(sessions)}
            elif "examine" in question:
                path, folder = question["examine"], Path(question["folder"])
                answer = examine(ort, np, rng, path, provider, threads, folder)
            else:
                answer = {"ms": [touch(sessions[m], runs) for m, runs in question["time"]]}
        except Exception as error:  # reported to the engine, which names the model
            answer = {"error": " ".join(str(error).split())}
        out.write(json.dumps(answer) + "\n")
        out.flush()


def listen(questions: queue.SimpleQueue[str]) -> None:
    """Pass questions on, and end the process when there will be no more.

    This thread does nothing but wait, so that it takes no time from what is measured.
    """
    with contextlib.suppress(OSError, ValueError), os.fdopen(os.dup(0)) as source:
        for line in source:
            questions.put(line)
    os._exit(0)


def examine(
    ort: Any, np: Any, rng: Any, path: str, provider: str, threads: int, folder: Path
) -> dict[str, object]:
    """What a model takes beside time: memory, and which of its nodes the time goes to.

    ``folder`` takes the runtime's trace; the asker removes it.
    """
    before = peak_bytes(reset=True)
    session = open_session(ort, path, provider, threads)
    feeds = {i.name: random_input(np, rng, i) for i in session.get_inputs()}
    for _ in range(3):
        session.run(None, feeds)
    peak = peak_bytes()
    del session
    session = open_session(ort, path, provider, threads, str(folder / "trace"))
    started = time.monotonic()
    for number in range(EXAMINED_RUNS + 1):
        session.run(None, feeds)
        if number >= 3 and time.monotonic() - started > EXAMINE_SECONDS:
            break
    events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"][: -len("_kernel_time")]
            times.setdefault(name, []).append(event["dur"] / 1e3)
    return {
        "peak_bytes": peak - before if peak and before else None,
        "nodes": {name: middle_mean(ms[1:]) for name, ms in times.items() if ms[1:]},
    }


def middle_mean(values: list[float]) -> float:
    """Mean of the middle half: single values are whole microseconds, and some are disturbed."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    return sum(middle) / len(middle)


def peak_bytes(reset: bool = False) -> int | None:
    """The most memory that this process held since the last reset; None where that is untold."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def open_session(
    ort: Any, path: str, provider: str, threads: int, trace: str | None = None
) -> Any:
    """A session with the options that the device's identity records."""
    options = ort.SessionOptions()
    if trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = trace
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Many open sessions must not spin against each other.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"{provider} does not start here, and another provider took its place")
    return session


def random_input(np: Any, rng: Any, info: Any) -> Any:
    """A fixed-shape input: normal numbers, the timing of which is that of real images."""
    if not all(isinstance(side, int) for side in info.shape):
        raise ValueError(f"input {info.name!r} has the dynamic shape {info.shape}")
    kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(double)": np.float64}
    if info.type not in kinds:
        raise ValueError(f"input {info.name!r} has the unsupported type {info.type}")
    if info.type == "tensor(uint8)":
        return rng.integers(0, 256, info.shape, dtype=np.uint8)
    return rng.standard_normal(info.shape).astype(kinds[info.type])


def touch(opened: tuple[Any, dict[str, Any]], runs: int) -> list[float]:
    """Run once and drop it, then time ``runs`` runs; milliseconds."""
    session, feeds = opened
    session.run(None, feeds)
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        session.run(None, feeds)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


if __name__ == "__main__":
    main()
