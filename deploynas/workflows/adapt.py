"""A foreign network as a search space: what was found in it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploynas.check.accuracy import Recipe
from deploynas.data import ImageDataset, load_dataset, native_size_for
from deploynas.data.imagenet import MEAN, STD
from deploynas.errors import InvalidInputError
from deploynas.nn.adapt import Reading, read
from deploynas.nn.adapt.sources import load_module
from deploynas.nn.adapt.space import few_widths
from deploynas.spaces import Resolution


def read_network(spec: str, weights: Path | None, resolution: Resolution) -> Reading:
    """A network by its name, read at an input size.

    Args:
        spec: See :func:`~deploynas.nn.adapt.sources.load_module`.
        weights: See there.
        resolution: Of its input, pixels.

    Raises:
        InvalidInputError: See :func:`deploynas.nn.adapt.read`.
    """
    module = open_module(spec, weights)
    with contextlib.redirect_stdout(sys.stderr):
        shape = (1, _channels(module), resolution.height, resolution.width)
        return read(module, torch.randn(shape, generator=torch.Generator().manual_seed(0)))


def open_module(spec: str, weights: Path | None) -> nn.Module:
    """A network by its name; what somebody's code prints is no answer, and goes elsewhere.

    Raises:
        InvalidInputError: See :func:`~deploynas.nn.adapt.sources.load_module`.
    """
    with contextlib.redirect_stdout(sys.stderr):
        return load_module(spec, weights)


def prepared_data(
    module: nn.Module,
    spec: str,
    data: Path,
    resolution: Resolution,
    typed: tuple[str | None, str | None],
    note: Callable[[str], None],
) -> ImageDataset:
    """Images as a network wants them.

    Args:
        module: The network.
        spec: Its name.
        data: Where the images are.
        resolution: Of its input.
        typed: Mean and standard deviation as typed; of networks of libraries theirs, else the
            data's own, where None.
        note: Told which.

    Raises:
        InvalidInputError: A value that cannot be, or as many as no channels.
    """
    dataset = load_dataset(data, max_size=native_size_for([resolution]))
    for text in dataset.warnings:
        note(text)
    dataset = dataset.with_channels(_channels(module))
    recipe = Recipe.parse(None, *typed, None)
    mean, std, whose = dataset.mean, dataset.std, "the data's own"
    cfg = getattr(module, "pretrained_cfg", None)
    if isinstance(cfg, dict) and "mean" in cfg:
        mean, std, whose = tuple(cfg["mean"]), tuple(cfg["std"]), "timm's"
    elif spec.startswith("torchvision:"):
        mean, std, whose = MEAN, STD, "torchvision's"
    if recipe.mean or recipe.std:
        whose = "as given"
    mean, std = recipe.mean or mean, recipe.std or std
    if {len(mean), len(std)} != {dataset.channels}:
        raise InvalidInputError(
            f"mean and standard deviation are {dataset.channels} numbers, as the network's "
            f"channels, got {len(mean)} and {len(std)}"
        )
    shown = [",".join(f"{x:.3f}" for x in one) for one in (mean, std)]
    note(f"images are normalised by {shown[0]} and {shown[1]}, {whose}: --mean, --std")
    return dataset.normalised_by(mean, std)


def explained(reading: Reading) -> dict[str, Any]:
    """What was found, for JSON: groups with their options, and what is frozen, with reasons."""
    groups: list[dict[str, Any]] = [
        {"name": g.name, "kind": "width", "options": few_widths(g.size), "layers": g.layers}
        for g in reading.groups
    ]
    groups += [{"name": r.name, "kind": "depth", "options": [0, 1]} for r in reading.regions]
    groups += [
        {"name": k.name, "kind": "kernel", "options": sorted(k.sizes)} for k in reading.kernels
    ]
    smallest = {i: range(few_widths(g.size)[0]) for i, g in enumerate(reading.groups)}
    return {
        "network": type(reading.module).__name__,
        "input": list(reading.example.shape),
        "macs": reading.macs({}),
        "macs_narrowest": reading.macs(smallest),
        "params": sum(p.numel() for p in reading.module.parameters()),
        "groups": groups,
        "frozen": [vars(one) for one in reading.frozen],
    }


def _channels(module: nn.Module) -> int:
    """Of the images that a network takes: what its first convolution reads."""
    for one in module.modules():
        if isinstance(one, nn.Conv2d):
            return one.in_channels
    raise InvalidInputError(
        f"{type(module).__name__} has no convolution", "networks of images are adapted"
    )
