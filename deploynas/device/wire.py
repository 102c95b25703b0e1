"""Model files for a device elsewhere: what must be sent of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto
from onnx.external_data_helper import uses_external_data

from deploynas.errors import InvalidInputError
from deploynas.graph.emit import RANDOM_SEED, random_range
from deploynas.graph.model_file import tensors_of
from deploynas.onboard.parts import Part, draw

WORTH_BYTES = 256  # of a tensor: a smaller one is sent


@dataclass(frozen=True)
class Parcel:
    """A model file as it is sent: see :mod:`deploynas.onboard.parts`."""

    digest: str
    parts: Sequence[Part]
    literal: bytes

    @classmethod
    def of(cls, path: Path) -> Parcel:
        """The file without the tensors that the device can draw itself, bit for bit."""
        content = path.read_bytes()
        model = _parsed(content)
        if model is not None and any(uses_external_data(one) for one in tensors_of(model)):
            raise InvalidInputError(
                f"{path} keeps its weights in a file beside it, and both are too large to be sent",
                "check it where it is: copy it to the device, and use --device cpu there",
            )
        parts: list[Part] = []
        literal, place = [], 0
        for start, end, part in _holes(content, model):
            literal.append(content[place:start])
            parts += [start - place, part]
            place = end
        literal.append(content[place:])
        parts.append(len(content) - place)
        return cls(hashlib.sha256(content).hexdigest(), parts, b"".join(literal))


def _parsed(content: bytes) -> onnx.ModelProto | None:
    """The model of a file; other runtimes have files of other kinds."""
    try:
        return onnx.load_from_string(content)
    except DecodeError:
        return None


def _holes(content: bytes, model: onnx.ModelProto | None) -> list[tuple[int, int, Part]]:
    """Where in a file random tensors are, and what draws them."""
    if model is None:
        return []
    seeds = [p.value for p in model.metadata_props if p.key == RANDOM_SEED]
    if not seeds or not seeds[0].isdecimal():
        return []
    holes: list[tuple[int, int, Part]] = []
    index, place = 0, 0
    for tensor in model.graph.initializer:
        shape, raw = tuple(tensor.dims), tensor.raw_data
        if tensor.data_type != TensorProto.FLOAT or not shape:
            continue
        index += 1
        recipe = int(seeds[0]), index, len(raw) // 4, random_range(shape)
        start = content.find(raw, place)
        if len(raw) < WORTH_BYTES or start < 0 or draw(*recipe).tobytes() != raw:
            continue
        place = start + len(raw)
        holes.append((start, place, recipe))
    return holes
