"""A file that somebody made: what it takes, and whether it can be opened at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.checker import ValidationError
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from deploynas.device import LocalDevice
from deploynas.errors import InvalidInputError, MissingFileError
from deploynas.export.probe import inputs_of
from deploynas.graph.costs import node_costs
from deploynas.onboard.runtime import Input
from deploynas.runtimes import files_of, of_file

MEMORY_PER_BYTE = 2.0  # a runtime holds a model about twice while it opens it
PROTOBUF_BYTES = 2_000_000_000  # what a single file can hold
Shape = list[int | str]


class ModelFile:
    """A model's graph without its weights.

    Args:
        path: The file.

    Raises:
        MissingFileError: It, or the data that it refers to, is not there.
        InvalidInputError: It is no ONNX file, is damaged, or does not fit into memory.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise MissingFileError(f"{path} does not exist")
        if path.stat().st_size == 0:
            raise InvalidInputError(f"{path} is empty")
        self.path = path
        _require_memory(path, path.stat().st_size)
        try:
            # whatever the file's name ends in: onnx would read .json as another format
            self._model = onnx.load(path, format="protobuf", load_external_data=False)
        except DecodeError:
            raise InvalidInputError(f"{path} is not an ONNX file, or is damaged") from None
        if not self._model.graph.node:
            raise InvalidInputError(f"{path} is not an ONNX file, or is damaged")
        self.external = self._external()
        self._size = sum(file.stat().st_size for file in [path, *self.external])
        _require_memory(path, self._size)

    def _external(self) -> list[Path]:
        """Files that hold its weights."""
        names = {
            entry.value
            for tensor in self._model.graph.initializer
            if uses_external_data(tensor)
            for entry in tensor.external_data
            if entry.key == "location"
        }
        found = [self.path.parent / name for name in sorted(names)]
        for file in found:
            inside = file.is_relative_to(self.path.parent)
            if not inside or ".." in file.relative_to(self.path.parent).parts:
                raise InvalidInputError(f"{self.path} keeps its weights outside its own folder")
            if not file.is_file():
                raise MissingFileError(
                    f"{self.path} keeps its weights in {file.name}, which is not beside it"
                )
        return found

    @property
    def tensors(self) -> list[Input]:
        """Every input that is no weight."""
        return inputs_of(self.path)

    @property
    def inputs(self) -> dict[str, Shape]:
        """Shape of every input that is no weight; a side that is not fixed is a text."""
        weights = {tensor.name for tensor in self._model.graph.initializer}
        return {
            value.name: [
                side.dim_value or side.dim_param or "?"
                for side in value.type.tensor_type.shape.dim
            ]
            for value in self._model.graph.input
            if value.name not in weights
        }

    def macs(self, fixed: Path) -> int:
        """Of one run of the file that :meth:`fixed` gave."""
        return sum(node.macs for node in node_costs(fixed)[0])

    def fixed(self, shapes: Sequence[str], folder: Path) -> Path:
        """The file to measure: itself, or a copy in ``folder``.

        A copy has fixed shapes, and its weights in it unless they are too many for one file.

        Args:
            shapes: ``1,3,224,224`` for a model of one input, or ``NAME=1,3,224,224`` each.
            folder: A temporary one.

        Raises:
            InvalidInputError: An input's shape is not fixed and not given, or does not fit.
        """
        inputs = self.inputs
        given = dict(_parsed(text, list(inputs)) for text in shapes)
        for name, shape in inputs.items():
            sides = given.get(name)
            if sides is None:
                if all(isinstance(side, int) for side in shape):
                    continue
                example = ",".join(str(s) if isinstance(s, int) else "1" for s in shape)
                raise InvalidInputError(
                    f"input {name!r} of {self.path} has the dynamic shape "
                    f"[{', '.join(map(str, shape))}]",
                    f"say which to measure, for example --input-shape {example}",
                )
            fits = len(sides) == len(shape) and all(
                side == own or not isinstance(own, int)
                for side, own in zip(sides, shape, strict=True)
            )
            if not fits:
                raise InvalidInputError(
                    f"--input-shape {','.join(map(str, sides))} does not fit the input {name!r}: "
                    f"[{', '.join(map(str, shape))}]"
                )
        path = folder / self.path.name
        if all(list(given[n]) == inputs[n] for n in given):
            if not self.external:
                return self.path
            given = {}
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        if self._size < PROTOBUF_BYTES:  # one file can be sent to a device elsewhere
            try:
                load_external_data_for_model(model, str(self.path.parent))
            except (ValueError, OSError, ValidationError):
                raise InvalidInputError(
                    f"the weights that {self.path} keeps in "
                    f"{', '.join(file.name for file in self.external)} are cut off, or elsewhere"
                ) from None
        else:
            for file in self.external:
                place = folder / file.relative_to(self.path.parent)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(file.resolve())
        for value in model.graph.input:
            for dim, side in zip(
                value.type.tensor_type.shape.dim, given.get(value.name, ()), strict=False
            ):
                dim.dim_value = side
        if given:  # what was inferred for other shapes would contradict
            del model.graph.value_info[:]
            for value in model.graph.output:
                for dim in value.type.tensor_type.shape.dim:
                    dim.Clear()
        path.write_bytes(model.SerializeToString())
        return path


