"""How networks run: runtimes by name, one file each, and the devices of this machine they bring.

Another package adds one by an entry point ``deploynas.runtimes``; see
:class:`deploynas.onboard.runtime.Runtime`, and :func:`deploynas.testing.check_runtime` for what
all keep.
"""

from __future__ import annotations

from pathlib import Path

from deploynas.errors import InvalidInputError, MissingFileError, UnknownNameError
from deploynas.onboard.runtime import PythonRuntime, Runtime
from deploynas.plugins import Plugins

RUNTIMES: Plugins[Runtime] = Plugins(
    "runtime",
    "deploynas.runtimes",
    {
        "onnxruntime": "deploynas.runtimes.onnxruntime:RUNTIME",
        "onnxruntime-web": "deploynas.runtimes.web:RUNTIME",
        "litert": "deploynas.runtimes.litert:RUNTIME",
        "ncnn": "deploynas.runtimes.ncnn:RUNTIME",
        "openvino": "deploynas.runtimes.openvino:RUNTIME",
    },
)
DEFAULT = "onnxruntime"


def by_device() -> dict[str, Runtime]:
    """Name of a device of this machine -> the runtime that it is a device of.

    Raises:
        InvalidInputError: Two runtimes have a device of one name.
    """
    found: dict[str, Runtime] = {}
    for runtime in RUNTIMES.all().values():
        for device in runtime.devices:
            if device in found:
                raise InvalidInputError(
                    f"{found[device].name} and {runtime.name} both have a device {device!r}",
                    "uninstall the package of one of them",
                )
            found[device] = runtime
    return found


def of_file(path: Path) -> Runtime:
    """The runtime that a file is of by its name; ONNX Runtime where no other claims it."""
    named = (runtime for runtime in RUNTIMES.all().values() if runtime.suffix == path.suffix)
    return next(named, RUNTIMES.load(DEFAULT))


def of_format(name: str) -> Runtime:
    """The runtime whose own format people call so: as its files end, or as itself.

    Raises:
        UnknownNameError: There is none.
    """
    found: dict[str, Runtime] = {}
    for runtime in RUNTIMES.all().values():
        found.setdefault(runtime.suffix.removeprefix("."), runtime)
        found.setdefault(runtime.name, runtime)
    if name not in found:
        raise UnknownNameError("format", name, found)
    return found[name]


def files_of(path: Path) -> list[Path]:
    """The files of a network by the name of the one that is opened, which comes first.

    Raises:
        MissingFileError: One is not there.
    """
    files = of_file(path).files(path)
    for file in files:
        if not file.is_file():
            raise MissingFileError(f"{file} does not exist")
    return files


def that_travels(name: str) -> PythonRuntime:
    """A runtime that devices elsewhere can have.

    Raises:
        UnknownNameError: There is none of that name.
        InvalidInputError: It runs on this machine alone.
    """
    runtime = RUNTIMES.load(name)
    if not isinstance(runtime, PythonRuntime):
        raise InvalidInputError(f"{name} runs on this machine alone")
    return runtime
