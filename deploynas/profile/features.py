"""What a latency is a sum of: features of a network, and their weights.

A network's time is not the sum of its layers timed alone: it pays cache misses and reorders
between blocks, streams weights that a layer alone keeps in a cache, and a lone session pays its
own overhead. The sum is corrected by a scale, a term for each layer, one for each byte of
weights, an intercept, and small ridge-regularised corrections for groups of layers (by kernel
size, width, middle channels and place), all fitted to relative errors.

On some processors no sum will do: what a small network keeps in a core's cache a large one
streams, so that time grows faster than work. There a power of the sum is the time, which keeps
what searches rely on: a table that adds up, and that alone decides which network is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from deploynas.profile.device_profile import DeviceProfile, Precision
from deploynas.spaces import Archs, Layer, SearchSpace
from deploynas.spaces import layers as layer_costs

Floats = npt.NDArray[np.float64]
_PENALTIES = np.geomspace(1e-4, 1e2, 13)
_POWERS = (1.0, 1.25, 1.6, 2.0)
_WORTHWHILE = 0.8  # of the mean squared error of a sum: with no more than that a power is taken
NUM_FREE = 4  # intercept, scale, layers, bytes: never penalised


class Features:
    """Per-layer columns whose sums over a network are the regression's features.

    Attributes:
        table: ``(len(layer_table), num_features - 1)``; column 0 of the features is constant.
    """

    def __init__(self, space: SearchSpace, profile: DeviceProfile, precision: Precision) -> None:
        self._space = space
        layers = space.layer_table
        times = np.array([profile.layer_ms(layer, precision) for layer in layers])
        self.mean_ms = float(times.mean())
        sizes = np.array([layer_costs.weight_bytes(layer) for layer in layers], np.float64)
        columns = [times, np.full(len(layers), self.mean_ms), sizes * self.mean_ms / sizes.mean()]
        columns += by_group(layers, times)
        self.table = np.stack(columns, axis=1)

    def fit(self, features: Floats, measured: Floats) -> Fit:
        """See :func:`fit`."""
        return fit(features, measured)

    def sum_of(self, weights: Floats) -> tuple[Floats, float]:
        """``(len(layer_table),)`` what each layer adds to the weighted sum, and the constant."""
        return self.table @ weights[1:], float(self.mean_ms * weights[0])

    def __call__(self, archs: Archs) -> Floats:
        """``(n, num_features)``."""
        sums = [self._space.sum_over_layers(archs, column) for column in self.table.T]
        return np.stack([np.full(len(archs), self.mean_ms), *sums], axis=1)


def by_group(layers: Sequence[Layer], values: Floats) -> list[Floats]:
    """``values`` of the layers of one group, and none of others: a column a group."""
    columns = []
    for grouping in (_by_kernel, _by_width, _by_middle, _by_place):
        names = [grouping(layer) for layer in layers]
        for name in sorted(set(names)):
            columns.append(values * np.array([n == name for n in names]))
    return columns


def _by_kernel(layer: Layer) -> str:
    return f"{layer.kind} k{layer.kernel_size} s{layer.stride}"


def _by_width(layer: Layer) -> str:
    return f"{layer.kind} {layer.out_channels} @{layer.size}"


def _by_middle(layer: Layer) -> str:
    return f"{layer.kind} {layer.in_channels} {layer.mid_channels}"


def _by_place(layer: Layer) -> str:
    return f"{layer.kind} {layer.in_channels} {layer.out_channels} k{layer.kernel_size}"


@dataclass(frozen=True)
class Fit:
    """Weights of a sum of features, and the power of that sum that is the time.

    Attributes:
        weights: ``(num_features,)``.
        power: 1 where the sum is the time.
        unit_ms: Where the sum and the time are equal, whatever the power.
        residuals: ``(n,)`` of those that it was fitted to: what each took beyond its prediction
            without it, relative to what it took; none where that is not known.
    """

    weights: Floats
    power: float
    unit_ms: float
    residuals: Floats = field(default_factory=lambda: np.zeros(0))

    def __call__(self, features: Floats) -> Floats:
        """``(n,)`` milliseconds of ``(n, num_features)``."""
        return self.to_ms(features @ self.weights)

    def to_ms(self, terms: Floats) -> Floats:
        """Milliseconds of sums."""
        if self.power == 1:
            return terms
        ms: Floats = self.unit_ms * np.maximum(terms / self.unit_ms, 0.0) ** self.power
        return ms

    def to_terms(self, milliseconds: Floats) -> Floats:
        """Sums of milliseconds, the reverse of :meth:`to_ms`."""
        terms: Floats = self.unit_ms * (milliseconds / self.unit_ms) ** (1 / self.power)
        return terms


def fit(features: Floats, measured: Floats) -> Fit:
    """Ridge regression on relative errors; the penalty, and the power, by leave-one-out.

    The first :data:`NUM_FREE` columns are free; the corrections are fractions of layer times,
    shrunk to zero.
    """
    unit_ms = float(np.exp(np.log(measured).mean()))
    best: tuple[float, Fit] | None = None
    for power in _POWERS:
        terms = Fit(np.zeros(0), power, unit_ms).to_terms(measured)
        residuals, weights = _ridge(features, terms)
        residuals *= power  # of the times: to first order a power multiplies relative errors
        error = float(np.mean(residuals**2))
        if best is None or error < best[0] * (_WORTHWHILE if best[1].power == 1 else 1):
            best = (error, Fit(weights, power, unit_ms, residuals))
    assert best is not None
    return best[1]


def _ridge(features: Floats, wanted: Floats) -> tuple[Floats, Floats]:
    """Leave-one-out relative residuals, and weights, of the best penalty."""
    x, y = features / wanted[:, None], np.ones(len(wanted))
    # the prior: the network is the sum of its layers (scale 1, nothing else)
    prior = np.zeros(x.shape[1])
    prior[1] = 1.0
    best: tuple[float, Floats, Floats] | None = None
    for penalty in _PENALTIES:
        ridge = np.full(x.shape[1], penalty)
        ridge[:NUM_FREE] = 1e-9
        inverse = np.linalg.inv(x.T @ x + np.diag(ridge))
        weights = prior + inverse @ x.T @ (y - x @ prior)
        leverage = np.einsum("ij,jk,ik->i", x, inverse, x)
        residual = (y - x @ weights) / np.maximum(1 - leverage, 1e-3)
        error = float(np.mean(residual**2))
        if best is None or error < best[0]:
            best = (error, residual, weights)
    assert best is not None
    return best[1:]
