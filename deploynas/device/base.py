"""Devices: an identity, and rounds of samples of networks."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from deploynas.artifacts import Record
from deploynas.device import reference
from deploynas.errors import DeviceError
from deploynas.onboard.conversation import Examination
from deploynas.onboard.life import Life, LifeRule
from deploynas.onboard.runtime import Array, Feeds
from deploynas.onboard.timing import Round, Samples, StopRule


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

    @classmethod
    def of(cls, device: str, facts: Mapping[str, Any], reached: str | None = None) -> Identity:
        """From what a worker says, see :meth:`deploynas.onboard.runtime.Launcher.facts`.

        Args:
            device: Its kind.
            facts: What the worker says.
            reached: What ``--device`` calls it, where it is elsewhere.

        Raises:
            DeviceError: That says not what it is.
        """
        try:
            found = dict(facts["recorded"])
            if reached is not None:
                found["reached"] = reached
            return cls(
                device=device,
                processor=str(facts["processor"]),
                runtime=str(facts["runtime"]),
                provider=str(facts["provider"]),
                threads=int(facts["threads"]),
                session_options={
                    **facts["session_options"], "reference_set": reference.VERSION,
                },
                recorded={name: str(value) for name, value in found.items()},
            )  # fmt: skip
        except (KeyError, TypeError, ValueError):
            raise DeviceError("it does not say what it is") from None

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
    """Something that runs networks, given as ONNX files, and can say how long they take."""

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

    def lives(self, model: Path, rule: LifeRule) -> Iterator[Life]:
        """The life of a call in processes of its own; see :mod:`deploynas.onboard.life`.

        Args:
            model: A file.
            rule: How many, and how it is called.

        Raises:
            DeviceError: It cannot load or run the model, or not as often.
            InvalidInputError: This device cannot tell.
        """
        ...

    def answers(self, model: Path, feeds: Sequence[Feeds]) -> list[list[Array]]:
        """What a model answers there to each of ``feeds``: its outputs that are arrays, in order.

        Args:
            model: An ONNX file.
            feeds: Name of an input -> array.

        Raises:
            DeviceError: It cannot load or run the model.
            InvalidInputError: This device cannot be asked.
        """
        ...
