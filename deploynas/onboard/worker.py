"""The worker: networks opened by one runtime, timed on request.

Run as ``python worker.py RUNTIME PROVIDER THREADS CORES``, the first the runtime's file; see
:mod:`deploynas.onboard.conversation` for its other end. It is a script on purpose: beside
``deploynas.onboard`` it imports numpy and the runtime, nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Files beside this one must not shadow modules of the runtime, nor may packages of another
    # Python, in which deploynas is installed: its modules alone are found, and at this place.
    del sys.path[0]
    package = types.ModuleType("deploynas")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["deploynas"] = package

EXAMINED_RUNS = 3
WHOLE = ("bool", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")


def main() -> None:
    """Answer one JSON document a line until standard input ends, in the middle of one or not."""
    file, provider, threads, cores = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    if cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the runtime prints must not reach the conversation
    questions: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(questions,), daemon=True).start()
    from deploynas.onboard.runtime import load

    networks = Networks(load(Path(file)), provider, threads)
    while True:
        try:
            answer = networks.answer(json.loads(questions.get()))
        except Exception as error:  # reported to the engine, which names the model
            answer = {"error": " ".join(str(error).split()) or type(error).__name__}
            if isinstance(error, ModuleNotFoundError):
                answer["missing"] = error.name
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


class Networks:
    """Open networks, numbered in the order of loading.

    Args:
        runtime: Opens them.
        provider: Of the runtime; empty for its first.
        threads: Threads inside one operator.
    """

    def __init__(self, runtime: Any, provider: str, threads: int) -> None:
        import numpy as np

        self._runtime, self._asked, self._threads = runtime, provider, threads
        self._rng = np.random.default_rng(0)
        self._sessions: list[Any] = []
        self._calls: list[Any] = []

    @property
    def _provider(self) -> str:
        return self._asked or str(self._runtime.providers()[0])

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """To one question."""
        if "load" in question:
            session = self._open(question["load"])
            self._sessions.append(session)
            self._calls.append(session.prepared(self._feeds(session, question["load"])))
            return {"loaded": len(self._sessions)}
        if "examine" in question:
            return self._examine(question["examine"], Path(question["folder"]))
        if "describe" in question:
            return {"identity": self._runtime.facts(self._asked or None, self._threads)}
        if "inputs" in question:
            return {"inputs": list(self._sessions[question["inputs"]].inputs)}
        if "live" in question:
            return self._live(question["live"], question.get("every_ms"))
        if "run" in question:
            from deploynas.onboard.life import run_on

            return {"ends": run_on(self._calls[question["run"]], question["seconds"])}
        if "answer" in question:
            return self._answers(self._sessions[question["answer"]], question["feeds"])
        return {"ms": [touch(self._calls[m], runs) for m, runs in question["time"]]}

    def _open(self, path: str) -> Any:
        return self._runtime.open(path, self._provider, self._threads)

    def _feeds(self, session: Any, path: str) -> dict[str, Any]:
        """The inputs that lie beside a model, noise for the others."""
        import numpy as np

        from deploynas.onboard.runtime import inputs_beside

        given: dict[str, Any] = {}
        if inputs_beside(Path(path)).is_file():
            with np.load(inputs_beside(Path(path)), allow_pickle=False) as file:
                given = dict(file)
        return {
            one.name: given[one.name] if one.name in given else random_input(self._rng, one)
            for one in session.inputs
        }

    def _answers(self, session: Any, feeds: dict[str, Any]) -> dict[str, Any]:
        from deploynas.onboard.runtime import numbers, packed, unpacked

        arrays = numbers(session.answers(unpacked(feeds)))
        return {"outputs": packed({str(i): x for i, x in enumerate(arrays)})}

    def _examine(self, path: str, folder: Path) -> dict[str, Any]:
        """What a model takes beside time: memory, and which of its nodes the time goes to.

        ``folder`` takes the runtime's trace; the asker removes it.
        """
        before = peak_bytes(reset=True)
        session = self._open(path)
        feeds = self._feeds(session, path)
        call = session.prepared(feeds)
        for _ in range(EXAMINED_RUNS):
            call()
        peak = peak_bytes()
        del session, call
        nodes = self._runtime.node_ms(path, self._provider, self._threads, feeds, folder)
        return {"peak_bytes": peak - before if peak and before else None, "nodes": nodes}

    def _live(self, files: list[str], every_ms: float | None) -> dict[str, Any]:
        """The life of a call here, where nothing is open yet; without ``every_ms`` a cold load."""
        from deploynas.onboard.life import cold_load, live

        path = files[0]
        self._runtime.version()  # imports the runtime: a program that has it pays no such time
        provider = self._provider

        def opened() -> Any:
            return self._runtime.open(path, provider, self._threads)

        if every_ms is None:
            return cold_load(opened, files)
        return live(
            opened, lambda session: session.prepared(self._feeds(session, path)), files,
            every_ms, peak_bytes,
        )  # fmt: skip


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


def random_input(rng: Any, one: Any) -> Any:
    """A fixed-shape input: normal numbers, the timing of which is that of real images.

    Whole numbers are 0 or 1, which any table of a model that looks them up has; pixels are any.
    """
    import numpy as np

    if not all(isinstance(side, int) for side in one.shape):
        raise ValueError(f"input {one.name!r} has the dynamic shape {list(one.shape)}")
    if one.type == "uint8":
        return rng.integers(0, 256, one.shape, dtype=np.uint8)
    if one.type in WHOLE:
        return rng.integers(0, 2, one.shape).astype(one.type)
    if one.type == "bfloat16":  # its bits: the upper half of a float32
        bits = np.ascontiguousarray(rng.standard_normal(one.shape).astype(np.float32))
        return (bits.view(np.uint32) >> 16).astype(np.uint16)
    if one.type not in ("float16", "float32", "float64"):
        raise ValueError(f"input {one.name!r} has the unsupported type {one.type}")
    return rng.standard_normal(one.shape).astype(one.type)


def touch(call: Any, runs: int) -> list[float]:
    """Run once and drop it, then time ``runs`` runs; milliseconds."""
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


if __name__ == "__main__":
    main()
