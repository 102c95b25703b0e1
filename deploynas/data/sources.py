"""Where a data set comes from: a path, Fashion-MNIST, or digits that need no download."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from deploynas.data.dataset import ImageDataset, build_dataset
from deploynas.data.decode import Progress, native_size
from deploynas.data.idx import find_idx, load_idx
from deploynas.data.images import Split
from deploynas.data.pixels import MIN_SIZE, resize
from deploynas.data.splits import stratified_mask
from deploynas.errors import InvalidInputError, MissingDependencyError, MissingFileError
from deploynas.plugins import Plugins
from deploynas.spaces import Resolution, ResolutionLike

FASHION_MNIST_DIRECTORY = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts the files."""

FASHION_MNIST_VARIABLE = "DEPLOYNAS_FASHION_MNIST"
"""Environment variable that names another directory."""

_DIGITS_SIZE = 28
_SHIPPED = {"idx": "deploynas.data.idx:READER", "folder": "deploynas.data.folder:READER"}


class Reader(Protocol):
    """Makes a data set of what is at a path: an entry point of ``deploynas.sources``."""

    def reads(self, path: Path) -> bool:
        """Whether a file or folder, which exists, is of this kind."""
        ...

    def load(
        self, path: Path, *, seed: int, max_size: int, progress: Progress | None = None
    ) -> ImageDataset:
        """The data set, as :func:`load_dataset` says; images may be of any one size.

        ``max_size`` is a side, the longer one where images are to be of another shape.

        Raises:
            InvalidInputError: It is of this kind, and not usable.
        """
        ...


READERS = Plugins[Reader]("data source", "deploynas.sources", _SHIPPED)


def load_dataset(
    path: Path | None,
    *,
    download: bool = False,
    seed: int = 0,
    max_size: ResolutionLike = 64,
    progress: Progress | None = None,
) -> ImageDataset:
    """Load a data set; the same content and seed give the same splits, in the same order.

    Args:
        path: A directory with the four IDX files of MNIST or Fashion-MNIST, or an image
            folder: ``<class>/*``, or ``train/<class>/*`` with ``val/`` and/or ``test/``; or
            what the reader of another package takes.
            None is Fashion-MNIST from Debian's package, from an earlier download, or from
            a download; where there is none, scikit-learn's digits, with a warning.
        download: Allow the download of Fashion-MNIST when ``path`` is None.
        seed: Seed of the splits, 0 or more.
        max_size: Largest native side in px, 8 or more: images are kept as squares, bigger ones
            are shrunk. Or a height and a width ("96x160"), at which all images are kept. Of an
            image of another shape the centre is kept.
        progress: Called with the images done and the total while image files are decoded.

    Raises:
        MissingFileError: ``path`` does not exist, or one of its IDX files is missing.
        InvalidInputError: ``path`` holds no usable data set; the message names the culprit.
        MissingDependencyError: The digits or the download need a package not installed.
    """
    if seed < 0:
        raise InvalidInputError(f"a seed is 0 or more, not {seed}")
    native_size(MIN_SIZE, max_size)  # refuses a bad one before any work
    if path is None:
        return _load_default(download=download, seed=seed, max_size=max_size)
    if not path.exists():
        raise MissingFileError(f"data set {path} does not exist")
    names = (name for name in _reader_names() if READERS.load(name).reads(path))
    found = next(names, None)
    if found is None:
        raise InvalidInputError(
            f"data set {path} is a file, not a directory", "unpack an archive first"
        )
    asked = max_size if found in _SHIPPED else max(Resolution.of(max_size).size)
    reader: Any = READERS.load(found)  # ours take shapes too
    dataset: ImageDataset = reader.load(path, seed=seed, max_size=asked, progress=progress)
    return dataset


def _reader_names() -> tuple[str, ...]:
    """Those of other packages first: they know their own, ours take any folder."""
    return (*(name for name in READERS.names() if name not in _SHIPPED), *_SHIPPED)


def _load_default(*, download: bool, seed: int, max_size: ResolutionLike) -> ImageDataset:
    cache = _cache_directory()
    warnings: tuple[str, ...] = ()
    places = (_fashion_directory(), cache / "FashionMNIST" / "raw")
    found = next((place for place in places if all(find_idx(place))), None)
    if found is None and download:
        try:
            found = _download(cache)
        except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            warnings = (f"the download of Fashion-MNIST failed: {reason}",)
    if found is None:
        return load_digits(warnings, seed=seed, max_size=max_size)
    return load_idx(
        found,
        name="fashion-mnist",
        source="fashion-mnist",
        fashion=True,
        seed=seed,
        max_size=max_size,
    )


def _fashion_directory() -> Path:
    override = os.environ.get(FASHION_MNIST_VARIABLE)
    return Path(override) if override else FASHION_MNIST_DIRECTORY


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "deploynas" / "fashion-mnist"


def _download(cache: Path) -> Path:
    datasets = _require("torchvision.datasets", "the download of Fashion-MNIST")
    # Standard output belongs to the caller's results.
    with contextlib.redirect_stdout(sys.stderr):
        datasets.FashionMNIST(root=str(cache), train=True, download=True)
    directory = cache / "FashionMNIST" / "raw"
    if not all(find_idx(directory)):
        raise OSError(f"the files did not arrive in {directory}")
    return directory


def load_digits(warnings: tuple[str, ...], *, seed: int, max_size: ResolutionLike) -> ImageDataset:
    """The handwritten digits that scikit-learn holds: small, and always there.

    Args:
        warnings: That the data set tells.
        seed: Of its splits.
        max_size: See :func:`load_dataset`; squares are of 28 px where it allows that.
    """
    datasets = _require("sklearn.datasets", "the embedded digits (Fashion-MNIST was not found)")
    digits = datasets.load_digits()
    levels = np.rint(np.asarray(digits.images) * (255 / 16)).astype(np.uint8)
    images = resize(levels[..., None], *native_size(_DIGITS_SIZE, max_size).size)
    labels = np.asarray(digits.target, dtype=np.int64)
    rng = np.random.default_rng(seed)
    in_test = stratified_mask(labels, round(len(labels) / 5), rng)
    rest = np.flatnonzero(~in_test)
    in_val = stratified_mask(labels[rest], round(len(rest) / 10), rng)
    train, val = rest[~in_val], rest[in_val]
    warning = (
        f"Fashion-MNIST was not found: these are scikit-learn's {len(labels):,} digits "
        "(8x8 px, enlarged), not Fashion-MNIST, and too few and too easy to compare networks "
        "on (run 'apt install dataset-fashion-mnist', or allow the download with --download)"
    )
    return build_dataset(
        name="digits",
        classes=tuple(str(name) for name in digits.target_names),
        train=Split(images[train], labels[train]),
        val=Split(images[val], labels[val]),
        test=Split(images[in_test], labels[in_test]),
        warnings=(*warnings, warning),
        source="digits",
    )


def _require(module: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = {"sklearn": "scikit-learn"}.get(module.partition(".")[0], "torchvision")
        raise MissingDependencyError(
            f"{what} needs {package}", "pip install 'deploynas[search]'"
        ) from None
