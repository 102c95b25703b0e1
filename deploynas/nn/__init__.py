"""The torch modules: candidate layers, static networks, supernets."""

from __future__ import annotations

from pkgutil import resolve_name

from deploynas.errors import InvalidInputError
from deploynas.nn.candidates import MixedLayer, MixedNetwork
from deploynas.nn.cells import CellNetwork
from deploynas.nn.flops import fvcore_costs
from deploynas.nn.lending import Lender, Loan
from deploynas.nn.mixtures import MixedBlocks, MixedCells, Mixture
from deploynas.nn.paths import PathNetwork
from deploynas.nn.sharing import WeightSharing
from deploynas.nn.static import StaticNetwork, build, build_layer, load_net
from deploynas.nn.supernet import Supernet, recalibrate
from deploynas.spaces.base import SearchSpace

__all__ = [
    "CellNetwork",
    "Lender",
    "Loan",
    "MixedBlocks",
    "MixedCells",
    "MixedLayer",
    "MixedNetwork",
    "Mixture",
    "PathNetwork",
    "StaticNetwork",
    "Supernet",
    "WeightSharing",
    "build",
    "build_layer",
    "fvcore_costs",
    "load_net",
    "mixture_of",
    "recalibrate",
    "supernet_of",
]


def supernet_of(space: SearchSpace) -> WeightSharing:
    """The network of shared weights that a space names, freshly initialised.

    Raises:
        InvalidInputError: The network needs other resolutions or choices.
    """
    network: WeightSharing = resolve_name(space.network)(space)
    return network


def mixture_of(space: SearchSpace) -> MixedBlocks | MixedCells:
    """The network of all candidates at once that a space names, freshly initialised.

    Raises:
        InvalidInputError: The space names none, or has several resolutions.
    """
    if space.mixture is None:
        raise InvalidInputError(f"{space.name} has no candidates that could run all at once")
    network: MixedBlocks | MixedCells = resolve_name(space.mixture)(space)
    return network
