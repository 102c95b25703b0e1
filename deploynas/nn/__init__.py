"""The torch modules: candidate layers, static networks, supernets."""

from __future__ import annotations

from deploynas.nn.cells import CellNetwork
from deploynas.nn.flops import fvcore_costs
from deploynas.nn.mixed import MixedLayer, MixedNetwork
from deploynas.nn.mixtures import MixedBlocks, MixedCells
from deploynas.nn.static import StaticNetwork, build, build_layer, load_net
from deploynas.nn.supernet import Supernet, recalibrate
from deploynas.spaces.base import SearchSpace
from deploynas.spaces.candidates import OneShotSpace
from deploynas.spaces.cells import CellSpace

__all__ = [
    "CellNetwork",
    "MixedBlocks",
    "MixedCells",
    "MixedLayer",
    "MixedNetwork",
    "StaticNetwork",
    "Supernet",
    "build",
    "build_layer",
    "fvcore_costs",
    "load_net",
    "recalibrate",
    "supernet_of",
]


def supernet_of(space: SearchSpace) -> Supernet | CellNetwork | MixedNetwork:
    """The weight-sharing network of a space, freshly initialised: one path runs at a time.

    Raises:
        InvalidInputError: Choice blocks at several resolutions.
    """
    if isinstance(space, OneShotSpace):
        return MixedNetwork(space)
    return CellNetwork(space) if isinstance(space, CellSpace) else Supernet(space)
