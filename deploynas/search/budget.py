"""Hard limits on what a search may return."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deploynas.artifacts import Record
from deploynas.errors import InfeasibleBudgetError
from deploynas.profile import LatencyModel
from deploynas.spaces import Archs, SearchSpace

Bools = npt.NDArray[np.bool_]


class Budget(Record):
    """Hard limits; None means no limit.

    Attributes:
        latency_ms: Compared with the upper bound of the predicted latency.
        macs, params, peak_memory_bytes: Compared with exact values.
    """

    latency_ms: float | None = None
    macs: float | None = None
    params: float | None = None
    peak_memory_bytes: float | None = None

    def _costs(self, archs: Archs, model: LatencyModel) -> dict[str, np.ndarray]:
        space: SearchSpace = model.space
        functions = {
            "latency_ms": model.upper_ms,
            "macs": space.macs,
            "params": space.params,
            "peak_memory_bytes": space.peak_memory_bytes,
        }
        limits = self.model_dump()
        return {k: f(archs) for k, f in functions.items() if limits[k] is not None}

    def admits(self, archs: Archs, model: LatencyModel) -> Bools:
        """``(n,)`` whether each architecture keeps every limit."""
        limits = self.model_dump()
        admitted = np.ones(len(archs), bool)
        for name, cost in self._costs(archs, model).items():
            admitted &= cost <= limits[name]
        return admitted

    def require_reachable(self, model: LatencyModel, rng: np.random.Generator) -> list[str]:
        """Check the limits against the space's cheapest and dearest networks.

        Returns:
            The names of the limits that do not bind: the dearest network keeps them.

        Raises:
            InfeasibleBudgetError: Not even the cheapest network keeps them; says the lowest
                reachable values.
        """
        space = model.space
        extremes = np.concatenate(
            [
                space.uniform(),
                space.sample(2_000, rng),
                *(
                    space.ends(values)
                    for values in (
                        model.layer_terms, space.layer_values("macs"), space.layer_values("params")
                    )
                ),
            ]
        )  # fmt: skip
        limits = self.model_dump()
        costs = self._costs(extremes, model)
        for name, cost in costs.items():
            if cost.min() > limits[name]:
                raise InfeasibleBudgetError(
                    f"no network of {space.name} keeps {name} {limits[name]:g}: the lowest "
                    f"reachable is {cost.min():.4g}"
                )
        if not self.admits(extremes, model).any():
            lowest = ", ".join(f"{k} {v.min():.4g}" for k, v in costs.items())
            raise InfeasibleBudgetError(
                f"no network of {space.name} keeps all limits at once; each alone reaches {lowest}"
            )
        return [name for name, cost in costs.items() if cost.max() <= limits[name]]
