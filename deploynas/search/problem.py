"""What a search is held to: a space, costs of its networks, hard limits on them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from deploynas.costs import COSTS, Cost, Floats, LayerSum
from deploynas.errors import InfeasibleBudgetError, InvalidInputError, UnknownNameError
from deploynas.profile import LatencyModel
from deploynas.search.budget import Budget, own_name
from deploynas.spaces import Archs, SearchSpace

Bools = npt.NDArray[np.bool_]
MAX_WAYS = 400  # to keep several limits at once that are looked at


@dataclass(frozen=True)
class Problem:
    """A space, and the limits that networks of it keep.

    Attributes:
        model: Space and latency.
        budget: Limits.
        others: Of other devices: the name before their costs' -> their latency models, all of one
            space.
    """

    model: LatencyModel
    budget: Budget = Budget()
    others: Mapping[str, LatencyModel] | None = None

    @property
    def space(self) -> SearchSpace:
        """Whose networks."""
        return self.model.space

    @property
    def limits(self) -> dict[str, float]:
        """Name -> limit."""
        return self.budget.limits

    def cost(self, name: str) -> Cost:
        """A cost by its name, a device's before it where it is another's.

        Raises:
            UnknownNameError: There is none.
        """
        if name not in self._costs:
            device, _, own = name.rpartition(".")
            models = {"": self.model, **(self.others or {})}
            if not self.others and device:
                raise InvalidInputError(
                    f"{name} is of a second device, and there is one",
                    f"name its profile: --profile {device}=FILE",
                )
            if device not in models:
                raise UnknownNameError("profile", device, self.others or {})
            self._costs[name] = COSTS.load(own)(models[device])
        return self._costs[name]

    @cached_property
    def _costs(self) -> dict[str, Cost]:
        return {}

    def within(self, budget: Budget) -> Problem:
        """The same under other limits."""
        return replace(self, budget=budget)

    @property
    def latencies(self) -> dict[str, float]:
        """Name -> limit, of the limits that a device can measure."""
        return {k: v for k, v in self.limits.items() if own_name(k) == "latency_ms"}

    def tightened(self, share: float) -> Problem:
        """The same with the limits on latency at a share of what they are."""
        tighter = {name: limit * share for name, limit in self.latencies.items()}
        return self.within(self.budget.replaced(**tighter))

    def admits(self, archs: Archs) -> Bools:
        """``(n,)`` whether each architecture keeps every limit."""
        admitted = np.ones(len(archs), bool)
        for name, limit in self.limits.items():
            admitted &= self.cost(name).keeps(archs, limit)
        return admitted

    def values(self, archs: Archs, names: Sequence[str]) -> Floats:
        """``(n, len(names))`` costs, of a latency the bound; less is better.

        So that what is wanted to be much, as a throughput, is negative.
        """
        costs = [self.cost(name) for name in names]
        return np.stack([-x.upper(archs) if x.at_least else x.upper(archs) for x in costs], axis=1)

    @property
    def bounds(self) -> Floats:
        """``(num_limits,)`` the limits as :meth:`values` counts them."""
        signs = [-1.0 if self.cost(name).at_least else 1.0 for name in self.limits]
        found: Floats = np.array(signs) * np.array(list(self.limits.values()))
        return found

    def layer_sums(self) -> dict[str, LayerSum]:
        """Name -> sum over layers, of the limits that are one."""
        found = {name: self.cost(name).layer_sum(limit) for name, limit in self.limits.items()}
        return {name: one for name, one in found.items() if one is not None}

    def require_reachable(self, rng: np.random.Generator) -> list[str]:
        """Check the limits against the cheapest and the dearest network of each cost.

        Exactly, where the costs know their ends.

        Returns:
            The names of the limits that do not bind: every network keeps them.

        Raises:
            InfeasibleBudgetError: Not even the cheapest network keeps them; says what is
                reachable.
        """
        reached, not_binding = {}, []
        for name, limit in self.limits.items():
            cost = self.cost(name)
            values = cost.upper(cost.ends(rng))
            best, worst = float(values.min()), float(values.max())
            if cost.at_least:
                best, worst = worst, best
            reached[name] = cost.format(_rounded(best, up=not cost.at_least))
            if best < limit if cost.at_least else best > limit:
                end = "highest" if cost.at_least else "lowest"
                raise InfeasibleBudgetError(
                    f"no network of {self.space.name} keeps {name} {cost.format(limit)}: the "
                    f"{end} reachable is {reached[name]}",
                    cost.meant(limit, min(best, worst), max(best, worst)),
                )
            if worst >= limit if cost.at_least else worst <= limit:
                not_binding.append(name)
        if self.witness(rng) is None:
            each = ", ".join(f"{name} {text}" for name, text in reached.items())
            raise InfeasibleBudgetError(
                f"no network of {self.space.name} keeps all limits at once; each alone reaches "
                f"{each}"
            )
        return not_binding

    def witness(self, rng: np.random.Generator) -> Archs | None:
        """``(1, num_choices)`` a network that keeps every limit; None where none was found.

        Where limits are sums over layers, or of a chain's memory, there is none then.
        """
        space, limits = self.space, self.limits
        ends = [self.cost(name).ends(rng) for name in limits]
        tried = np.concatenate([space.smallest(), *ends])
        kept = tried[self.admits(tried)]
        if len(kept) or len(limits) < 2:
            return kept[:1] if len(kept) else None
        ways = itertools.product(*(self.cost(name).ways(limit) for name, limit in limits.items()))
        for way in itertools.islice(ways, MAX_WAYS):
            sums = [one for sums in way for one in sums]
            if not sums:
                continue
            left = [one.limit - one.intercept for one in sums]
            found = space.sums(np.stack([one.values for one in sums], axis=1)).within(left)
            if found is not None:
                row = space.as_rows(found)
                if self.admits(row)[0]:
                    return row
        return None


def _rounded(value: float, *, up: bool) -> float:
    """To four digits, which as a limit are reachable: not below the value, or not above it."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3) if value > 0 else 1.0
    whole = math.ceil if up else math.floor
    return float(whole(round(value / unit, 9)) * unit)
