"""Model files for a device elsewhere: what must be sent of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from deploynas.graph.emit import RANDOM_SEED, random_range
from deploynas.onboard.parts import Part, draw

WORTH_BYTES = 256  # of a tensor: a smaller one is sent


@dataclass(frozen=True)
class Parcel:
    """A model's files as they are sent: see :meth:`deploynas.onboard.parts.ModelFolder.put`."""

    digest: str
    files: Sequence[tuple[str, int]]
    parts: Sequence[Part]
    literal: bytes

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Parcel:
        """The files without the tensors that the device can draw itself, bit for bit."""
        contents = [path.read_bytes() for path in paths]
        files = [(path.suffix, len(one)) for path, one in zip(paths, contents, strict=True)]
        content = b"".join(contents)
        parts: list[Part] = []
        literal, place = [], 0
        for start, end, part in _holes(content):
            literal.append(content[place:start])
            parts += [start - place, part]
            place = end
        literal.append(content[place:])
        parts.append(len(content) - place)
        return cls(hashlib.sha256(content).hexdigest(), files, parts, b"".join(literal))


def _holes(content: bytes) -> list[tuple[int, int, Part]]:
    """Where in a file random tensors are, and what draws them."""
    try:
        model = onnx.load_from_string(content)
    except DecodeError:
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
