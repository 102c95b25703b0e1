"""Pixels, and the one preprocessing of training and of the deployed check.

Images are uint8 arrays of shape (n, h, w, c) with c = 1 (grey) or 3 (RGB). They become
network input in two steps, :func:`resize` and :func:`normalise`; whoever feeds a network,
in PyTorch or in the deployed runtime, does what these two do and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploynas.errors import InvalidInputError
from deploynas.spaces import Resolution, ResolutionLike

Pixels = NDArray[np.uint8]

SIZE_STEP = 4
"""Sides and resolutions are multiples of this, so that strides divide them."""

MIN_SIZE = 8
"""The smallest side, in px, that a network is built for."""


def to_channels(images: Pixels, channels: int) -> Pixels:
    """Grey images as RGB, or RGB images as grey (ITU-R 601-2 luma).

    Args:
        images: uint8 (n, h, w, c), c is 1 or 3.
        channels: 1 or 3.
    """
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    luma = images @ np.array([0.299, 0.587, 0.114])
    grey: Pixels = np.rint(luma).astype(np.uint8)[..., None]
    return grey


def resize(images: Pixels, height: ResolutionLike, width: int | None = None) -> Pixels:
    """Resize every image with Pillow's antialiased bilinear filter, and distort none.

    Of images of another shape the centre is kept, as much of it as there is.

    Args:
        images: uint8 (n, h, w, c), c is 1 or 3.
        height: The new one in px; where ``width`` is None a resolution.
        width: The new one in px.

    Returns:
        uint8 (n, height, width, c); ``images`` itself when already that size.

    Raises:
        InvalidInputError: A side is not positive.
    """
    wanted = Resolution.of(height if width is None else f"{height}x{width}")
    count, *size, channels = images.shape
    if tuple(size) == wanted.size:
        return images
    result = np.empty((count, *wanted.size, channels), dtype=np.uint8)
    for source, target in zip(images, result, strict=True):
        image = Image.fromarray(source[..., 0] if channels == 1 else source)
        target[...] = np.asarray(brought_to(image, wanted)).reshape(target.shape)
    return result


def brought_to(image: Image.Image, resolution: Resolution, share: float = 1.0) -> Image.Image:
    """The part of an image that :meth:`Resolution.part_of` says, at the resolution."""
    # Resizing the centre is the same as resizing all and cropping, without the detour over a
    # huge image for an extreme aspect ratio.
    top, left, height, width = resolution.part_of(image.height, image.width, share)
    box = (left, top, left + width, top + height)
    return image.resize(resolution.size[::-1], Image.Resampling.BILINEAR, box=box)


def framed(
    images: Pixels, height: int, width: int, top: int, left: int, inner: tuple[int, int]
) -> Pixels:
    """Images as a black frame of ``(height, width)`` px holds them, at ``top, left``.

    Args:
        images: uint8 (n, h, w, c).
        height: Of the frame.
        width: Of the frame.
        top: Of the images.
        left: Of the images.
        inner: Height and width to which the images are brought.
    """
    pixels = resize(images, *inner)
    if inner == (height, width):
        return pixels
    frames = np.zeros((len(images), height, width, images.shape[-1]), np.uint8)
    frames[:, top : top + inner[0], left : left + inner[1]] = pixels
    return frames


def normalise(images: Pixels, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Turn pixels into network input: ``(images / 255 - mean) / std``, channels first.

    Args:
        images: uint8 (n, h, w, c).
        mean: c fractions of 1.
        std: c fractions of 1.

    Returns:
        Contiguous float32 (n, c, h, w).

    Raises:
        InvalidInputError: ``mean`` or ``std`` has not one value a channel.
    """
    channels = images.shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise InvalidInputError(
            f"images of {channels} channels need {channels} means and standard deviations, "
            f"not {len(mean)} and {len(std)}"
        )
    result = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
    result /= np.float32(255)
    result -= np.asarray(mean, dtype=np.float32)[:, None, None]
    result /= np.asarray(std, dtype=np.float32)[:, None, None]
    return result


def round_side(side: float) -> int:
    """Round a side in px to the nearest multiple of 4, a tie goes up, at least 8."""
    return max(MIN_SIZE, int(side / SIZE_STEP + 0.5) * SIZE_STEP)
