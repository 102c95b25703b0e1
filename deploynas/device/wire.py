"""Model files for a device elsewhere: what must be sent of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from deploynas.graph.emit import RANDOM_SEED, random_range
from deploynas.onboard.parts import Part, draw, drawn

WORTH_BYTES = 256  # of a tensor: a smaller one is sent
ORDERS: Mapping[int, Sequence[tuple[int, ...]]] = {  # that runtimes keep weights in
    2: [(1, 0)], 4: [(0, 2, 3, 1), (1, 2, 3, 0)],
}  # fmt: skip


@dataclass(frozen=True)
class Parcel:
    """A model's files as they are sent: see :meth:`deploynas.onboard.parts.ModelFolder.put`."""

    digest: str
    files: Sequence[tuple[str, int]]
    parts: Sequence[Part]
    literal: bytes

    @classmethod
    def of(cls, paths: Sequence[Path], source: Path) -> Parcel:
        """The files without the tensors that the device can draw itself, bit for bit.

        Args:
            paths: Files of a network.
            source: The ONNX file that they were made of, whose tensors are looked for.
        """
        contents = [path.read_bytes() for path in paths]
        files = [(path.suffix, len(one)) for path, one in zip(paths, contents, strict=True)]
        content = b"".join(contents)
        parts: list[Part] = []
        literal, place = [], 0
        for start, end, part in _holes(content, source):
            literal.append(content[place:start])
            parts += [start - place, part]
            place = end
        literal.append(content[place:])
        parts.append(len(content) - place)
        return cls(hashlib.sha256(content).hexdigest(), files, parts, b"".join(literal))


def _holes(content: bytes, source: Path) -> list[tuple[int, int, Part]]:
    """Where the random tensors of ``source`` are in ``content``, and what draws them."""
    try:
        model = onnx.load_from_string(source.read_bytes())
    except DecodeError:
        return []
    seeds = [p.value for p in model.metadata_props if p.key == RANDOM_SEED]
    if not seeds or not seeds[0].isdecimal():
        return []
    holes: list[tuple[int, int, Part]] = []
    index = 0
    for tensor in model.graph.initializer:
        shape, raw = tuple(tensor.dims), tensor.raw_data
        if tensor.data_type != TensorProto.FLOAT or not shape:
            continue
        index += 1
        recipe = int(seeds[0]), index, len(raw) // 4, random_range(shape)
        if len(raw) < WORTH_BYTES or draw(*recipe).tobytes() != raw:
            continue
        turned = ((*recipe, shape, order) for order in ORDERS.get(len(shape), ()))
        for part in (recipe, *turned):
            start = content.find(drawn(part))
            if start >= 0:
                holes.append((start, start + len(raw), part))
                break
    return sorted(holes, key=lambda hole: hole[0])
