"""Model files for a device elsewhere: what must be sent of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto
from onnx.external_data_helper import uses_external_data

from deploynas.errors import InvalidInputError
from deploynas.graph.emit import RANDOM_SEED, random_range
from deploynas.graph.model_file import tensors_of
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

        Raises:
            InvalidInputError: The ONNX file itself is to be sent, and keeps its weights elsewhere.
        """
        contents = [path.read_bytes() for path in paths]
        files = [(path.suffix, len(one)) for path, one in zip(paths, contents, strict=True)]
        content = b"".join(contents)
        model = _parsed(source.read_bytes())
        is_apart = model is not None and any(uses_external_data(x) for x in tensors_of(model))
        if is_apart and source in paths:
            raise InvalidInputError(
                f"{source} keeps its weights in a file beside it, and both are too large to be "
                "sent",
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
        return cls(hashlib.sha256(content).hexdigest(), files, parts, b"".join(literal))


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
