"""A worker process and its conversation: one JSON document a line each way."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploynas.errors import DeviceError, MissingModuleError, ModelError
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.runtime import Array, Feeds, Input, packed, unpacked

END_SECONDS = 5.0  # that a worker may take to end
ANSWER_HINT = "run it again: what was measured is kept"


@dataclass(frozen=True)
class Examination:
    """What a model takes beside time.

    Attributes:
        peak_bytes: Memory that loading and running it adds to an idle runtime, at most; None where
            the system does not tell.
        nodes: Name of a node, as the runtime optimised them -> milliseconds.
    """

    peak_bytes: int | None
    nodes: dict[str, float]

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Examination:
        """From a worker's answer.

        Raises:
            DeviceError: It is none.
        """
        try:
            peak = fields["peak_bytes"]
            nodes = {str(name): float(ms) for name, ms in fields["nodes"].items()}
            return cls(None if peak is None else int(peak), nodes)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DeviceError("the device cannot say what a model takes beside time") from None


class Worker:
    """A worker process and its conversation.

    Raises:
        DeviceError: The process died, broke the protocol or reported an error.
        ModelError: It cannot load or run the model that it was given.
    """

    def __init__(self, command: Sequence[str], runtime: str = "the device") -> None:
        self._runtime = runtime
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
            )
        except OSError as error:
            self._log.close()
            raise DeviceError(f"cannot start {command[0]}: {error.strerror}") from None

    @property
    def exit_code(self) -> int | None:
        """Of the process: negative where a signal ended it, None while it lives."""
        return self._process.poll()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def load(self, path: Path, name: str | None = None) -> None:
        """Open a session; models are numbered in the order of loading."""
        self._ask({"load": str(path)}, path.stem if name is None else name)

    def time(self, touches: Sequence[tuple[int, int]]) -> list[list[float]]:
        """Time models: ``(model, runs)`` pairs -> milliseconds of each run.

        The worker runs each touched model once more, first, and drops that run.
        """
        answer = self._ask({"time": list(touches)})
        times = answer.get("ms")
        if (
            not isinstance(times, list)
            or len(times) != len(touches)
            or not all(t > 0 for touch in times for t in touch)
        ):
            raise DeviceError("the device reported impossible times (zero or negative)")
        return times

    def describe(self) -> dict[str, Any]:
        """Who measures: see :meth:`deploynas.onboard.runtime.Launcher.facts`.

        Raises:
            MissingModuleError: The runtime's package is not installed.
            DeviceError: It does not survive its import, or cannot run so.
        """
        answer = self._answer({"describe": True})
        if "missing" in answer:
            raise MissingModuleError(str(answer["missing"]))
        identity = answer.get("identity")
        if not isinstance(identity, dict):
            raise DeviceError(str(answer.get("error", "it does not say what it is")))
        return identity

    def inputs(self, number: int) -> list[Input]:
        """What a loaded model takes.

        Raises:
            DeviceError: It cannot say.
        """
        answer = self._ask({"inputs": number})
        try:
            return [Input(str(n), tuple(shape), str(t)) for n, shape, t in answer["inputs"]]
        except (KeyError, TypeError, ValueError):
            raise DeviceError(f"{self._runtime} does not say what a model takes") from None

    def answers(self, number: int, feeds: Feeds) -> list[Array]:
        """What a loaded model answers: its outputs that are arrays, in order."""
        answer = self._ask({"answer": number, "feeds": packed(feeds)})
        return outputs_of(answer, self._runtime)

    def examine(self, path: Path, name: str | None = None) -> Examination:
        """What a model takes beside time; it needs not be loaded."""
        with temporary_folder() as folder:  # ours: a worker that is killed leaves it to us
            question = {"examine": str(path), "folder": str(folder)}
            return Examination.of(self._ask(question, path.stem if name is None else name))

    def live(self, files: Sequence[Path], name: str, how: Mapping[str, float]) -> dict[str, Any]:
        """The life of a call in this process; see :mod:`deploynas.onboard.life`."""
        return self._ask({"live": [str(file) for file in files], **how}, name)

    def run_on(self, seconds: float) -> list[float]:
        """Call the first loaded model for so long; see :func:`deploynas.onboard.life.run_on`."""
        ends = self._ask({"run": 0, "seconds": seconds}).get("ends")
        if not isinstance(ends, list) or len(ends) < 2 or sorted(ends) != ends:
            raise DeviceError("the device reported impossible times")
        return ends

    def _ask(self, question: object, model: str = "") -> dict[str, Any]:
        answer = self._answer(question, f" with {model}" if model else "")
        if "error" in answer:
            reason = _readable(str(answer["error"]))
            if model:
                raise ModelError(self._runtime, model, reason)
            raise DeviceError(f"{self._runtime} failed: {reason}")
        return answer

    def _answer(self, question: object, busy: str = "") -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (BrokenPipeError, OSError):
            line = ""
        if not line:
            self._process.wait()
            raise DeviceError(
                f"the device's runtime ended{busy} (exit code {self._process.returncode})"
                f"{self._last_words()}",
                ANSWER_HINT,
            )
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise DeviceError(
                f"the device's worker said something unexpected{busy}: {line[:80]!r}"
            )
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def close(self) -> None:
        """End the process: by the end of its input, so that it can tidy up, or by force."""
        with contextlib.suppress(OSError):
            self._process.stdin and self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdout, self._log):
            with contextlib.suppress(OSError):
                stream and stream.close()


def outputs_of(answer: Mapping[str, Any], runtime: str) -> list[Array]:
    """The arrays of a worker's answer.

    Raises:
        DeviceError: They cannot be read.
    """
    try:
        return list(unpacked(answer["outputs"]).values())
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DeviceError(f"{runtime} sent answers that cannot be read") from None


def _readable(reason: str) -> str:
    """A runtime's message without the place in its source."""
    reason = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", reason)
    return re.sub(r"(Load model from \S+ failed:)?/\S+:\d+ .*\) (?=[A-Z])", "", reason)


@contextlib.contextmanager
def open_worker(
    command: Sequence[str], models: Sequence[tuple[str, Path]], runtime: str = "the device"
) -> Iterator[Worker]:
    """A worker with the models (name, path) loaded, closed on the way out."""
    worker = Worker(command, runtime)
    try:
        for name, path in models:
            worker.load(path, name)
        yield worker
    finally:
        worker.close()
