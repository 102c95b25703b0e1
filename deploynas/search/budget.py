"""Hard limits on what a search may return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import ConfigDict, Field

from deploynas.artifacts import Record
from deploynas.costs import COSTS
from deploynas.errors import InvalidInputError, require_positive


class Budget(Record):
    """Hard limits; None means no limit.

    Attributes:
        latency_ms: Compared with the upper bound of the predicted latency.
        macs, params, peak_memory_bytes: Compared with exact values.

    Others are kept under their own names: those of :data:`~deploynas.costs.COSTS`, or, of a second
    device, with its name before it (``web.latency_ms``).
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float] = Field(init=False)

    latency_ms: float | None = None
    macs: float | None = None
    params: float | None = None
    peak_memory_bytes: float | None = None

    @property
    def limits(self) -> dict[str, float]:
        """Name -> limit, of what is limited."""
        return self.model_dump(exclude_none=True)

    def replaced(self, **limits: float) -> Budget:
        """Other limits of some costs."""
        return Budget(**{**self.limits, **limits})

    def __str__(self) -> str:
        """For people."""
        return ", ".join(
            f"{name} {COSTS.load(own_name(name)).format(limit)}"
            for name, limit in self.limits.items()
        )


def own_name(name: str) -> str:
    """A cost's name without the device before it."""
    return name.rpartition(".")[2]


def budget_from(typed: Iterable[str], known: Mapping[str, float | None] | None = None) -> Budget:
    """A budget from the command line.

    Args:
        typed: ``NAME=VALUE`` each, a unit behind the value where the cost has some.
        known: Limits that have a flag of their own -> value; None where it was not given.

    Raises:
        UnknownNameError: No such cost.
        InvalidInputError: Not a positive finite number, a unit that the cost has not, or a limit
            that is given twice.
    """
    limits = {
        name: require_positive(value, f"the limit {name}")
        for name, value in (known or {}).items()
        if value is not None
    }
    for text in typed:
        name, equals, value = text.partition("=")
        if not equals:
            raise InvalidInputError(
                f"--limit is NAME=VALUE, got {text!r}", "for example --limit latency_ms=10"
            )
        cost = COSTS.load(own_name(name))
        if name in limits:
            raise InvalidInputError(f"the limit {name} is given twice")
        limits[name] = cost.parse(value, name)
    return Budget(**limits)
