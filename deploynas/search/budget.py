"""Hard limits on what a search may return."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploynas.artifacts import Record
from deploynas.errors import InfeasibleBudgetError
from deploynas.profile import LatencyModel
from deploynas.spaces import Archs, SearchSpace

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
ADDITIVE = ("latency_ms", "macs", "params")
NUM_DRAWS = 2_000  # where a limit is no sum over layers and the space no chain
MAX_THRESHOLDS = 40  # of activations, where memory is limited beside something else


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

    def admits(self, archs: Archs, model: LatencyModel) -> Bools:
        """``(n,)`` whether each architecture keeps every limit."""
        admitted = np.ones(len(archs), bool)
        for name, limit in self.model_dump(exclude_none=True).items():
            admitted &= cost_of(name, archs, model) <= limit
        return admitted

    def require_reachable(self, model: LatencyModel, rng: np.random.Generator) -> list[str]:
        """Check the limits against the cheapest and the dearest network of each cost, exactly.

        Args:
            model: Space and latency.
            rng: For the peak memory of a space that is no chain, whose ends are drawn.

        Returns:
            The names of the limits that do not bind: the dearest network keeps them.

        Raises:
            InfeasibleBudgetError: Not even the cheapest network keeps them; says the lowest
                reachable values.
        """
        limits = self.model_dump(exclude_none=True)
        lowest, not_binding = {}, []
        for name, limit in limits.items():
            archs = _ends(name, model, rng)
            costs = cost_of(name, archs, model)
            lowest[name] = float(costs.min())
            if lowest[name] > limit:
                raise InfeasibleBudgetError(
                    f"no network of {model.space.name} keeps {name} {limit:g}: the lowest "
                    f"reachable is {_rounded_up(lowest[name])}"
                )
            if costs.max() <= limit:
                not_binding.append(name)
        if self.witness(model, rng) is None:
            reached = ", ".join(f"{name} {_rounded_up(low)}" for name, low in lowest.items())
            raise InfeasibleBudgetError(
                f"no network of {model.space.name} keeps all limits at once; each alone reaches "
                f"{reached}"
            )
        return not_binding

    def witness(self, model: LatencyModel, rng: np.random.Generator) -> Archs | None:
        """``(1, num_choices)`` a network that keeps every limit; None where none does."""
        space = model.space
        limits = self.model_dump(exclude_none=True)
        cheapest = [_ends(name, model, rng) for name in limits]
        tried = np.concatenate([space.smallest(), *cheapest])
        kept = tried[self.admits(tried, model)]
        if len(kept) or len(limits) < 2:
            return kept[:1] if len(kept) else None
        sums = limited_sums(model, self)
        values = [one.values for one in sums]
        left = [one.limit - one.intercept for one in sums]
        for more, limit in _memory_limits(space, self.peak_memory_bytes):
            found = space.sums(np.stack([*values, *more], axis=1)).within([*left, *limit])
            if found is not None:
                row = space.as_rows(found)
                if self.admits(row, model)[0]:
                    return row
        return None


def cost_of(name: str, archs: Archs, model: LatencyModel) -> Floats:
    """``(n,)`` of a limit: the upper bound of the latency, the exact value of anything else."""
    space: SearchSpace = model.space
    functions: dict[str, Callable[[Archs], npt.NDArray[np.generic]]] = {
        "latency_ms": model.upper_ms,
        "macs": space.macs,
        "params": space.params,
        "peak_memory_bytes": space.peak_memory_bytes,
    }
    return functions[name](archs).astype(np.float64)


@dataclass(frozen=True)
class LimitedSum:
    """A limit on a sum over layers, whatever the choices are.

    Attributes:
        name: Of the budget's limit.
        limit: Of the sum; of a latency in the latency model's terms.
        values: ``(len(layer_table),)``.
        intercept: Of every network.
        unit: From a sum to the budget's own unit.
    """

    name: str
    limit: float
    values: Floats
    intercept: float
    unit: Callable[[float], float]


def limited_sums(model: LatencyModel, budget: Budget) -> list[LimitedSum]:
    """The budget's limits that are sums over layers."""
    space, limits = model.space, budget.model_dump(exclude_none=True)
    return [
        _as_sum(name, float(limits[name]), model, space) for name in ADDITIVE if name in limits
    ]


def _as_sum(name: str, limit: float, model: LatencyModel, space: SearchSpace) -> LimitedSum:
    if name == "latency_ms":
        terms = model.terms_of(limit / (1 + model.half_width))
        return LimitedSum(name, terms, model.layer_terms, model.intercept_term, model.ms_of)
    values = space.layer_values(name).astype(np.float64)
    return LimitedSum(name, limit, values, 0.0, float)


def _ends(name: str, model: LatencyModel, rng: np.random.Generator) -> Archs:
    """The cheapest and the dearest network of one cost, among some others.

    The peak memory of a chain is its weights and the largest of its layers' feature maps: the
    lightest network is exact, and so is, near enough, the heaviest. Of other spaces it is drawn.
    """
    space = model.space
    if name == "latency_ms":
        return space.ends(model.layer_terms)
    if name != "peak_memory_bytes":
        return space.ends(space.layer_values(name))
    drawn = [space.uniform(), space.smallest(), space.largest(), space.sample(NUM_DRAWS, rng)]
    if not space.is_chain:
        return np.concatenate(drawn)
    weights, maps = space.layer_values("weight_bytes"), space.layer_values("peak_activation_bytes")
    found = [space.ends(maps), space.ends(weights)]
    best = float(cost_of(name, np.concatenate([*drawn, *found]), model).min())
    allowed = float(maps.max())
    while True:  # the least weights under an ever lower limit on the feature maps
        least, row = space.sums(np.where(maps <= allowed, weights, np.inf)).least()
        if not math.isfinite(least) or least >= best:
            return np.concatenate([*drawn, *found])
        found.append(space.as_rows(row))
        best = min(best, float(cost_of(name, found[-1], model)[0]))
        allowed = float(space.max_over_layers(found[-1], maps)[0]) - 1


def _memory_limits(
    space: SearchSpace, limit: float | None
) -> Iterator[tuple[list[Floats], list[float]]]:
    """Values and limits of sums that together keep a limit on peak memory, in every way.

    A chain keeps it where no feature map exceeds a threshold, and the weights what is left.
    """
    if limit is None or not space.is_chain:
        yield [], []
        return
    maps = space.layer_values("peak_activation_bytes")
    weights = space.layer_values("weight_bytes").astype(np.float64)
    thresholds = np.unique(maps[maps <= limit])
    places = np.linspace(0, len(thresholds) - 1, min(len(thresholds), MAX_THRESHOLDS))
    for place in np.rint(places[::-1]).astype(int):
        most = thresholds[place]
        yield [np.where(maps <= most, weights, np.inf)], [limit - float(most)]


def _rounded_up(value: float) -> str:
    """Four digits that are not below the value, so that they can be typed as a limit."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3) if value > 0 else 1.0
    return f"{math.ceil(round(value / unit, 9)) * unit:.4g}"
