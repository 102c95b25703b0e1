"""A cost: its name, its unit, its direction; what networks of a space have of it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from deploynas.costs.quantity import Quantity
from deploynas.spaces import Archs, SearchSpace

Floats = npt.NDArray[np.float64]
NUM_DRAWS = 2_000  # where nothing is known of a cost's ends


class Latencies(Protocol):
    """What a cost is told of: a space, and the latency of its networks on a device.

    :class:`deploynas.profile.LatencyModel` is one.
    """

    @property
    def space(self) -> SearchSpace:
        """Whose networks."""

    @property
    def half_width(self) -> float:
        """Relative, of a prediction's interval."""

    @property
    def layer_terms(self) -> Floats:
        """``(len(layer_table),)`` whose sum over a network, and :attr:`intercept_term`, tell."""

    @property
    def intercept_term(self) -> float:
        """Of every network."""

    def predict_ms(self, archs: Archs) -> Floats:
        """``(n,)``."""
        ...

    def upper_ms(self, archs: Archs) -> Floats:
        """``(n,)`` ends of the predictions' intervals."""
        ...

    def within_ms(self, limit: float) -> float:
        """The prediction whose upper end is ``limit``."""
        ...

    def ms_of(self, terms: float) -> float:
        """Of a sum of terms."""
        ...

    def terms_of(self, milliseconds: float) -> float:
        """The sum of terms that is predicted to take so long."""
        ...


class MeasuredFile(Protocol):
    """What can be told of the file of a network, and of its runs on a device."""

    @property
    def macs(self) -> float | None:
        """Multiply-adds of one run; None where an operator may hold some that are not counted."""

    @property
    def num_weights(self) -> float:
        """Constants that the file stores; a batch norm that was folded is one a channel."""

    @property
    def weight_bytes(self) -> float:
        """Their bytes."""

    @property
    def peak_bytes(self) -> float | None:
        """Of memory, on the device; None where it does not tell."""


@dataclass(frozen=True)
class LayerSum:
    """A cost that is a sum over layers, whatever the choices are, and how much it may be.

    Attributes:
        values: ``(len(layer_table),)``.
        limit: Of the sum, ``intercept`` included; may be in other terms than the cost's own.
        intercept: Of every network.
        unit: From a sum to the cost's own unit.
    """

    values: Floats
    limit: float
    intercept: float = 0.0
    unit: Callable[[float], float] = float

    @property
    def is_whole(self) -> bool:
        """Whether sums are whole numbers, which are exact."""
        return bool((self.values % 1 == 0).all()) and self.intercept % 1 == 0


class Cost(Quantity, abc.ABC):
    """A cost of the networks of one space.

    A subclass says what it is by the class attributes of a quantity, and what networks have of
    it by :meth:`upper`; that is all that limits, fronts and results need. Searches by gradients
    are steered by a cost that is also a :meth:`layer_sum`.

    Args:
        model: Space, and device profile with its latency.
    """

    def __init__(self, model: Latencies) -> None:
        self.model = model

    @property
    def space(self) -> SearchSpace:
        """Whose networks."""
        return self.model.space

    @abc.abstractmethod
    def upper(self, archs: Archs) -> Floats:
        """``(n,)`` what a limit is compared with: of a predicted cost the end of its interval."""

    def predict(self, archs: Archs) -> Floats:
        """``(n,)`` what is expected."""
        return self.upper(archs)

    def keeps(self, archs: Archs, limit: float) -> npt.NDArray[np.bool_]:
        """``(n,)`` whether networks keep a limit."""
        found = self.upper(archs)
        return found >= limit if self.at_least else found <= limit

    @classmethod
    def measure(cls, file: MeasuredFile) -> float | None:
        """What the file of a network has of it; None where that cannot be told."""
        return None

    def ends(self, rng: np.random.Generator) -> Archs:
        """Networks, among which are the cheapest and the dearest, as far as is known."""
        space = self.space
        known = [space.uniform(), space.smallest(), space.largest()]
        return np.concatenate([*known, space.sample(NUM_DRAWS, rng)])

    def layer_sum(self, limit: float) -> LayerSum | None:
        """The cost as a sum over layers, held to ``limit``; None where it is none."""
        return None

    def ways(self, limit: float) -> Iterator[list[LayerSum]]:
        """Sums over layers that keep the limit where all of them do; every way there is.

        Nothing but an empty one where none is known.
        """
        one = self.layer_sum(limit)
        yield [] if one is None else [one]
