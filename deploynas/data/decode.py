"""Image files to uint8 arrays of one size, by a pool of threads (Pillow releases the GIL).

An image is what a viewer shows: turned upright as its EXIF orientation says, and black where it is
transparent, as phones and browsers hand out premultiplied pixels. What is deeper than 8 bits is
scaled by one factor for the whole set, see :class:`Depths`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import statistics
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from deploynas.contents import foreign, head, shown
from deploynas.data.pixels import MIN_SIZE, SIZE_STEP, Pixels, brought_to, round_side
from deploynas.errors import DeploynasError, InvalidInputError, MissingFileError
from deploynas.spaces import Resolution, ResolutionLike

Progress = Callable[[int, int], None]
"""Called with the number of images done and the total."""

# Naming the formats keeps Pillow from trying its other, less harmless readers on a file
# that merely has the suffix of an image.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM", "TIFF", "AVIF")
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")
_PPM = re.compile(rb"P[1-6][ \t\r\n#]")
_BRANDS = (b"avif", b"avis")
_BITS = (8, 10, 12, 14, 16)  # of what cameras and scanners keep in files of 16 or 32 bits
_FLOATS = (1, 255, 65535)  # what white is in images of floats
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # and "I;16" with its byte orders
_CHUNK = 128  # images a task: enough to hide a task's cost, few enough for smooth progress
_THREADS_FROM = 96  # px: smaller images spend their time in Python, under its global lock


@dataclass(frozen=True)
class Look:
    """What the sampled images say about the whole data set.

    Attributes:
        channels: 1 when all of them are grey, else 3.
        size: The native one, in px.
        threads: How many threads decode fastest.
        crop: What the centre crop keeps: see :meth:`Resolution.part_of`.
    """

    channels: int
    size: Resolution
    threads: int
    crop: float = 1.0


@dataclass
class Depths:
    """What white is in images deeper than 8 bits: the files do not tell, their values do.

    A file of 16 or 32 bits may hold 12, and then its largest value is 4,095. White is the largest
    value of the fewest bits (8, 10, 12, 14, 16) that hold all images of the set; of floats it is
    1, 255 or 65,535.

    Attributes:
        highest: Largest value of the images of integers, and of those of floats.
        found: How many there are of either.
        halved: Colour images of 16 bits, of which Pillow keeps the upper 8.
    """

    highest: dict[bool, float] = field(default_factory=dict)
    found: dict[bool, int] = field(default_factory=dict)
    halved: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def see(self, image: Image.Image) -> None:
        """Take a deep image in."""
        is_float = image.mode == "F"
        values = np.asarray(image)
        highest = float(np.nan_to_num(values, posinf=0.0).max()) if is_float else values.max()
        with self._lock:
            self.found[is_float] = self.found.get(is_float, 0) + 1
            self.highest[is_float] = max(self.highest.get(is_float, 0.0), float(highest))

    def see_halved(self) -> None:
        """Count a colour image of 16 bits."""
        with self._lock:
            self.halved += 1

    def white(self, is_float: bool) -> int:
        """The value that becomes 255; what is above it is white too."""
        candidates = _FLOATS if is_float else [2**bits - 1 for bits in _BITS]
        highest = self.highest.get(is_float, 0.0)
        return next((white for white in candidates if highest <= white), candidates[-1])

    @property
    def notes(self) -> list[str]:
        """Sentences on how such images were read."""
        lines = [
            f"{count:,} grey images are deeper than 8 bits, with values up to "
            f"{self.highest[is_float]:,.5g}: {self.white(is_float):,} is white in them"
            for is_float, count in sorted(self.found.items())
        ]
        if self.halved:
            lines.append(f"{self.halved:,} colour images have 16 bits: the upper 8 are used")
        return lines


@dataclass(frozen=True)
class Decoded:
    """Decoded images.

    Attributes:
        pixels: uint8 (n, height, width, channels); they mean nothing where there is a fault.
        faults: Row of a file that cannot be read -> why, in a few words.
        notes: Sentences that the user should see.
    """

    pixels: Pixels
    faults: dict[int, str]
    notes: list[str]

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Bool (n,), true where the file could be read."""
        readable = np.ones(len(self.pixels), dtype=np.bool_)
        readable[list(self.faults)] = False
        return readable


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
    with _quiet_pillow():
        for path in paths:
            try:
                image = _open(path)
                grey = _is_grey(image) and grey
                sides.append(min(image.size))
            except Exception:  # see decode
                continue
    if not sides:
        raise InvalidInputError(
            f"none of {len(paths):,} sampled images can be read, the first is {shown(paths[0])}: "
            f"{_reason(paths[0], None)}"
        )
    side = statistics.median(sides)
    threads = 1 if side < _THREADS_FROM else os.cpu_count() or 1
    return Look(1 if grey else 3, native_size(side, max_size), threads)