class RuntimeFile:
    """A network in a runtime's own format: as :class:`ModelFile`, but the runtime reads it.

    Args:
        path: The file that is opened.

    Raises:
        MissingFileError: It, or one that belongs to it, is not there.
        InvalidInputError: It is empty, or does not fit into memory.
    """

    def __init__(self, path: Path) -> None:
        self.path, *self.external = files_of(path)
        size = sum(file.stat().st_size for file in [path, *self.external])
        if path.stat().st_size == 0:
            raise InvalidInputError(f"{path} is empty")
        _require_memory(path, size)

    @cached_property
    def tensors(self) -> list[Input]:
        """See :class:`ModelFile`.

        Raises:
            DeviceError: The runtime cannot open it.
            MissingDependencyError: The runtime is not installed here.
        """
        (device, *_) = of_file(self.path).devices
        return LocalDevice(device).inputs(self.path)

    @property
    def inputs(self) -> dict[str, Shape]:
        """See :class:`ModelFile`."""
        return {one.name: list(one.shape) for one in self.tensors}

    def macs(self, fixed: Path) -> int:
        """See :class:`ModelFile`.

        Raises:
            InvalidInputError: The runtime does not tell.
        """
        return sum(int(node.macs) for node in of_file(fixed).costs(fixed)[0])

    def fixed(self, shapes: Sequence[str], folder: Path) -> Path:
        """The file to measure, itself.

        Raises:
            InvalidInputError: Shapes are given.
        """
        if shapes:
            raise InvalidInputError(f"--input-shape is for ONNX files, {self.path} has its own")
        return self.path


def open_file(path: Path) -> ModelFile | RuntimeFile:
    """A file by what its name ends in; see both classes."""
    return ModelFile(path) if of_file(path).suffix == ".onnx" else RuntimeFile(path)


def _parsed(text: str, names: list[str]) -> tuple[str, list[int]]:
    name, _, sides = text.rpartition("=")
    if not name:
        if len(names) != 1:
            raise InvalidInputError(
                f"the model has the inputs {', '.join(names)}: write --input-shape NAME={sides}"
            )
        name = names[0]
    if name not in names:
        raise InvalidInputError(f"the model has no input {name!r}, but {', '.join(names)}")
    try:
        numbers = [int(side) for side in sides.replace("x", ",").split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise InvalidInputError(f"--input-shape {text!r} is not a list like 1,3,224,224")
    return name, numbers


def _require_memory(path: Path, size: int) -> None:
    """Refuse what this machine could not hold, before it tries."""
    available = None
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith("MemAvailable")]
        available = int(line.split()[1]) * 1024
    if available is None and hasattr(os, "sysconf"):
        with contextlib.suppress(OSError, ValueError):
            available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if available is not None and size * MEMORY_PER_BYTE > available:
        raise InvalidInputError(
            f"{path} is too large for this machine: {size / 1e9:.1f} GB, and "
            f"{available / 1e9:.1f} GB of memory are free"
        )
