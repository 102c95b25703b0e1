"""A foreign network as a search space: what was found in it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploynas.errors import InvalidInputError
from deploynas.nn.adapt import Reading, read
from deploynas.nn.adapt.sources import load_module
from deploynas.spaces import Resolution

STEP = 8  # channels between two widths of a wide group


def read_network(spec: str, weights: Path | None, resolution: Resolution) -> Reading:
    """A network by its name, read at an input size.

    Args:
        spec: See :func:`~deploynas.nn.adapt.sources.load_module`.
        weights: See there.
        resolution: Of its input, pixels.

    Raises:
        InvalidInputError: See :func:`deploynas.nn.adapt.read`.
    """
    with contextlib.redirect_stdout(sys.stderr):  # what somebody's code prints is no answer
        module = load_module(spec, weights)
        shape = (1, _channels(module), resolution.height, resolution.width)
        return read(module, torch.randn(shape, generator=torch.Generator().manual_seed(0)))


def explained(reading: Reading) -> dict[str, Any]:
    """What was found, for JSON: groups with their options, and what is frozen, with reasons."""
    groups: list[dict[str, Any]] = [
        {"name": g.name, "kind": "width", "options": widths(g.size), "layers": g.layers}
        for g in reading.groups
    ]
    groups += [{"name": r.name, "kind": "depth", "options": [0, 1]} for r in reading.regions]
    groups += [
        {"name": k.name, "kind": "kernel", "options": sorted(k.sizes)} for k in reading.kernels
    ]
    smallest = {i: range(widths(g.size)[0]) for i, g in enumerate(reading.groups)}
    return {
        "network": type(reading.module).__name__,
        "input": list(reading.example.shape),
        "macs": reading.macs({}),
        "macs_narrowest": reading.macs(smallest),
        "params": sum(p.numel() for p in reading.module.parameters()),
        "groups": groups,
        "frozen": [vars(one) for one in reading.frozen],
    }


def widths(size: int) -> list[int]:
    """The widths of a group of so many channels: from a quarter up, in steps of a device's block.

    Steps of :data:`STEP`; of groups below two of these a quarter of their width. Its own is one.
    """
    step = STEP if size >= 2 * STEP else max(1, size // 4)
    least = -(-size // 4)
    return [*range(-(-least // step) * step, size, step), size]


def _channels(module: nn.Module) -> int:
    """Of the images that a network takes: what its first convolution reads."""
    for one in module.modules():
        if isinstance(one, nn.Conv2d):
            return one.in_channels
    raise InvalidInputError(
        f"{type(module).__name__} has no convolution", "networks of images are adapted"
    )
