"""Data sets as arrays: loading, splitting and the preprocessing that everything shares."""

from deploynas.data.dataset import (
    ImageDataset,
    Pixels,
    Split,
    framed,
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
    "framed",
    "normalise",
    "resize",
    "resolutions_for",
    "space_for",
]
