"""Devices: an identity, and workers that time ONNX models.

A device starts *workers*: processes that hold open sessions and time them on request, one
JSON document a line each way. Everything else (rounds, statistics, when to stop) is the
timing engine's, the same for every device.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from deploynas.artifacts import Record
from deploynas.errors import DeviceError

END_SECONDS = 5.0  # that a worker may take to end
ANSWER_HINT = "run it again: what was measured is kept"


class Identity(Record):
    """Who measured. All fields but ``recorded`` are hard: samples of two never mix.

    Attributes:
        device: Its name, for example ``cpu``.
        processor: Vendor and model.
        runtime: Name and minor version of the runtime, for example ``onnxruntime 1.22``.
        provider: Execution provider.
        threads: Threads inside one operator.
        session_options: What else decides speed.
        recorded: Everything else worth knowing: system, kernel, patch level, governor.
    """

    device: str
    processor: str
    runtime: str
    provider: str
    threads: int
    session_options: dict[str, str]
    recorded: dict[str, str]

    def differences(self, other: Identity) -> list[str]:
        """The hard fields that differ, for people; empty when samples may be combined."""
        names = ("device", "processor", "runtime", "provider", "threads", "session_options")
        return [
            f"{name}: {getattr(self, name)} / {getattr(other, name)}"
            for name in names
            if getattr(self, name) != getattr(other, name)
        ]

    @property
    def title(self) -> str:
        """One line for people."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.processor}, {self.runtime}, {self.provider}, {threads}"


class Device(Protocol):
    """Something that runs ONNX models and can say how long they take."""

    @property
    def identity(self) -> Identity:
        """Who measures."""
        ...

    def command(self, session: int) -> list[str]:
        """Command line of a worker; ``session`` counts them, so that cores can rotate."""
        ...


class Worker:
    """A worker process and its conversation.

    Raises:
        DeviceError: The process died, broke the protocol or reported an error; names the model
            that it was loading, if one.
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

    def load(self, path: Path) -> None:
        """Open a session; models are numbered in the order of loading."""
        self._ask({"load": str(path)}, path)

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

    def _ask(self, question: object, path: Path | None = None) -> dict[str, object]:
        busy = f" with {path.stem}" if path else ""
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
        if "error" in answer:
            versions = _versions(path) if path else ""
            reason = _readable(str(answer["error"]))
            raise DeviceError(f"{self._runtime} failed{busy}{versions}: {reason}")
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


def _readable(reason: str) -> str:
    """A runtime's message without the place in its source."""
    reason = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", reason)
    return re.sub(r"(Load model from \S+ failed:)?/\S+:\d+ .*\) (?=[A-Z])", "", reason)


def _versions(path: Path) -> str:
    """Opset and file format of a model, which a runtime may be too old for."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError):
        return ""
    opsets = ", ".join(f"{o.domain or 'opset'} {o.version}" for o in model.opset_import)
    return f" ({opsets}, file format {model.ir_version})"


@contextlib.contextmanager
def open_worker(device: Device, session: int, paths: Sequence[Path]) -> Iterator[Worker]:
    """A worker with ``paths`` loaded, closed on the way out."""
    worker = Worker(device.command(session), device.identity.runtime)
    try:
        for path in paths:
            worker.load(path)
        yield worker
    finally:
        worker.close()
