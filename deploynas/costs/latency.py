"""Latency on a profiled device."""

from __future__ import annotations

import numpy as np

from deploynas.costs.base import Cost, Floats, LayerSum
from deploynas.costs.quantity import MILLISECONDS
from deploynas.spaces import Archs


class Latency(Cost):
    """Milliseconds of one image on the profile's device; its limit is held against the bound."""

    name = "latency_ms"
    help = "Milliseconds of one image on the profile's device."
    suffixes = MILLISECONDS
    shown = ("ms", 1.0)

    def upper(self, archs: Archs) -> Floats:
        """``(n,)`` ends of the predictions' intervals."""
        return self.model.upper_ms(archs)

    def predict(self, archs: Archs) -> Floats:
        """``(n,)``."""
        return self.model.predict_ms(archs)

    def ends(self, rng: np.random.Generator) -> Archs:
        """The quickest and the slowest network, exactly where they are sums over layers."""
        if not self.space.adds_up:
            return super().ends(rng)
        return self.space.ends(self.model.layer_terms)

    def layer_sum(self, limit: float) -> LayerSum | None:
        """In the latency model's terms, which may be a power of milliseconds."""
        if not self.space.adds_up:
            return None
        model = self.model
        terms = model.terms_of(model.within_ms(limit))
        return LayerSum(model.layer_terms, terms, model.intercept_term, model.ms_of)
