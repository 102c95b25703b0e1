"""Images in NumPy files, left on disk: a folder with ``images.npy`` and ``labels.npy``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deploynas.data import ImageDataset, Pixels, Source, build_dataset, resize
from deploynas.errors import InvalidInputError

NAMES = ("images.npy", "labels.npy")


class Mapped(Source):
    """Images that are read when they are asked for.

    Args:
        path: ``images.npy``, uint8 (n, side, side, 1 or 3).
        labels: int64 (n,).
    """

    def __init__(self, path: Path, labels: np.ndarray) -> None:
        self._path, self.labels = path, labels
        self.pixels = np.load(path, mmap_mode="r")
        _, self.height, self.width, self.channels = self.pixels.shape

    def batch(self, rows: np.ndarray, height: int, width: int) -> Pixels:
        """See Source."""
        return resize(np.asarray(self.pixels[rows]), height, width)

    def hash_into(self, digest) -> None:
        """See Source: of a large file, its name, size and time say enough."""
        about = self._path.stat()
        digest.update(f"{self._path.resolve()} {about.st_size} {about.st_mtime_ns}".encode())
        digest.update(self.labels.tobytes())


class NumpyFolder:
    """Takes a folder with both files; every tenth image validates, every tenth tests."""

    def reads(self, path: Path) -> bool:
        """See deploynas.data.Reader."""
        return all((path / name).is_file() for name in NAMES)

    def load(self, path: Path, *, seed: int, max_size: int, progress=None) -> ImageDataset:
        """See deploynas.data.Reader."""
        labels = np.load(path / NAMES[1]).astype(np.int64)
        whole = Mapped(path / NAMES[0], labels)
        if len(labels) != len(whole.pixels) or whole.height != whole.width:
            raise InvalidInputError(f"{path} does not hold squares, a label each")
        if whole.height > max_size:
            raise InvalidInputError(f"images of {whole.height} px: {max_size} is the most")
        order = np.random.default_rng(seed).permutation(len(labels))
        val, test, train = np.split(order, [len(order) // 10, len(order) // 5])
        return build_dataset(
            name=path.name, classes=[str(label) for label in range(labels.max() + 1)],
            train=whole.take(train), val=whole.take(val), test=whole.take(test), warnings=(),
            source=str(path),
        )  # fmt: skip


READER = NumpyFolder()
