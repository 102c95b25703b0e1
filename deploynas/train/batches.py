"""Images on their way into a network: uint8 arrays -> normalised, augmented batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from deploynas.data import ImageDataset, Split


class Batches:
    """A split at every resolution of a space, as channels-last float batches.

    Depthwise networks train up to twice as fast on channels-last tensors, so that every batch
    has that layout.
    """

    def __init__(self, dataset: ImageDataset, split: Split, device: torch.device) -> None:
        self._split = split
        self._device = device
        self._mean = torch.tensor(dataset.mean, device=device).view(1, -1, 1, 1) * 255
        self._std = torch.tensor(dataset.std, device=device).view(1, -1, 1, 1) * 255
        self._images: dict[int, Tensor] = {}
        self.labels = torch.from_numpy(split.labels).to(device)

    def __len__(self) -> int:
        return len(self._split)

    def images(self, indices: np.ndarray | slice, resolution: int) -> Tensor:
        """Normalised images ``(n, c, resolution, resolution)``, float32, channels last."""
        if resolution not in self._images:
            self._images[resolution] = torch.tensor(self._split.resized(resolution))
        stored = self._images[resolution]
        batch = (
            stored[indices] if isinstance(indices, slice) else stored[torch.from_numpy(indices)]
        )
        batch_bchw = batch.to(self._device).permute(0, 3, 1, 2).float()
        return ((batch_bchw - self._mean) / self._std).contiguous(
            memory_format=torch.channels_last
        )

    def in_order(
        self, resolution: int, num_images: int | None = None, batch_size: int = 256
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the first ``num_images`` images and labels."""
        end = len(self) if num_images is None else min(num_images, len(self))
        for start in range(0, end, batch_size):
            rows = slice(start, min(start + batch_size, end))
            yield self.images(rows, resolution), self.labels[rows]

    def calibration(self, resolution: int, num_images: int, seed: int = 0) -> list[Tensor]:
        """Batches of ``num_images`` random images, the same for the same seed."""
        rng = np.random.default_rng([seed, resolution])
        picked = rng.permutation(len(self))[:num_images]
        num_batches = max(1, len(picked) // 128)
        return [self.images(part, resolution) for part in np.array_split(picked, num_batches)]


def augment(
    images: Tensor, rng: np.random.Generator, *, flip: bool, of: int, own: slice
) -> Tensor:
    """Shift every image by up to a twelfth of its side, and mirror half of them.

    Args:
        images: ``(n, c, h, w)``, the part ``own`` of a batch of ``of`` images.
        rng: Draws for the whole batch.
        flip: Whether to mirror.
        of: Images of the whole batch.
        own: Which of them these are.
    """
    n, _, height, width = images.shape
    border = max(1, height // 12)
    padded = torch.nn.functional.pad(images, [border] * 4, mode="reflect")
    rows = _shifts(rng, of, height, border)
    columns = _shifts(rng, of, width, border)
    if flip:
        mirrored = rng.random(of) < 0.5
        columns[mirrored] = columns[mirrored][:, ::-1]
    rows, columns = rows[own], np.ascontiguousarray(columns[own])
    sample = torch.arange(n)[:, None, None]
    # advanced indexing around a slice puts the channels last: exactly the layout wanted
    picked = padded.permute(0, 2, 3, 1)[
        sample, torch.from_numpy(rows)[:, :, None], torch.from_numpy(columns)[:, None, :]
    ]
    return picked.permute(0, 3, 1, 2)


def _shifts(rng: np.random.Generator, n: int, side: int, border: int) -> np.ndarray:
    start = rng.integers(0, 2 * border + 1, size=(n, 1))
    return start + np.arange(side)
