"""A file that somebody made, in whatever format: what it takes, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from deploynas.device import LocalDevice
from deploynas.errors import InvalidInputError
from deploynas.graph.costs import node_costs
from deploynas.graph.model_file import ModelFile, require_memory
from deploynas.onboard.folders import place
from deploynas.onboard.runtime import Input
from deploynas.runtimes import files_of, of_file


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
        require_memory(path, size)

    @cached_property
    def inputs(self) -> list[Input]:
        """See :class:`ModelFile`.

        Raises:
            DeviceError: The runtime cannot open it.
            MissingDependencyError: The runtime is not installed here.
        """
        (device, *_) = of_file(self.path).devices
        return LocalDevice(device).inputs(self.path)

    @property
    def texts(self) -> list[str]:
        """None: such formats have no text."""
        return []

    @property
    def num_bytes(self) -> int:
        """See :class:`ModelFile`."""
        return sum(file.stat().st_size for file in [self.path, *self.external])

    def shapes(self, typed: Sequence[str]) -> dict[str, list[int]]:
        """See :class:`ModelFile`."""
        self._require_none(typed)
        return {one.name: list(one.shape) for one in self.inputs}

    def fixed(self, typed: Sequence[str], folder: Path, *, apart: bool = False) -> Path:
        """The file to measure, itself, or where it is to be ``apart`` a copy.

        Raises:
            InvalidInputError: Shapes are given.
        """
        self._require_none(typed)
        if not apart:
            return self.path
        for file in [self.path, *self.external]:
            place(file, folder / file.name)
        return folder / self.path.name

    def require_own_weights(self, other: ModelFile | RuntimeFile) -> None:
        """See :class:`ModelFile`; such files are named after their own."""

    def _require_none(self, typed: Sequence[str]) -> None:
        if typed:
            raise InvalidInputError(f"--input-shape is for ONNX files, {self.path} has its own")


def is_onnx(path: Path) -> bool:
    """Whether it is an ONNX file, and not one of a runtime's own format, by its name."""
    return of_file(path).suffix == ".onnx"


def open_file(path: Path) -> ModelFile | RuntimeFile:
    """A file by what its name ends in; see both classes."""
    return ModelFile(path) if is_onnx(path) else RuntimeFile(path)


def costs_of(path: Path) -> list[Any]:
    """Of one run of a file with fixed shapes, node by node.

    Raises:
        InvalidInputError: The runtime of its format does not tell.
    """
    nodes, _ = node_costs(path) if is_onnx(path) else of_file(path).costs(path)
    return list(nodes)
