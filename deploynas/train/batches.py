"""Images on their way into a network: uint8 arrays -> normalised, augmented batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from deploynas.data import ImageDataset, Source
from deploynas.spaces import Resolution, ResolutionLike
from deploynas.train.resizing import resized
from deploynas.train.task import task_of

HELD_SHARE = 0.5  # of a GPU's free memory, at most, for the images of a source
_CHUNK = 4_096  # images resized at once
_held: WeakKeyDictionary[Source, dict[tuple[torch.device, Resolution], Tensor]] = (
    WeakKeyDictionary()
)


class Batches:
    """A source's images at every resolution of a space, as channels-last float batches.

    Depthwise networks train up to twice as fast on channels-last tensors, so that every batch
    has that layout. A GPU holds the images themselves, as uint8, where they fit.

    Attributes:
        task: What the images are for.
        labels: ``(len,)``, on the device.
    """

    def __init__(self, dataset: ImageDataset, source: Source, device: torch.device) -> None:
        self.task = task_of(dataset)
        self._source = source
        self._device = device
        self._mean = torch.tensor(dataset.mean, device=device).view(1, -1, 1, 1) * 255
        self._std = torch.tensor(dataset.std, device=device).view(1, -1, 1, 1) * 255
        self.labels = _tensor(source.labels).to(device)

    def __len__(self) -> int:
        return len(self._source)

    def images(
        self,
        rows: np.ndarray,
        resolution: ResolutionLike,
        change: Callable[[Tensor], Tensor] = lambda pixels_nhwc: pixels_nhwc,
    ) -> Tensor:
        """Normalised images ``(n, c, height, width)``, float32, channels last.

        ``change`` is done to them before, ``(n, height, width, c)`` uint8.
        """
        wanted = Resolution.of(resolution)
        held = self._held(wanted)
        if held is not None:
            pixels = held[on_device(rows, self._device)]
        else:
            pixels = on_device(self._source.batch(rows, *wanted.size), self._device)
        return self.task.inputs(change(pixels), self._mean, self._std)

    def _held(self, resolution: Resolution) -> Tensor | None:
        """All images at a resolution on a GPU, uint8; None where they are not or do not fit."""
        source = self._source
        if self._device.type == "cpu" or not source.in_memory:
            return None
        held = _held.setdefault(source, {})
        key = (self._device, resolution)
        if key not in held:
            sizes = {(source.height, source.width), resolution.size}
            num_bytes = len(source) * source.channels * sum(h * w for h, w in sizes)
            if num_bytes > HELD_SHARE * torch.cuda.mem_get_info(self._device)[0]:
                return None
            held[key] = torch.cat(list(self._brought_to(resolution)))
        return held[key]

    def _brought_to(self, resolution: Resolution) -> Iterator[Tensor]:
        """All images in order at a resolution, on the device, uint8."""
        source, (height, width) = self._source, resolution.size
        if source.height == source.width and height == width:
            for part in source.chunks(_CHUNK):
                yield resized(on_device(part, self._device), height)
            return
        for start in range(0, len(source), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(source)))
            yield on_device(source.batch(rows, height, width), self._device)

    def in_order(
        self,
        resolution: ResolutionLike,
        num_images: int | None = None,
        batch_size: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the first ``num_images`` images and labels."""
        end = len(self) if num_images is None else min(num_images, len(self))
        size = batch_size or (256 if self._device.type == "cpu" else 2_048)
        for start in range(0, end, size):
            rows = np.arange(start, min(start + size, end))
            yield self.images(rows, resolution), self.labels[start : start + len(rows)]

    def calibration(
        self, resolution: ResolutionLike, num_images: int, seed: int = 0
    ) -> list[Tensor]:
        """Batches of ``num_images`` random images, the same for the same seed."""
        rng = np.random.default_rng([seed, *Resolution.of(resolution).numbers])
        picked = rng.permutation(len(self))[:num_images]
        num_batches = max(1, len(picked) // (128 if self._device.type == "cpu" else 512))
        return [self.images(part, resolution) for part in np.array_split(picked, num_batches)]


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device, without waiting for it."""
    tensor = _tensor(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _tensor(array: np.ndarray) -> Tensor:
    """The array itself where torch can write to it, else a copy."""
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
