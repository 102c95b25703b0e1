"""A new device from ten networks: what other devices' latencies say of it, by Gaussian priors.

A network's latency on a device that was hardly measured is taken to be the mean of what it is on
other devices, each at its own scale, times a factor, plus corrections that are sums over layers:
towards one source or another, and for each kind of work that devices differ in (numbers of
layers, multiply-adds, feature maps, weights). All have a normal prior around zero whose widths are
shares of the networks' spread, so that a few measured networks tell what they can and the sources
tell the rest (a Gaussian process with a linear kernel; Rasmussen and Williams 2006, "Gaussian
processes for machine learning", 2.1). How wide the priors are, and how noisy the measurements, is
averaged over by their evidence (5.4.1). The networks to measure are those of which the prior knows
least, given the ones before them: the greedy D-optimal design.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_LEVEL = 10.0  # widths of priors, as shares of the networks' spread: nearly free
_SLOPE = 1.0
_SOURCES = 0.4
WIDTH = 0.3  # of work, usually
_WIDTHS = (0.5, 1.0, 2.0)  # of all but level and slope, beside one another
_NOISES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)  # of a measurement, relative
_SPOILED, _RARELY = 0.5, 0.01  # error of a measurement that went wrong, and how likely one is
_DESIGN_NOISE = 0.06
_LEAST = 0.1  # of the sources' mean latency


@dataclass(frozen=True)
class Prior:
    """What is known of the networks' latencies on a device before any is measured.

    Attributes:
        columns: ``(n, 1 + num_sources + num_work)`` a row a network: 1, its latencies on the
            sources, and its work of each kind.
        num_sources: How many columns are latencies.
        blocks: Columns of work that share one width, by their sizes, in order.
        widths: One a block.
    """

    columns: Floats
    num_sources: int
    blocks: Sequence[int]
    widths: Sequence[float]

    @cached_property
    def _means(self) -> Floats:
        """``(num_sources,)``."""
        means: Floats = self.columns[:, 1 : 1 + self.num_sources].mean(axis=0)
        return means

    def expected(self, columns: Floats) -> Floats:
        """``(n,)`` mean of the sources, each at its own scale; 1 on average.

        Never near zero, for errors are relative to it.
        """
        sources = columns[:, 1 : 1 + self.num_sources] / self._means
        expected: Floats = np.maximum(sources.mean(axis=1), _LEAST)
        return expected

    @cached_property
    def _weights(self) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
        """What turns standard normal draws into weights of :attr:`columns`.

        ``(num_columns, num_draws)``; ``(num_columns,)`` the weights of :meth:`expected`; and
        ``(num_draws,)`` which draws all have the same width.
        """
        num, first_work = self.columns.shape[1], 1 + self.num_sources
        mean = np.zeros(num)
        mean[1:first_work] = 1 / self._means / self.num_sources
        spread = float(self.expected(self.columns).std()) or 1.0
        slope = mean.copy()
        slope[0] = -1.0
        draws = [np.eye(num)[0] * _LEVEL * spread, slope * _SLOPE]
        # a source's deviation from the mean of all
        apart = [np.eye(num)[1 + i] / self._means[i] - mean for i in range(self.num_sources)]
        draws += self._standardised(apart, _SOURCES * spread)
        start = first_work
        for size, width in zip(self.blocks, self.widths, strict=True):
            units = list(np.eye(num)[start : start + size])
            draws += self._standardised(units, width * spread)
            start += size
        is_wide = np.arange(len(draws)) >= 2
        return np.stack(draws, axis=1), mean, is_wide

    def _standardised(self, block: list[Floats], width: float) -> list[Floats]:
        """Columns of a block, centred, so that together they spread by ``width``."""
        values = self.columns @ np.stack(block, axis=1)
        spread = math.sqrt(float(values.var(axis=0).sum()))
        if spread < 1e-9 * max(1e-9, float(np.abs(values).max())):
            return []
        constant = np.eye(self.columns.shape[1])[0]
        centres = values.mean(axis=0)
        return [(b - c * constant) * width / spread for b, c in zip(block, centres, strict=True)]

    def design(
        self, num: int, known: Floats, allowed: npt.NDArray[np.bool_] | None = None
    ) -> list[int]:
        """The networks to measure next.

        Args:
            num: How many.
            known: ``(m, num_columns)`` of those that are measured.
            allowed: ``(n,)`` which may be chosen; all where None.

        Returns:
            Rows of :attr:`columns`; fewer where all others equal one that is known.
        """
        draws, _, _ = self._weights
        covariance = np.eye(draws.shape[1])
        # errors are relative
        values = self.columns @ draws / self.expected(self.columns)[:, None]
        is_open = np.ones(len(values), np.bool_) if allowed is None else allowed.copy()
        for columns in known:
            covariance = _seen(covariance, columns @ draws / self.expected(columns[None]))
            is_open &= (self.columns != columns).any(axis=1)
        found: list[int] = []
        while len(found) < num and is_open.any():
            unknown = np.einsum("ij,jk,ik->i", values, covariance, values)
            row = int(np.argmax(np.where(is_open, unknown, -1.0)))
            found.append(row)
            is_open &= (self.columns != self.columns[row]).any(axis=1)
            covariance = _seen(covariance, values[row])
        return found

    def fit(self, columns: Floats, measured: Floats, step: float = 0.0) -> Posterior:
        """What measured networks make of the prior.

        Args:
            columns: ``(m, num_columns)`` theirs.
            measured: ``(m,)`` their latencies.
            step: What latencies are rounded to.
        """
        draws, mean, is_wide = self._weights
        expected = self.expected(columns)
        scale = float(np.median(measured / expected))
        x = columns @ draws / expected[:, None]
        y = (measured / scale - columns @ mean) / expected
        rounding = (step / math.sqrt(12) / scale / expected) ** 2
        # none is spoiled, or one of them
        spoiled = _SPOILED**2 * np.concatenate([np.zeros((1, len(y))), np.eye(len(y))])
        likely = np.log([1.0] + [_RARELY] * len(y))
        found: list[tuple[Floats, Floats]] = []
        for width, noise in itertools.product(_WIDTHS, _NOISES):
            wide = np.where(is_wide, width, 1.0)
            evidence, each = _posteriors(x * wide, y, noise**2 + rounding + spoiled)
            found.append((evidence + likely, each * wide))
        evidences = np.concatenate([evidence for evidence, _ in found])
        shares = np.exp(evidences - evidences.max())
        weights = np.concatenate([each for _, each in found])
        total = np.average(weights, axis=0, weights=shares)
        top = float(evidences.max())
        return Posterior(scale * (mean + draws @ total), top - len(y) * math.log(scale))


@dataclass(frozen=True)
class Posterior:
    """Weights of a prior's columns.

    Attributes:
        weights: ``(num_columns,)``: latencies are ``columns @ weights``.
        evidence: Logarithm of the likelihood of what was measured, up to a constant.
    """

    weights: Floats
    evidence: float


def _posteriors(x: Floats, y: Floats, variances: Floats) -> tuple[Floats, Floats]:
    """Evidences, and means of the weights, of ``y = x @ weights``, weights standard normal.

    Args:
        x: ``(m, num_draws)``.
        y: ``(m,)``.
        variances: ``(k, m)`` of the errors, each row a case.

    Returns:
        ``(k,)`` and ``(k, num_draws)``.
    """
    covariances = x @ x.T + variances[:, :, None] * np.eye(len(y))
    solved = np.linalg.solve(covariances, y[None, :, None])[:, :, 0]
    _, logs = np.linalg.slogdet(covariances)
    return -0.5 * (solved @ y + logs), solved @ x


def _seen(covariance: Floats, row: Floats) -> Floats:
    """Covariance of the weights once a network was measured."""
    seen = covariance @ row
    updated: Floats = covariance - np.outer(seen, seen) / (_DESIGN_NOISE**2 + row @ seen)
    return updated
