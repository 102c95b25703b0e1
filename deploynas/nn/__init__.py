"""The torch modules: candidate layers, static networks, the elastic supernet."""

from __future__ import annotations

from deploynas.nn.flops import fvcore_costs
from deploynas.nn.mixed import MixedLayer, MixedNetwork
from deploynas.nn.static import StaticNetwork, build, build_layer, load_net
from deploynas.nn.supernet import Supernet, recalibrate

__all__ = [
    "MixedLayer",
    "MixedNetwork",
    "StaticNetwork",
    "Supernet",
    "build",
    "build_layer",
    "fvcore_costs",
    "load_net",
    "recalibrate",
]