def is_image(path: Path) -> bool:
    """Whether a file's content is that of an image that can be decoded here."""
    try:
        start = head(path)
    except DeploynasError:
        return False
    if start.startswith(b"RIFF"):
        return start[8:12] == b"WEBP"
    if start[4:8] == b"ftyp":
        return start[8:12] in _BRANDS and "AVIF" in _formats()
    if start.startswith(b"BM"):
        return start[6:10] == bytes(4)  # reserved: text has none
    return start.startswith(_STARTS) or _PPM.match(start) is not None


def decode(paths: Sequence[Path], look: Look, progress: Progress | None = None) -> Decoded:
    """Decode all ``paths``.

    Args:
        paths: n image files.
        look: How to convert them.
        progress: Called from this thread after every batch of images.
    """
    pixels = np.zeros((len(paths), *look.size.size, look.channels), dtype=np.uint8)
    faults: dict[int, str] = {}
    depths = Depths()
    deep: list[int] = []  # their scale is known when all were seen

    def decode_one(index: int, first: bool) -> None:
        # Pillow raises nearly everything on a damaged file: truncation, bombs, modes
        # without a conversion. All of it means that this image is not usable.
        try:
            image = _open(paths[index], depths if first else None)
            if first and _is_deep(image):
                depths.see(image)
                deep.append(index)
                return
            image = _convert(image, look, depths)
            if image.size != look.size.size[::-1] or look.crop != 1:
                image = brought_to(image, look.size, look.crop)
            pixels[index] = np.asarray(image).reshape(pixels.shape[1:])
        except Exception as error:
            faults[index] = _reason(paths[index], error)

    def decode_chunk(rows: Sequence[int], first: bool) -> int:
        for row in rows:
            decode_one(row, first)
        return len(rows)

    with _quiet_pillow(), ThreadPoolExecutor(max_workers=look.threads) as pool:
        try:
            done = 0
            for rows, first in ((range(len(paths)), True), (deep, False)):
                chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
                for count in pool.map(decode_chunk, chunks, itertools.repeat(first)):
                    done += count
                    if progress is not None:
                        progress(done, len(paths) + len(deep))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for 60,000 images
            raise
    return Decoded(pixels, dict(sorted(faults.items())), depths.notes)


def _reason(path: Path, error: Exception | None) -> str:
    """Why an image cannot be read, in a few words."""
    try:
        start = head(path)
    except MissingFileError:
        return "a link to nothing"
    except DeploynasError as unread:
        return str(unread)
    if (found := foreign(start)) is not None:
        return found.name
    if start[4:8] == b"ftyp":
        return f"a {start[8:12].decode('ascii', 'replace').upper()} file, not decoded here"
    if not is_image(path) or isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels"
    return "cut off" if "truncated" in str(error) else "damaged"


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    Image.init()  # here, as readers that register themselves in several threads may race
    # Pillow warns about odd metadata and big images; what matters is whether they decode.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _formats() -> tuple[str, ...]:
    """Those that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(path: Path, depths: Depths | None = None) -> Image.Image:
    """An image, upright and without transparency."""
    with Image.open(path, formats=_formats()) as image:
        if depths is not None and image.mode.startswith("RGB") and ";16" in str(image.tile):
            depths.see_halved()
        image.load()
        return _opaque(ImageOps.exif_transpose(image))


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    if _is_deep(image):
        values = np.array(image)
        values[values == image.info["transparency"]] = 0
        return Image.fromarray(values)
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    flat = Image.alpha_composite(black, image.convert("RGBA"))
    return flat.convert("L" if image.mode in _GREY_MODES else "RGB")


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _is_grey(image: Image.Image) -> bool:
    if image.mode in _GREY_MODES or image.mode.startswith("I;16"):
        return True
    red, green, blue = image.convert("RGB").split()
    return red.tobytes() == green.tobytes() == blue.tobytes()


def _convert(image: Image.Image, look: Look, depths: Depths) -> Image.Image:
    if _is_deep(image):  # Pillow's own conversion would clip 16 bits at 255
        factor = 255 / depths.white(image.mode == "F")
        values = np.nan_to_num(np.asarray(image).astype(np.float64)) * factor
        image = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    mode = "L" if look.channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)
