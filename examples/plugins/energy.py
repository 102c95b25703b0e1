"""A cost in one file: energy of an image, from a table of what operations and traffic take.

The table is Horowitz 2014, "Computing's energy problem", figure 1.1.9: a 32-bit multiplication and
addition in 45 nm, and a word from DRAM.
"""

from __future__ import annotations

import numpy as np

from deploynas.costs import Cost, LayerSum
from deploynas.spaces import Archs

PICOJOULES = {"multiply and add": 3.7 + 0.9, "byte from memory": 640.0 / 4}
MILLI = 1e-9  # of a picojoule


class Energy(Cost):
    """Millijoules of one image: every MAC, and every weight read once."""

    name = "energy_mj"
    help = "Millijoules of one image, by a table of operations."
    suffixes = {"": 1.0, "uJ": 1e-3, "mJ": 1.0, "J": 1e3}
    shown = ("mJ", 1.0)

    def _of_layers(self) -> np.ndarray:
        """``(len(layer_table),)``."""
        space = self.space
        macs = space.layer_values("macs") * PICOJOULES["multiply and add"]
        traffic = space.layer_values("weight_bytes") * PICOJOULES["byte from memory"]
        return MILLI * (macs + traffic)

    def upper(self, archs: Archs) -> np.ndarray:
        """``(n,)``."""
        return self.space.sum_over_layers(archs, self._of_layers())

    # The rest is not needed, and makes a sum of it: then limits are reachable exactly, random
    # search is uniform in any corner, and searches by gradients are steered by it.

    def ends(self, rng: np.random.Generator) -> Archs:
        """The cheapest and the dearest network."""
        return self.space.ends(self._of_layers())

    def layer_sum(self, limit: float) -> LayerSum:
        """Itself."""
        return LayerSum(self._of_layers(), limit)
