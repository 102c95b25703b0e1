"""Devices of this machine: workers here, driven by the engine in this process."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from deploynas.device.base import Identity, Notes
from deploynas.device.reference import write_references
from deploynas.errors import InvalidInputError, MissingDependencyError, ModelError
from deploynas.onboard.conversation import Examination, Worker, open_worker
from deploynas.onboard.folders import PREFIX, temporary_folder
from deploynas.onboard.life import Life, LifeRule, lives
from deploynas.onboard.runtime import Array, Feeds, Input, Runtime, inputs_beside
from deploynas.onboard.timing import Round, Samples, StopRule, run_rounds
from deploynas.runtimes import DEFAULT, RUNTIMES, by_device, of_file


class LocalDevice:
    """A device of this machine; see :class:`deploynas.device.base.Device`.

    Args:
        name: Of one; see :func:`deploynas.runtimes.by_device`.
        threads: Threads inside one operator.
        provider: What executes, where its runtime has several.

    Raises:
        InvalidInputError, UnknownNameError: The machine cannot run it so.
        MissingDependencyError: Something must be installed first; says what to type.
    """

    def __init__(self, name: str = "cpu", threads: int = 1, provider: str | None = None) -> None:
        self.notes = Notes()
        self._name, self._runtime = name, by_device()[name]
        self._launcher = self._runtime.launcher(name, threads, provider)

    @cached_property
    def identity(self) -> Identity:
        """Who measures."""
        return Identity.of(self._name, self._launcher.facts())

    def command(self, session: int) -> list[str]:
        """Command line of a worker; ``session`` counts them, so that cores can rotate."""
        return self._launcher.command(session)

    def rounds(
        self, models: Mapping[str, Path], rule: StopRule, samples: dict[str, Samples], seed: int
    ) -> Generator[Round, None, None]:
        """See :class:`deploynas.device.base.Device`."""
        with temporary_folder() as folder:
            references = {path.stem: path for path in write_references(folder)}
            yield from run_rounds(
                self.command,
                self.identity.runtime,
                list(converted(self._runtime, references, folder).values()),
                converted(self._runtime, models, folder),
                rule,
                samples,
                seed,
            )

    def examine(self, model: Path, session: int = 0) -> Examination:
        """See :class:`deploynas.device.base.Device`."""
        if not self._runtime.examines:
            raise InvalidInputError(
                f"{self._name} tells neither the memory of a model nor the times of its nodes",
                "use --device cpu for these",
            )
        with temporary_folder() as folder:
            (ready,) = converted(self._runtime, {model.stem: model}, folder).values()
            with open_worker(self.command(session), [], self.identity.runtime) as worker:
                return worker.examine(ready, model.stem)

    def lives(self, model: Path, rule: LifeRule) -> Iterator[Life]:
        """See :class:`deploynas.device.base.Device`."""
        if not self._runtime.examines:
            raise InvalidInputError(
                f"{self._name} tells nothing of a call but its time", "use --device cpu for more"
            )
        with temporary_folder() as folder:
            (ready,) = converted(self._runtime, {model.stem: model}, folder).values()
            files = self._runtime.files(ready)
            yield from lives(self.command, self.identity.runtime, files, model.stem, rule)

    def answers(self, model: Path, feeds: Sequence[Feeds]) -> list[list[Array]]:
        """See :class:`deploynas.device.base.Device`."""
        with self.opened([model]) as worker:
            return [worker.answers(0, one) for one in feeds]

    def opening(self, model: Path, times: int) -> tuple[int, float]:
        """Bytes of the files that its worker opens, and the least milliseconds that takes."""
        runtime, found = self.identity.runtime, []
        # not one of ours with a mark: in these a runtime keeps what it compiles
        with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
            folder = Path(name)
            models = {"first": write_references(folder)[0], "ready": model}
            first, ready = converted(self._runtime, models, folder).values()
            for session in range(times):
                # whatever comes first takes what the runtime needs once
                files = [("the reference model", first)]
                with open_worker(self.command(session), files, runtime) as worker:
                    started = time.monotonic()
                    worker.load(ready, model.stem)
                    found.append((time.monotonic() - started) * 1e3)
            size = sum(path.stat().st_size for path in self._runtime.files(ready))
        return size, min(found)

    def inputs(self, model: Path) -> list[Input]:
        """What a model takes, as its runtime says.

        Raises:
            DeviceError: It cannot load the model.
        """
        with self.opened([model]) as worker:
            return worker.inputs(0)

    @contextlib.contextmanager
    def opened(self, models: Sequence[Path], session: int = 0) -> Iterator[Worker]:
        """A worker with ``models`` loaded in order, closed on the way out."""
        with temporary_folder() as folder:
            ready = converted(self._runtime, {path.stem: path for path in models}, folder)
            paths, runtime = list(ready.items()), self.identity.runtime
            with open_worker(self.command(session), paths, runtime) as worker:
                yield worker


def converted(runtime: Runtime, models: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Networks, ONNX files or the runtime's own, as what its workers open, by the same names.

    Raises:
        ModelError: The runtime cannot run one of them.
        MissingDependencyError: What converts them is not installed here.
    """
    ready = {}
    for name, path in models.items():
        try:
            ready[name] = _ready(runtime, path, folder)
            given = inputs_beside(path)
            if given.is_file() and ready[name] != path:
                inputs_beside(ready[name]).write_bytes(given.read_bytes())
        except InvalidInputError as error:
            raise ModelError(runtime.name, name, str(error)) from None
    return ready


def _ready(runtime: Runtime, model: Path, folder: Path) -> Path:
    own = of_file(model)
    if own is RUNTIMES.load(DEFAULT):
        try:
            # a folder of its own: two networks may have one name
            return runtime.convert(model, Path(tempfile.mkdtemp(dir=folder)))
        except ImportError as error:
            raise MissingDependencyError(
                f"converting for {runtime.name} needs {error.name}, which is not here",
                f"type: deploynas devices install {next(iter(runtime.devices))}",
            ) from None
    if own.suffix != runtime.suffix:
        raise InvalidInputError(
            f"it is a file of {own.name}", f"try --device {next(iter(own.devices))}"
        )
    return model
