"""Devices elsewhere: anything that a command reaches and that runs Python."""

from __future__ import annotations

import re
import shlex
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploynas.device.base import Identity, Notes
from deploynas.device.link import Link
from deploynas.device.local import converted
from deploynas.device.reference import write_references
from deploynas.errors import DeviceError, DeviceMismatchError, InvalidInputError, ModelError
from deploynas.onboard.conversation import Examination, outputs_of
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.life import Life, LifeRule
from deploynas.onboard.runtime import Array, Feeds, PythonRuntime, packed
from deploynas.onboard.timing import Level, Round, Samples, StopRule

SSH = (
    "ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20",
    "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3",
)  # fmt: skip


class RemoteDevice:
    """A device that a command reaches.

    Args:
        name: What ``--device`` calls it; stored in what it measures, so that it is found again.
        command: Starts its Python.
        runtime: What it runs networks by.
        threads: Threads inside one operator.
        provider: What executes there, where the runtime has several.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        runtime: PythonRuntime,
        threads: int = 1,
        provider: str | None = None,
    ) -> None:
        self.notes = Notes()
        self.bytes_sent = 0
        self._name, self._command, self._runtime = name, command, runtime
        self._setup = {"runtime": runtime.name, "threads": threads, "provider": provider}
        self._link: Link | None = None
        self._identity: Identity | None = None

    @property
    def identity(self) -> Identity:
        """Who measures; connects at the first call."""
        if self._identity is None:
            self._connected()
        assert self._identity is not None
        return self._identity

    def rounds(
        self, models: Mapping[str, Path], rule: StopRule, samples: dict[str, Samples], seed: int
    ) -> Generator[Round, None, None]:
        """See :class:`deploynas.device.base.Device`."""
        link = self._connected()
        before = link.bytes_sent
        finished = False
        try:
            with temporary_folder() as folder:
                paths = {path.stem: path for path in write_references(folder)}
                references = self._sent(link, paths, folder)
                sent = self._sent(link, models, folder)
            link.send(
                {
                    "do": "measure", "models": sent, "references": list(references.values()),
                    "rule": asdict(rule), "seed": seed, **self._known(),
                    "samples": {name: asdict(samples[name]) for name in models},
                }
            )  # fmt: skip
            while "round" in (answer := link.receive()):
                one = round_of(answer["round"], list(models))
                if one.number and not all(samples[name].ms for name in one.touches):
                    raise DeviceError(f"{self._name}: it sent samples of no session")
                for name, (ms, level) in one.touches.items():
                    samples[name].add(one.number == 0, ms, level)
                yield one
            if lacking := [name for name in models if not samples[name].ms]:
                raise DeviceError(f"{self._name}: it sent no samples of {lacking[0]}")
            finished = True
        except ModelError:
            finished = True  # the device is well
            raise
        finally:
            self.bytes_sent += link.bytes_sent - before
            if not finished:  # it may still be measuring
                link.close()
                self._link = None

    def examine(self, model: Path, session: int = 0) -> Examination:
        """See :class:`deploynas.device.base.Device`."""
        link = self._connected()
        link.send({**self._asked(link, model, "examine"), "session": session})
        return Examination.of(link.receive())

    def lives(self, model: Path, rule: LifeRule) -> Iterator[Life]:
        """See :class:`deploynas.device.base.Device`."""
        link, finished = self._connected(), False
        try:
            link.send({**self._asked(link, model, "live"), "rule": asdict(rule)})
            while "life" in (answer := link.receive()):
                yield Life.of(answer["life"])
            finished = True
        except ModelError:
            finished = True  # the device is well
            raise
        finally:
            if not finished:  # it may still be living
                link.close()
                self._link = None

    def answers(self, model: Path, feeds: Sequence[Feeds]) -> list[list[Array]]:
        """See :class:`deploynas.device.base.Device`."""
        link, found = self._connected(), []
        for one in feeds:
            link.send({**self._asked(link, model, "answer"), "feeds": packed(one)})
            found.append(outputs_of(link.receive(), self._name))
        return found

    def _asked(self, link: Link, model: Path, what: str) -> dict[str, object]:
        with temporary_folder() as folder:
            (digest,) = self._sent(link, {model.stem: model}, folder).values()
        return {"do": what, "digest": digest, **self._known()}

    def _known(self) -> dict[str, object]:
        """What workers there are started with, the runtime with its version."""
        return {**self._setup, "runtime": self.identity.runtime}

    def _sent(self, link: Link, models: Mapping[str, Path], folder: Path) -> dict[str, str]:
        """Name -> digest of the converted file, which is there now."""
        ready = converted(self._runtime, models, folder)
        return {name: link.put(path, models[name]) for name, path in ready.items()}

    def _connected(self) -> Link:
        """A link that answers: the one there is, or a new one."""
        if self._link is not None:
            try:
                self._describe(self._link)
                return self._link
            except DeviceError:
                self._link = None
        link = Link(self._name, self._command, self._runtime)
        identity = self._describe(link)
        if self._identity is not None and (changed := self._identity.differences(identity)):
            raise DeviceMismatchError(f"{self._name} is another device now: {'; '.join(changed)}")
        self._link, self._identity = link, identity
        self.bytes_sent += link.bytes_sent
        return link

    def _describe(self, link: Link) -> Identity:
        link.send({"do": "describe", **self._setup})
        facts: Any = link.receive().get("identity")
        (kind, *_) = self._runtime.devices
        try:
            return Identity.of(kind, facts, reached=self._name)
        except DeviceError as error:
            raise DeviceError(f"{self._name}: {error}") from None


def round_of(fields: Mapping[str, Any], names: list[str]) -> Round:
    """A round as it came over the wire.

    Raises:
        DeviceError: Its times are impossible, or of something else.
    """
    try:
        touches = {
            name: (float(ms), Level(float(level["core_ms"]), float(level["memory_ms"])))
            for name, (ms, level) in fields["touches"].items()
        }
        one = Round(int(fields["number"]), touches, float(fields["done"]), float(fields["others"]))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise DeviceError("the device sent samples that cannot be read") from None
    times = [t for ms, level in touches.values() for t in (ms, level.core_ms, level.memory_ms)]
    if not set(touches) <= set(names) or not all(0 < t < float("inf") for t in times):
        raise DeviceError("the device sent samples of other models, or impossible times")
    return one


def command_of(name: str) -> list[str]:
    """The command line of ``exec:COMMAND`` or ``ssh:HOST [PYTHON]``.

    Raises:
        InvalidInputError: Nothing stands behind the colon, or it cannot be read.
    """
    kind, _, rest = name.partition(":")
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise InvalidInputError(f"--device {name}: {error}") from None
    if kind == "ssh" and not (0 < len(words) < 3 and not words[0].startswith("-")):
        raise InvalidInputError(
            f"--device {name!r} is not ssh:HOST or ssh:HOST PYTHON",
            "for example 'ssh:pi@board venv/bin/python'",
        )
    if not words:
        raise InvalidInputError(
            f"--device {name!r} names no command", "for example 'exec:ssh pi@board python3'"
        )
    if kind == "exec":
        return words
    python = words[1] if words[1:] else "python3"
    # a shell there reads it: ~ must have no quotes, anything else that it would change needs some
    plain = re.fullmatch(r"[\w./~@+-]+", python)
    return [*SSH, words[0], python if plain else shlex.quote(python)]
