"""Image files to uint8 arrays of one size, by a pool of threads (Pillow releases the GIL)."""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploynas.data.pixels import MIN_SIZE, SIZE_STEP, Pixels, brought_to, round_side
from deploynas.errors import InvalidInputError
from deploynas.spaces import Resolution, ResolutionLike

Progress = Callable[[int, int], None]
"""Called with the number of images done and the total."""

# Naming the formats keeps Pillow from trying its other, less harmless readers on a file
# that merely has the suffix of an image.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
_GREY_MODES = ("1", "L", "LA", "I", "F")  # and "I;16" with its byte orders
_CHUNK = 128  # images a task: enough to hide a task's cost, few enough for smooth progress
_THREADS_FROM = 96  # px: smaller images spend their time in Python, under its global lock


@dataclass(frozen=True)
class Look:
    """What the sampled images say about the whole data set.

    Attributes:
        channels: 1 when all of them are grey, else 3.
        size: The native one, in px.
        deep_scale: Factor from the values of 16-bit, 32-bit and float images to 0..255.
        threads: How many threads decode fastest.
        crop: What the centre crop keeps: see :meth:`Resolution.part_of`.
    """

    channels: int
    size: Resolution
    deep_scale: float
    threads: int
    crop: float = 1.0


def clamp_size(side: float, max_size: int) -> int:
    """Round ``side`` px to a multiple of 4 between 8 and ``max_size``.

    Raises:
        InvalidInputError: ``max_size`` is below 8.
    """
    if max_size < MIN_SIZE:
        raise InvalidInputError(f"the largest side is {max_size} px, needs {MIN_SIZE} or more")
    return min(round_side(side), max_size // SIZE_STEP * SIZE_STEP)


def native_size(side: float, max_size: ResolutionLike) -> Resolution:
    """At what size images are kept whose shorter side is ``side`` px.

    As squares no larger than ``max_size``; where that is none, all at ``max_size``.

    Raises:
        InvalidInputError: ``max_size`` has a side below 8.
    """
    most = Resolution.of(max_size)
    if most.is_square:
        own = clamp_size(side, most.height)
        return Resolution(own, own)
    clamp_size(side, min(most.size))  # refuses what is too small
    return most


def look_at(paths: Sequence[Path], max_size: ResolutionLike) -> Look:
    """Learn the channels and the native size from a sample.

    Args:
        paths: The sample; files that cannot be read are passed over.
        max_size: See :func:`native_size`.

    Raises:
        InvalidInputError: None of the files can be read.
    """
    sides: list[int] = []
    grey = True
    deepest = 0.0
    with _quiet_pillow():
        for path in paths:
            try:
                image = _open(path)
                grey = _is_grey(image) and grey
                if _is_deep(image):
                    deepest = max(deepest, float(np.nan_to_num(np.asarray(image)).max()))
                sides.append(min(image.size))
            except Exception:  # see decode
                continue
    if not sides:
        raise InvalidInputError(
            f"none of {len(paths):,} sampled images can be read, the first is {paths[0]}"
        )
    # Deep images say nothing about their range: fractions, 8 bits and 16 bits all occur.
    deep_scale = 255.0 if deepest <= 1 else 1.0 if deepest <= 255 else 255 / 65535
    side = statistics.median(sides)
    threads = 1 if side < _THREADS_FROM else os.cpu_count() or 1
    return Look(1 if grey else 3, native_size(side, max_size), deep_scale, threads)


def decode(
    paths: Sequence[Path], look: Look, progress: Progress | None = None
) -> tuple[Pixels, NDArray[np.bool_]]:
    """Decode all ``paths``.

    Args:
        paths: n image files.
        look: How to convert them.
        progress: Called from this thread after every batch of images.

    Returns:
        uint8 (n, height, width, channels), and bool (n,), true where the file could be read;
        elsewhere the pixels mean nothing.
    """
    pixels = np.zeros((len(paths), *look.size.size, look.channels), dtype=np.uint8)
    readable = np.zeros(len(paths), dtype=np.bool_)

    def decode_chunk(start: int) -> int:
        chunk = paths[start : start + _CHUNK]
        for index, path in enumerate(chunk, start):
            # Pillow raises nearly everything on a damaged file: truncation, bombs, modes
            # without a conversion. All of it means that this image is not usable.
            with contextlib.suppress(Exception):
                image = _convert(_open(path), look)
                if image.size != look.size.size[::-1] or look.crop != 1:
                    image = brought_to(image, look.size, look.crop)
                pixels[index] = np.asarray(image).reshape(pixels.shape[1:])
                readable[index] = True
        return len(chunk)

    with _quiet_pillow(), ThreadPoolExecutor(max_workers=look.threads) as pool:
        try:
            starts = range(0, len(paths), _CHUNK)
            for done in itertools.accumulate(pool.map(decode_chunk, starts)):
                if progress is not None:
                    progress(done, len(paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for 60,000 images
            raise
    return pixels, readable


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    Image.init()  # here, as readers that register themselves in several threads may race
    # Pillow warns about odd metadata and big images; what matters is whether they decode.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(path: Path) -> Image.Image:
    with Image.open(path, formats=_FORMATS) as image:
        image.load()
        return image


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _is_grey(image: Image.Image) -> bool:
    if image.mode in _GREY_MODES or image.mode.startswith("I;16"):
        return True
    red, green, blue = image.convert("RGB").split()
    return red.tobytes() == green.tobytes() == blue.tobytes()


def _convert(image: Image.Image, look: Look) -> Image.Image:
    if _is_deep(image):  # Pillow's own conversion would clip 16 bits at 255
        values = np.nan_to_num(np.asarray(image).astype(np.float64)) * look.deep_scale
        image = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    mode = "L" if look.channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)
