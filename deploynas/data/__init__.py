"""Data sets as arrays: loading, splitting and the preprocessing that everything shares."""

from deploynas.data.dataset import (
    ImageDataset,
    Pixels,
    Split,
    normalise,
    resize,
    resolutions_for,
    space_for,
)
from deploynas.data.sources import load_dataset

__all__ = [
    "ImageDataset",
    "Pixels",
    "Split",
    "load_dataset",
    "normalise",
    "resize",
    "resolutions_for",
    "space_for",
]
