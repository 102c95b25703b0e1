"""What a runtime is: how networks are converted, opened and called.

A :class:`PythonRuntime` is one file, which travels to the device as it is: on the device it opens
and calls networks, here it converts them. At its top it imports the standard library and
``deploynas.onboard`` alone; what else a method needs, the method imports.
"""

from __future__ import annotations

import base64
import importlib.util
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from deploynas.errors import (
    DeviceError,
    InvalidInputError,
    MissingDependencyError,
    UnknownNameError,
)
from deploynas.onboard.processor import machine, most_threads, pinned, processor_name

Array = npt.NDArray[Any]
TRACED_RUNS = 20
TRACE_SECONDS = 1.0  # of a slow model fewer runs are enough
Feeds = Mapping[str, Array]


class Launcher(Protocol):
    """Starts workers of a runtime on this machine."""

    def facts(self) -> dict[str, Any]:
        """Who measures: the fields of an identity but ``device``."""
        ...

    def command(self, session: int) -> list[str]:
        """Command line of a worker; ``session`` counts them, so that cores can rotate."""
        ...


class Runtime(ABC):
    """How networks run.

    Attributes:
        name: What people call it.
        devices: Name of a device of this machine that it runs on -> what that is, in a few words.
        examines: Whether its workers tell memory and the times of nodes.
        installs: What ``devices install`` gets, in a few words; empty where it comes with
            deploynas.
        suffix: What the name of a file that it opens ends in.
        beside: What the names of further files of such a network end in, which lie beside it.
    """

    name: ClassVar[str]
    devices: ClassVar[Mapping[str, str]]
    suffix: ClassVar[str] = ".onnx"
    beside: ClassVar[Sequence[str]] = ()
    examines: ClassVar[bool] = True
    installs: ClassVar[str] = ""

    @abstractmethod
    def launcher(self, device: str, threads: int, provider: str | None) -> Launcher:
        """Workers on this machine.

        Args:
            device: Of :attr:`devices`.
            threads: Threads inside one operator.
            provider: What executes, where a runtime has several; None for its first.

        Raises:
            InvalidInputError, UnknownNameError: It cannot run so here.
            MissingDependencyError: Something must be installed first; says what to type.
        """

    def convert(self, model: Path, folder: Path) -> Path:
        """A network as the file that a worker opens: ``model`` itself by default.

        The same file for the same network, whenever it is asked. Its name ends in
        :attr:`suffix`, and with each of :attr:`beside` instead of it a further file lies there.

        Args:
            model: An ONNX file.
            folder: Takes what is written.

        Raises:
            InvalidInputError: The runtime lacks an operator; names it and its node.
        """
        return model

    def supports(self, operator: str, precision: str) -> str:
        """Why it lacks an ONNX operator at ``fp32`` or ``int8``; empty where it does not."""
        return ""

    def install(self) -> tuple[Path, bool]:
        """Install what it needs, for this user: where that is, and whether it is new.

        Raises:
            InvalidInputError: There is nothing to install.
        """
        raise InvalidInputError(f"{self.name} comes with deploynas")

    def costs(self, path: Path) -> tuple[list[Any], int]:
        """Of a file of its own format: as ``deploynas.graph.costs.node_costs`` of an ONNX file.

        Raises:
            InvalidInputError: It does not tell, or it is no such file.
        """
        raise InvalidInputError(f"operators are not counted in files of {self.name}")

    def files(self, path: Path) -> list[Path]:
        """A converted network's files, the one that is opened first."""
        return [path, *(path.with_suffix(suffix) for suffix in self.beside)]


class Input(NamedTuple):
    """An input of a network.

    ``shape`` has a name in place of a dynamic side; ``type`` is numpy's name, or the runtime's of
    what numpy has not.
    """

    name: str
    shape: Sequence[Any]
    type: str


class Session(ABC):
    """An open network."""

    @property
    @abstractmethod
    def inputs(self) -> Sequence[Input]:
        """What it takes."""

    @abstractmethod
    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """What is timed: the call as a program makes it, everything before it done."""

    @abstractmethod
    def answers(self, feeds: Feeds) -> list[Any]:
        """Its outputs in order: arrays, or what else it returns."""


