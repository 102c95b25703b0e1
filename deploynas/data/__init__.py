"""Data sets: loading, splitting and the preprocessing that everything shares."""

from deploynas.data.dataset import (
    ImageDataset,
    build_dataset,
    native_size_for,
    resolutions_for,
    space_for,
)
from deploynas.data.images import Source, Split
from deploynas.data.pixels import Pixels, framed, normalise, resize
from deploynas.data.sources import Reader, load_dataset

__all__ = [
    "ImageDataset",
    "Pixels",
    "Reader",
    "Source",
    "Split",
    "build_dataset",
    "framed",
    "load_dataset",
    "normalise",
    "resize",
    "native_size_for",
    "resolutions_for",
    "space_for",
]
