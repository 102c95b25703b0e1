"""Latency of networks whose layers are in no table: from some of them that were measured whole.

A network's time is the sum of its layers', and a layer's that of its multiply-adds, of what it
moves, of its weights, of its call. Each is a first guess times a factor of its own; factors are
near each other, the nearer where layers are of one kind: a Gaussian process over whole networks
whose covariance is a sum over those parts (Rasmussen and Williams 2006, chapter 2). A few networks
measured whole, among them those near the limit, tell the factors as far as they matter; and by
which block of channels the device computes, in whole ones: the block that makes what was measured
the likeliest (ibid., section 5.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from deploynas.errors import InvalidInputError
from deploynas.spaces import Archs, SearchSpace

Floats = npt.NDArray[np.float64]

# Of a core: multiply-adds a millisecond, by the beginning of a kind; bytes; a call. Only their
# ratios matter: a factor for all is fitted first.
RATES = {"depthwise": 8e6, "grouped": 6e6, "linear": 6e6, "": 2e7}
BYTES_PER_MS, CALL_MS = 8e6, 0.01
BLOCKS = (1, 4, 8, 16, 32)  # of channels, that devices compute at once
# Deviations of factors: of all together, of those of one kind, of one part.
COMMON, KIND, OWN = 0.5, 0.5, 0.4
NOISE = 0.005  # of a measurement, where its own deviation is less
LEAST_NETWORKS = 3


class Counted(Protocol):
    """What layers do, in networks of a space; see :class:`deploynas.nn.adapt.space.Work`."""

    @property
    def kinds(self) -> list[str]:
        """Of every layer."""

    def layer_work(self, archs: Archs, block: int) -> tuple[Floats, Floats, Floats]:
        """``(n, num_layers)`` multiply-adds, bytes moved, bytes of weights.

        Multiply-adds are those of whole blocks of so many channels.
        """
        ...


@dataclass(frozen=True)
class Measured:
    """Networks that were measured.

    Attributes:
        archs: ``(n, num_choices)``.
        ms: ``(n,)`` milliseconds.
        deviations: ``(n,)`` relative, of each.
    """

    archs: Archs
    ms: Floats
    deviations: Floats

    def and_these(self, other: Measured) -> Measured:
        """Both."""
        return Measured(
            np.concatenate([self.archs, other.archs]), np.concatenate([self.ms, other.ms]),
            np.concatenate([self.deviations, other.deviations]),
        )  # fmt: skip


class WholeLatency:
    """Predicts the latency of a space's networks from some that were measured.

    Args:
        space: Theirs.
        counted: The same, asked for what its layers do.
        measured: Three or more.

    Attributes:
        block: Channels that the device seems to compute at once.
        held_out: ``(n,)`` predictions of the measured networks, each without itself.
        half_width: Relative, of predictions: 1.96 deviations of the held-out errors.

    Raises:
        InvalidInputError: Too few were measured.
    """

    def __init__(self, space: SearchSpace, counted: Counted, measured: Measured) -> None:
        if len(measured.ms) < LEAST_NETWORKS:
            raise InvalidInputError(f"{LEAST_NETWORKS} measured networks are needed, or more")
        self.space, self.measured, self._counted = space, measured, counted
        kinds = counted.kinds
        moved = [f"moved {kind.startswith('depthwise')}" for kind in kinds]
        parts = [*kinds, *moved, *["weights"] * len(kinds), *["call"] * len(kinds)]
        self._kinds = [np.array([p == kind for p in parts]) for kind in dict.fromkeys(parts)]
        likelihoods = [self._fit(block) for block in BLOCKS]
        self.block = BLOCKS[int(np.argmax(likelihoods))]
        self._fit(self.block)

    def _fit(self, block: int) -> float:
        """Fit under a block; returns the logarithm of its likelihood."""
        self.block, ms = block, self.measured.ms
        times = self._guess(self.measured.archs, 1.0)
        self._scale = float(np.median(ms / times.sum(axis=1)))
        self._times = times * self._scale
        noise = np.maximum(NOISE, self.measured.deviations) * ms
        covariance = self._covariance(self._times, self._times) + np.diag(noise**2)
        inverse = np.linalg.inv(covariance)
        rest = ms - self._times.sum(axis=1)
        self._weights = inverse @ rest
        self.held_out: Floats = ms - self._weights / np.diag(inverse)
        errors = self.held_out / ms - 1
        self.half_width = float(1.96 * np.sqrt(np.mean(errors**2)))
        return float(-0.5 * rest @ self._weights - 0.5 * np.linalg.slogdet(covariance)[1])

    @property
    def layer_terms(self) -> Floats:
        """None: a network's time is no sum over a table of layers."""
        return np.zeros(0)

    @property
    def intercept_term(self) -> float:
        """See :attr:`layer_terms`."""
        return 0.0

    def predict_ms(self, archs: Archs) -> Floats:
        """``(n,)``."""
        times = self._guess(archs, self._scale)
        found: Floats = times.sum(axis=1) + self._covariance(times, self._times) @ self._weights
        # a correction that would make a network free is none
        least: Floats = np.maximum(found, 0.1 * times.sum(axis=1))
        return least

    def upper_ms(self, archs: Archs) -> Floats:
        """``(n,)`` ends of the predictions' intervals."""
        return self.predict_ms(archs) * (1 + self.half_width)

    def within_ms(self, limit: float) -> float:
        """The prediction whose upper end is ``limit``."""
        return limit / (1 + self.half_width)

    def ms_of(self, terms: float) -> float:
        """Terms are milliseconds."""
        return terms

    def terms_of(self, milliseconds: float) -> float:
        """See :meth:`ms_of`."""
        return milliseconds

    def _guess(self, archs: Archs, scale: float) -> Floats:
        """``(n, num_parts)`` milliseconds."""
        macs, moved, weights = self._counted.layer_work(archs, self.block)
        rates = np.array([_rate(kind) for kind in self._counted.kinds])
        parts = [
            macs / rates, moved / BYTES_PER_MS, weights / BYTES_PER_MS, CALL_MS * (macs > 0)
        ]  # fmt: skip
        found: Floats = scale * np.concatenate(parts, axis=1)
        return found

    def _covariance(self, one: Floats, other: Floats) -> Floats:
        found: Floats = COMMON**2 * np.outer(one.sum(axis=1), other.sum(axis=1))
        for own in self._kinds:
            found += KIND**2 * np.outer(one[:, own].sum(axis=1), other[:, own].sum(axis=1))
        return found + OWN**2 * one @ other.T


def _rate(kind: str) -> float:
    return next(rate for name, rate in RATES.items() if kind.startswith(name))


def spread_rows(
    space: SearchSpace, num: int, share: tuple[float, float], macs_of_largest: float,
    rng: np.random.Generator,
) -> Archs:  # fmt: skip
    """Networks to measure first: the largest, the smallest, and drawn ones around some shares.

    Args:
        space: Theirs.
        num: How many.
        share: Of the largest's multiply-adds, from and to.
        macs_of_largest: Those.
        rng: Draws them.
    """
    drawn = space.sample_spread(64 * num, rng)
    shares = space.macs(drawn) / macs_of_largest
    wanted = np.geomspace(*share, max(1, num - 2))
    rows, free = [space.largest()[0], space.smallest()[0]], np.ones(len(drawn), bool)
    for one in wanted:
        distance = np.where(free, np.abs(np.log(shares / one)), np.inf)
        pick = int(distance.argmin())
        free[pick] = False
        rows.append(drawn[pick])
    found: Archs = np.unique(np.stack(rows), axis=0)
    return found
