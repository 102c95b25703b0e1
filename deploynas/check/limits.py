"""What of a model file can be limited, and how it is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from deploynas.check.model_file import RuntimeFile, macs_of
from deploynas.costs import COSTS, Cost
from deploynas.device import Device
from deploynas.errors import InvalidInputError, UnknownNameError
from deploynas.graph.model_file import ModelFile

FILE_BYTES, MEMORY, MACS, LATENCY = "file_bytes", "peak_memory_bytes", "macs", "latency_ms"
TITLES = {FILE_BYTES: "size", MEMORY: "memory", MACS: "MACs"}  # of gates
WORDS = {FILE_BYTES: "bytes", MEMORY: "bytes of memory at most", MACS: "MACs"}
UNITS = {FILE_BYTES: "weight_bytes", MEMORY: MEMORY, MACS: MACS, LATENCY: LATENCY}


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
        if name not in UNITS:
            raise UnknownNameError("limit of a file", name, UNITS)
        if name in found:
            raise InvalidInputError(f"the limit {name} is given twice")
        found[name] = COSTS.load(UNITS[name]).parse(value, name)
    return found


def measured(
    limits: Mapping[str, float], device: Device, model: Path, whole: ModelFile | RuntimeFile
) -> dict[str, float | None]:
    """What a file takes of everything that is limited but latency.

    Args:
        limits: Names are asked for.
        device: Loads and runs ``model``.
        model: With all shapes fixed.
        whole: The file as it is.

    Returns:
        Name -> value; None where the device does not tell.
    """
    found: dict[str, float | None] = {}
    if FILE_BYTES in limits:
        found[FILE_BYTES] = whole.num_bytes
    if MEMORY in limits:
        found[MEMORY] = device.examine(model).peak_bytes
    if MACS in limits:
        found[MACS] = macs_of(model)
    return found


def kind_of(name: str) -> type[Cost]:
    """The cost in whose units a limit is."""
    return COSTS.load(UNITS[name])
