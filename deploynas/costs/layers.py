"""Costs that follow exactly of a network's layers: MACs, parameters, weights, memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from deploynas.costs.base import Cost, Floats, LayerSum, MeasuredFile
from deploynas.costs.quantity import BYTES, COUNT
from deploynas.spaces import Archs

MAX_THRESHOLDS = 40  # of activations, where memory is limited beside something else


class OfLayers(Cost):
    """A sum over layers, which the space knows by the cost's name."""

    def upper(self, archs: Archs) -> Floats:
        """``(n,)``, exact."""
        return self.space.totals(self.name, archs).astype(np.float64)

    def ends(self, rng: np.random.Generator) -> Archs:
        """The cheapest and the dearest network, exactly."""
        if not self.space.adds_up:
            return super().ends(rng)
        return self.space.ends(self.space.layer_values(self.name))

    def layer_sum(self, limit: float) -> LayerSum | None:
        """Itself, where costs of the space are sums over layers."""
        if not self.space.adds_up:
            return None
        return LayerSum(self.space.layer_values(self.name).astype(np.float64), limit)


class Macs(OfLayers):
    """Multiply-adds of convolutions and linear layers: what papers call FLOPs."""

    name, help = "macs", "Multiply-adds of one image, which papers call FLOPs."
    suffixes, shown = COUNT, ("M MACs", 1e6)

    @classmethod
    def measure(cls, file: MeasuredFile) -> float | None:
        """Of one run."""
        return file.macs


class Params(OfLayers):
    """Trainable parameters."""

    name, help = "params", "Trainable parameters."
    suffixes, shown = COUNT, ("k params", 1e3)

    @classmethod
    def measure(cls, file: MeasuredFile) -> float:
        """Those that the file stores, which are fewer where batch norms are folded."""
        return file.num_weights


class WeightBytes(OfLayers):
    """Bytes of the deployed float32 weights, batch norms folded."""

    name, help = "weight_bytes", "Bytes of the deployed float32 weights."
    suffixes, shown = BYTES, ("kB", 1e3)

    @classmethod
    def measure(cls, file: MeasuredFile) -> float:
        """Of the constants in the file."""
        return file.weight_bytes


class PeakMemory(Cost):
    """Bytes of the weights and of the feature maps that live at once.

    Of a chain the lightest network is exact, and so is, near enough, the heaviest; of other spaces
    the ends are drawn.
    """

    name, help = "peak_memory_bytes", "Bytes of weights and live feature maps."
    suffixes, shown = BYTES, ("kB", 1e3)

    @classmethod
    def measure(cls, file: MeasuredFile) -> float | None:
        """What the process of a run takes at most, where the device tells."""
        return file.peak_bytes

    def upper(self, archs: Archs) -> Floats:
        """``(n,)``, exact."""
        return self.space.peak_memory_bytes(archs).astype(np.float64)

    def ends(self, rng: np.random.Generator) -> Archs:
        """See the class."""
        space, drawn = self.space, super().ends(rng)
        if not space.is_chain or not space.adds_up:
            return drawn
        weights = space.layer_values("weight_bytes")
        maps = space.layer_values("peak_activation_bytes")
        found = [drawn, space.ends(maps), space.ends(weights)]
        best = float(self.upper(np.concatenate(found)).min())
        allowed = float(maps.max())
        while True:  # the least weights under an ever lower limit on the feature maps
            least, row = space.sums(np.where(maps <= allowed, weights, np.inf)).least()
            if not math.isfinite(least) or least >= best:
                return np.concatenate(found)
            found.append(space.as_rows(row))
            best = min(best, float(self.upper(found[-1])[0]))
            allowed = float(space.max_over_layers(found[-1], maps)[0]) - 1

    def ways(self, limit: float) -> Iterator[list[LayerSum]]:
        """Of a chain: no feature map exceeds a threshold, and the weights what is left."""
        space = self.space
        if not space.is_chain or not space.adds_up:
            yield []
            return
        maps = space.layer_values("peak_activation_bytes")
        weights = space.layer_values("weight_bytes").astype(np.float64)
        thresholds = np.unique(maps[maps <= limit])
        places = np.linspace(0, len(thresholds) - 1, min(len(thresholds), MAX_THRESHOLDS))
        for place in np.rint(places[::-1]).astype(int):
            most = thresholds[place]
            yield [LayerSum(np.where(maps <= most, weights, np.inf), limit - float(most))]
