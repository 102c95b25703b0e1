"""What can be measured and limited: its name, its unit, its direction."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import ClassVar

from deploynas.errors import InvalidInputError

COUNT = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
BYTES = {
    "": 1.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20,
    "GiB": 2.0**30,
}  # fmt: skip
MILLISECONDS = {"": 1.0, "us": 1e-3, "ms": 1.0, "s": 1e3}


class Quantity:
    """A number of something, as a limit is typed and shown.

    Attributes:
        name: Unique, with its unit where it has one: ``latency_ms``.
        help: One line.
        suffixes: What may stand behind a number -> its worth.
        shown: A unit for people and its worth.
        at_least: Whether a limit is the least that is wanted, as of a throughput.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    suffixes: ClassVar[Mapping[str, float]] = COUNT
    shown: ClassVar[tuple[str, float]] = ("", 1.0)
    at_least: ClassVar[bool] = False

    @classmethod
    def share(cls, value: float, limit: float) -> float:
        """Of what is allowed: above 1 where a limit is broken."""
        if cls.at_least:
            return limit / value if value else math.inf
        return value / limit

    @classmethod
    def parse(cls, text: str, what: str) -> float:
        """A limit as it is typed: ``300M``, ``5MB``, ``10us``.

        Args:
            text: Number and suffix.
            what: Names the limit in messages.

        Raises:
            InvalidInputError: Not a positive number, or no such suffix.
        """
        match = re.fullmatch(r"\s*([-+]?[0-9.]+(?:[eE][-+]?\d+)?|nan|inf)\s*([A-Za-z%]*)\s*", text)
        number = math.nan
        if match:
            try:
                number = float(match[1])
            except ValueError:
                match = None
        if match is None:
            raise InvalidInputError(f"{what} is a number, got {text!r}", cls._example(what))
        if match[2] not in cls.suffixes:
            known = ", ".join(s for s in cls.suffixes if s)
            raise InvalidInputError(
                f"{what} has no unit {match[2]!r}", f"it has {known}" if known else "it has none"
            )
        value = number * cls.suffixes[match[2]]
        if not (math.isfinite(value) and value > 0):
            raise InvalidInputError(f"{what} must be a positive number, got {text}")
        return value

    @classmethod
    def meant(cls, limit: float, low: float, high: float) -> str | None:
        """The same number with a suffix, where that lies within ``low`` and ``high``."""
        for suffix, worth in cls.suffixes.items():
            if suffix and low <= limit * worth <= high:
                return f"did you mean {limit:g}{suffix}?"
        return None

    @classmethod
    def _example(cls, what: str) -> str:
        suffix = cls.shown[0].split(" ")[0] if cls.shown[0].split(" ")[0] in cls.suffixes else ""
        return f"for example {what}=5{suffix}"

    @classmethod
    def format(cls, value: float) -> str:
        """For people: four digits and a unit; whole numbers where those are more."""
        unit, worth = cls.shown
        shown = value / worth
        return f"{shown:,.0f} {unit}".rstrip() if shown >= 1e4 else f"{shown:.4g} {unit}".rstrip()
