"""Model files for the wire: random weights are drawn again on the other side, not sent.

A file is a list of parts: a number is so many bytes that are sent, a list ``[seed, index, count,
scale]`` is a tensor that :func:`draw` makes there, one with ``shape, axes`` behind these is such a
tensor with its axes in another order. The digest of the whole shows that nothing
changed on the way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt

Part = Union[int, Sequence[Any]]


def draw(seed: int, index: int, count: int, scale: float) -> npt.NDArray[np.float32]:
    """``(count,)`` uniform numbers in [-scale, scale), bit for bit the same everywhere.

    The raw stream of a bit generator is what numpy promises never to change (NEP 19).
    """
    raw = np.random.PCG64([seed, index]).random_raw((count + 1) // 2)
    whole = raw.astype("<u8").view("<u4")[:count] >> 8
    unit = whole.astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
    drawn: npt.NDArray[np.float32] = unit * np.float32(scale)
    return drawn


def drawn(part: Sequence[Any]) -> bytes:
    """The tensor that a part describes."""
    recipe, order = part[:4], part[4:]
    tensor: npt.NDArray[Any] = draw(*recipe).astype("<f4")
    if order:
        shape, axes = order
        tensor = tensor.reshape(shape).transpose(axes)
    return tensor.tobytes()


def join(parts: Sequence[Part], literal: bytes) -> bytes:
    """The file that ``parts`` describe.

    Raises:
        ValueError: They do not fit the bytes that were sent.
    """
    pieces, place = [], 0
    for part in parts:
        if isinstance(part, int):
            pieces.append(literal[place : place + part])
            place += part
        else:
            pieces.append(drawn(part))
    if place != len(literal):
        raise ValueError("a model file's parts do not fit its bytes")
    return b"".join(pieces)


class ModelFolder:
    """Model files by digest, in a folder of the device.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, list[Path]] = {}

    def put(
        self, digest: str, files: Sequence[tuple[str, int]], parts: Sequence[Part], literal: bytes
    ) -> None:
        """Write a model's files.

        Args:
            digest: Of their bytes, one file after the other.
            files: What the name of each ends in, and its size; the first is the one to open.
            parts: Of those bytes, as ``literal``: see :func:`join`.
            literal: What was sent of them.

        Raises:
            ValueError: They are not the files of that digest.
            OSError: There is no room.
        """
        content = join(parts, literal)
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError("a model file was damaged on its way")
        place, written = 0, []
        for suffix, size in files:
            written.append(self.folder / f"{digest}{suffix}")
            written[-1].write_bytes(content[place : place + size])
            place += size
        self._files[digest] = written

    def files(self, digest: str) -> list[Path]:
        """The files of a model, the one to open first."""
        return self._files[digest]

    def path(self, digest: str) -> Path:
        """The file of a model to open."""
        return self._files[digest][0]