class PythonRuntime(Runtime):
    """A runtime with a Python package. One instance stands in its file as ``RUNTIME``.

    Attributes:
        package: What pip calls it.
        options: What its sessions are opened with and decides speed.
        oldest: The first version that will do.
    """

    package: ClassVar[str]
    options: ClassVar[Mapping[str, str]] = {}
    oldest: ClassVar[tuple[int, int]] = (0, 0)

    @abstractmethod
    def version(self) -> str:
        """Of the installed package.

        Raises:
            ImportError: It is not installed.
        """

    @abstractmethod
    def providers(self) -> Sequence[str]:
        """What can execute here, the usual one first."""

    @abstractmethod
    def open(self, path: str, provider: str, threads: int) -> Session:
        """Open the file that :meth:`convert` made, with :attr:`options`."""

    def node_ms(
        self, path: str, provider: str, threads: int, feeds: Feeds, folder: Path
    ) -> dict[str, float]:
        """Name of a node, as the runtime optimised them -> milliseconds; empty if untold.

        ``folder`` takes what it writes meanwhile.
        """
        return {}

    @property
    def file(self) -> Path:
        """Where it is defined: what travels."""
        return Path(cast(str, sys.modules[type(self).__module__].__file__))

    def launcher(self, device: str, threads: int, provider: str | None) -> PythonLauncher:
        """See :class:`Runtime`."""
        self._require_installed()
        most = most_threads()
        if not 1 <= threads <= most:
            raise InvalidInputError(f"--threads {threads}: this machine offers 1 to {most}")
        if provider is not None and provider not in self.providers():
            raise UnknownNameError("execution provider", provider, list(self.providers()))
        return PythonLauncher(self, threads, provider)

    def _require_installed(self) -> None:
        device = next(iter(self.devices))
        try:
            version = self.version()
            if not self._is_old(version):
                return
            reason = f"{self.package} {self._oldest}, and {version} is here"
        except ImportError:
            reason = f"{self.package}, which is not here"
        raise MissingDependencyError(
            f"the device {device} needs {reason}", f"type: deploynas devices install {device}"
        )

    @property
    def _oldest(self) -> str:
        return ".".join(map(str, self.oldest))

    def _is_old(self, version: str) -> bool:
        return tuple(int(part) for part in version.split(".")[:2]) < self.oldest

    def install(self) -> tuple[Path, bool]:
        """See :class:`Runtime`: by pip, beside deploynas."""
        place = Path(sys.prefix)
        try:
            self._require_installed()
            return place, False
        except MissingDependencyError:
            pass
        wanted = f"{self.package}>={self._oldest}"
        command = [sys.executable, "-m", "pip", "install", "--quiet", wanted]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise DeviceError(f"pip could not install {wanted}: {lines[-1]}")
        importlib.invalidate_caches()
        return place, True

    def facts(self, provider: str | None, threads: int) -> dict[str, Any]:
        """Of the machine that this runs on; see :meth:`Launcher.facts`.

        Raises:
            ImportError: The package is not installed.
            ValueError: It is too old or has no such provider, or the machine has fewer cores.
        """
        version = self.version()
        if self._is_old(version):
            raise ValueError(f"its {self.package} is {version}, and {self._oldest} is needed")
        most = most_threads()
        if not 1 <= threads <= most:
            raise ValueError(f"--threads {threads}: it offers 1 to {most}")
        providers = self.providers()
        if provider is not None and provider not in providers:
            raise ValueError(
                f"its {self.package} has no {provider} (it has {', '.join(providers)})"
            )
        return {
            "processor": processor_name(),
            "runtime": f"{self.name} {'.'.join(version.split('.')[:2])}",
            "provider": provider or providers[0],
            "threads": threads,
            "session_options": dict(self.options),
            "recorded": {"runtime_version": version, **machine()},
        }


class PythonLauncher:
    """Workers in this Python; see :class:`Launcher`."""

    def __init__(self, runtime: PythonRuntime, threads: int, provider: str | None) -> None:
        self._runtime, self._threads, self._provider = runtime, threads, provider

    def facts(self) -> dict[str, Any]:
        """See :class:`Launcher`."""
        return self._runtime.facts(self._provider, self._threads)

    def command(self, session: int) -> list[str]:
        """A worker pinned to ``threads`` of the fastest cores, another set each session."""
        return worker_command(self._runtime.file, self._provider, self._threads, session)


def worker_command(file: Path, provider: str | None, threads: int, session: int) -> list[str]:
    """A worker of the runtime in ``file``, pinned to cores that rotate with ``session``."""
    script = str(Path(__file__).with_name("worker.py"))
    cores = ",".join(map(str, pinned(threads, session)))
    return [sys.executable, script, str(file), provider or "", str(threads), cores]


def load(file: Path) -> PythonRuntime:
    """The runtime of a file that has travelled here."""
    spec = importlib.util.spec_from_file_location("deploynas_runtime", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return cast(PythonRuntime, module.RUNTIME)


def inputs_beside(model: Path) -> Path:
    """Where inputs lie that a model file is to be timed with: an ``.npz`` of arrays by name."""
    return model.with_name(f"{model.name}.inputs.npz")


def numbers(outputs: Sequence[Any]) -> list[Array]:
    """The arrays of numbers in what a network answers, those in sequences and maps too."""
    found: list[Array] = []
    for one in outputs:
        if isinstance(one, (list, tuple)):
            found += numbers(one)
        elif isinstance(one, Mapping):
            found += numbers(list(one.values()))
        elif isinstance(one, (np.ndarray, np.generic, int, float)):
            array = np.asarray(one)
            if array.dtype.kind in "biuf":
                found.append(array)
    return found


def traced(call: Callable[[], Any]) -> list[Any]:
    """What a call returns, run by run, the first left out: runs enough for the times of nodes."""
    started, found = time.monotonic(), []
    for number in range(TRACED_RUNS + 1):
        found.append(call())
        if number >= 3 and time.monotonic() - started > TRACE_SECONDS:
            break
    return found[1:]


def packed(feeds: Feeds) -> dict[str, Any]:
    """Arrays as JSON: what a worker is fed with and answers."""
    return {
        name: {
            "type": array.dtype.name, "shape": list(array.shape),
            "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode(),
        }
        for name, array in feeds.items()
    }  # fmt: skip


def unpacked(fields: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays of :func:`packed`.

    Raises:
        KeyError, TypeError, ValueError: These are none.
    """
    return {
        name: np.frombuffer(base64.b64decode(one["data"]), np.dtype(str(one["type"]))).reshape(
            one["shape"]
        )
        for name, one in fields.items()
    }
