"""What of a model file can be limited, and what it takes of that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from deploynas.check.life import LIVED
from deploynas.check.model_file import RuntimeFile, costs_of
from deploynas.costs import COSTS, Quantity
from deploynas.costs.quantity import BYTES
from deploynas.device import Device
from deploynas.errors import InvalidInputError, UnknownNameError
from deploynas.graph.model_file import ModelFile

FILE_BYTES, LATENCY, ACCURACY = "file_bytes", "latency_ms", "accuracy"
TITLES = {  # of gates, where a quantity has another name in a test report
    FILE_BYTES: "size", "peak_memory_bytes": "memory", "macs": "MACs",
}  # fmt: skip
# operators whose constants say what to do, and are no weights; of ONNX and of TensorFlow Lite
ARGUMENTS = frozenset(
    ("Clip", "Pad", "Reshape", "Resize", "Slice", "Squeeze", "Unsqueeze",
     "ARG_MAX", "BROADCAST_TO", "EXPAND_DIMS", "MEAN", "MIRROR_PAD", "PAD", "PADV2", "REDUCE_MAX",
     "REDUCE_MIN", "REDUCE_PROD", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "SLICE",
     "SPLIT", "SPLIT_V", "STRIDED_SLICE", "SUM", "TILE", "TRANSPOSE")
)  # fmt: skip


def limits_from(typed: Iterable[str]) -> dict[str, float]:
    """Limits from ``NAME=VALUE`` texts, a unit behind the value where there is one.

    Raises:
        UnknownNameError: Nothing of a file that can be limited.
        InvalidInputError: Not a positive number, or given twice.
    """
    found: dict[str, float] = {}
    for text in typed:
        name, equals, value = text.partition("=")
        if not equals:
            raise InvalidInputError(
                f"--limit is NAME=VALUE, got {text!r}", "for example --limit latency_ms=10"
            )
        known = [*OF_FILES, *COSTS.names()]
        if name not in known:
            raise UnknownNameError("limit of a file", name, known)
        if name in found:
            raise InvalidInputError(f"the limit {name} is given twice")
        found[name] = kind_of(name).parse(value, name)
    return found


@dataclass(frozen=True)
class OnDevice:
    """A file as costs see it; see :class:`deploynas.costs.MeasuredFile`.

    Attributes:
        device: Loads and runs ``model``.
        model: With all shapes fixed.
    """

    device: Device
    model: Path

    @cached_property
    def _nodes(self) -> list[Any]:
        return costs_of(self.model)

    @property
    def _weighty(self) -> list[Any]:
        return [node for node in self._nodes if node.kind not in ARGUMENTS]

    @property
    def macs(self) -> float | None:
        """See the class."""
        if not all(node.counted for node in self._nodes):
            return None
        return sum(int(node.macs) for node in self._nodes)

    @property
    def num_weights(self) -> float:
        """See the class."""
        return float(sum(node.num_weights for node in self._weighty))

    @property
    def weight_bytes(self) -> float:
        """See the class."""
        return float(sum(node.weight_bytes for node in self._weighty))

    @property
    def peak_bytes(self) -> float | None:
        """See the class."""
        return self.device.examine(self.model).peak_bytes


def measured(
    limits: Iterable[str], device: Device, model: Path, whole: ModelFile | RuntimeFile
) -> dict[str, float | None]:
    """What a file takes of all the costs that are limited, but for its latency.

    Args:
        limits: Names are asked for.
        device: Loads and runs ``model``.
        model: With all shapes fixed.
        whole: The file as it is.

    Returns:
        Name -> value; None where that cannot be told.
    """
    file = OnDevice(device, model)
    return {
        name: whole.num_bytes if name == FILE_BYTES else COSTS.load(name).measure(file)
        for name in limits
        if name == FILE_BYTES or name not in OF_FILES
    }


def kind_of(name: str) -> type[Quantity]:
    """The quantity that a limit is of."""
    return OF_FILES.get(name) or COSTS.load(name)


class FileBytes(Quantity):
    """Size of a model and of all that belongs to it."""

    name, help = FILE_BYTES, "Bytes of the file, with weights that are kept beside it."
    suffixes, shown = BYTES, ("MB", 1e6)


class Accuracy(Quantity):
    """Of the file, on test images."""

    name, help = ACCURACY, "Share of the test images that it gets right, 0 to 1, at least."
    suffixes: ClassVar[Mapping[str, float]] = {"": 1.0, "%": 0.01}
    at_least = True

    @classmethod
    def parse(cls, text: str, what: str) -> float:
        """A fraction, or per cent.

        Raises:
            InvalidInputError: It is none.
        """
        value = super().parse(text, what)
        if value > 1:
            raise InvalidInputError(f"{what} is a fraction, 0 to 1, got {text}")
        return value

    @classmethod
    def format(cls, value: float) -> str:
        """As per cent."""
        return f"{value:.2%}"


OF_FILES: Mapping[str, type[Quantity]] = {FILE_BYTES: FileBytes, ACCURACY: Accuracy, **LIVED}
"""What a file can be limited in beside the costs of networks."""
