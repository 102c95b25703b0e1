"""Devices: an identity, and rounds of samples of ONNX models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from deploynas.artifacts import Record
from deploynas.device.reference import write_references
from deploynas.onboard.conversation import Examination, Worker
from deploynas.onboard.conversation import open_worker as open_with
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.timing import Round, Samples, StopRule, run_rounds


class Identity(Record):
    """Who measured. All fields but ``recorded`` are hard: samples of two never mix.

    Attributes:
        device: Its kind, for example ``cpu``; the same for a board on which it was measured and
            for this machine.
        processor: Vendor and model.
        runtime: Name and minor version of the runtime, for example ``onnxruntime 1.22``.
        provider: Execution provider.
        threads: Threads inside one operator.
        session_options: What else decides speed.
        recorded: Everything else worth knowing: system, kernel, patch level, governor; for a
            device elsewhere, how it is ``reached``.
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
    def name(self) -> str:
        """What ``--device`` calls it."""
        return self.recorded.get("reached", self.device)

    @property
    def title(self) -> str:
        """One line for people."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        reached = f"{self.name}: " if "reached" in self.recorded else ""
        return f"{reached}{self.processor}, {self.runtime}, {self.provider}, {threads}"


class Notes:
    """What a person should know about a measurement: a line a topic, the last one said."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}

    def add(self, topic: str, line: str) -> None:
        """Say ``line`` in place of what was said of ``topic``."""
        self._lines[topic] = line

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines.values())


class Device(Protocol):
    """Something that runs ONNX models and can say how long they take."""

    @property
    def identity(self) -> Identity:
        """Who measures."""
        ...

    @property
    def notes(self) -> Notes:
        """What a person should know about what was measured so far."""
        ...

    def rounds(
        self, models: Mapping[str, Path], rule: StopRule, samples: dict[str, Samples], seed: int
    ) -> Generator[Round, None, None]:
        """Measure, a round after the other; as :func:`deploynas.onboard.timing.run_rounds`."""
        ...

    def examine(self, model: Path, session: int = 0) -> Examination:
        """Peak memory of a model, and the times of its nodes.

        Args:
            model: An ONNX file.
            session: Number of the worker, so that cores can rotate.

        Raises:
            InvalidInputError: This device cannot tell.
        """
        ...


class LocalDevice(ABC):
    """A device whose workers run on this machine, driven by the engine in this process."""

    def __init__(self) -> None:
        self.notes = Notes()

    @property
    @abstractmethod
    def identity(self) -> Identity:
        """Who measures."""

    @abstractmethod
    def command(self, session: int) -> list[str]:
        """Command line of a worker; ``session`` counts them, so that cores can rotate."""

    def rounds(
        self, models: Mapping[str, Path], rule: StopRule, samples: dict[str, Samples], seed: int
    ) -> Generator[Round, None, None]:
        """See :class:`Device`."""
        with temporary_folder() as folder:
            yield from run_rounds(
                self.command, self.identity.runtime, write_references(folder), models, rule,
                samples, seed,
            )  # fmt: skip

    def examine(self, model: Path, session: int = 0) -> Examination:
        """See :class:`Device`."""
        with open_with(self.command(session), [], self.identity.runtime) as worker:
            return worker.examine(model)


def open_worker(
    device: LocalDevice, session: int, paths: Sequence[Path]
) -> AbstractContextManager[Worker]:
    """A worker of a device of this machine with ``paths`` loaded, closed on the way out."""
    models = [(path.stem, path) for path in paths]
    return open_with(device.command(session), models, device.identity.runtime)
