"""How fast a machine is now, against the minutes of its profile."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from deploynas.artifacts import Record

TOO_FAR = 0.1  # logarithm of what the reference models do not know of a drift
TOO_WIDE = 0.03  # standard deviation between networks, where the profile's margin is no wider
UNITS = (("day", 86_400.0), ("hour", 3_600.0), ("minute", 60.0))


class Drift(Record):
    """A machine's level against that of its profile.

    Attributes:
        factor: How much longer networks take than at the profile's level.
        spread: How far a network may be from that in either direction, in 95 % of cases, relative.
        scatter: Standard deviation between the networks that tell, relative, without the noise of
            their measurements.
        unexplained: What is left of the factor at the profile's reference level.
        num_networks: How many these are; 0 where nothing was measured.
        core_ms, memory_ms: The reference level meanwhile; None where nothing was measured.
        made: When, in seconds since 1970; ``profiled`` when its profile was. None: not known.
    """

    factor: Annotated[float, Field(gt=0)] = 1.0
    spread: Annotated[float, Field(ge=0)]
    scatter: Annotated[float, Field(ge=0)] = 0.0
    unexplained: Annotated[float, Field(gt=0)] = 1.0
    num_networks: Annotated[int, Field(ge=0)] = 0
    core_ms: Annotated[float, Field(gt=0)] | None = None
    memory_ms: Annotated[float, Field(gt=0)] | None = None
    made: float | None = None
    profiled: float | None = None

    @property
    def words(self) -> str:
        """One line for people."""
        if not self.num_networks:
            return (
                f"nothing was measured of how fast the machine is now: the bound allows for "
                f"{self.spread:.1%} that it wanders"
            )
        than = "slower" if self.factor >= 1 else "faster"
        return (
            f"the machine is {abs(self.factor - 1):.1%} {than} than in its profile"
            f"{_ago(self.made, self.profiled)} ({self.num_networks} networks measured again, "
            f"each within {self.spread:.1%} of that)"
        )

    def exceeds(self, margin: float) -> bool:
        """Whether a profile whose fit has such a margin is not of this machine any more."""
        far = abs(math.log(self.unexplained)) > TOO_FAR
        return far or self.scatter > max(TOO_WIDE, margin)


def _ago(now: float | None, then: float | None) -> str:
    if now is None or then is None:
        return ""
    for unit, seconds in UNITS:
        if now - then >= seconds:
            num = round((now - then) / seconds)
            return f" of {num} {unit}{'s' * (num > 1)} ago"
    return " of a moment ago"
