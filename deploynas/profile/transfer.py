"""A profile of a new device from profiles of others and a few whole networks.

No layer is measured there. What the others' latency models say of each layer, and what work it
is, makes a prior of the networks' latencies (:mod:`deploynas.profile.prior`), and the measured
networks, which are chosen for what they tell, make a prediction of it that is again a sum over
layers.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from deploynas.profile.device_profile import DeviceProfile, Precision, TransferRecord, space_key
from deploynas.profile.features import Features, Fit, by_group
from deploynas.profile.prior import WIDTH, Prior
from deploynas.spaces import Archs, SearchSpace

Floats = npt.NDArray[np.float64]
WORK = ("macs", "peak_activation_bytes", "weight_bytes")
NUM_KNOWN = 1_000  # networks that tell how far latencies spread, and that are chosen from
_GROUPS = 0.1  # width of corrections for groups of layers


def features_of(
    space: SearchSpace, profile: DeviceProfile, precision: Precision
) -> Features | TransferFeatures:
    """What the networks' latencies are a sum of on a profile's device."""
    transfer = profile.transfers.get(space_key(space, precision))
    if transfer is None:
        return Features(space, profile, precision)
    return TransferFeatures(space, transfer)


class TransferFeatures:
    """As :class:`Features`, of a device whose layers were not measured.

    Attributes:
        table: ``(len(layer_table), num_features - 1)``; column 0 of the features is 1.
    """

    def __init__(self, space: SearchSpace, transfer: TransferRecord) -> None:
        self._space, self._sources = space, transfer.sources
        layers = space.layer_table
        terms = np.array([[one.terms[x.key] for x in layers] for one in self._sources]).T
        mean = (terms / np.abs(terms).mean(axis=0)).mean(axis=1)
        ones = np.ones((len(layers), 1))
        work = [ones, *(space.layer_values(name)[:, None].astype(np.float64) for name in WORK)]
        work.append(np.stack(by_group(layers, mean), axis=1))
        self.table = np.concatenate([terms, *work], axis=1)
        self._intercepts = np.zeros(self.table.shape[1])
        self._intercepts[: len(self._sources)] = [one.intercept for one in self._sources]
        self.candidates = _candidates(space)
        columns = self(self.candidates)
        widths = [WIDTH] * (len(work) - 1) + [_GROUPS]
        sizes = [block.shape[1] for block in work]
        self._prior = Prior(columns, len(self._sources), sizes, widths)

    def __call__(self, archs: Archs) -> Floats:
        """``(n, num_features)``."""
        sums = np.stack([self._space.sum_over_layers(archs, c) for c in self.table.T], axis=1)
        return np.concatenate([np.ones((len(archs), 1)), sums + self._intercepts], axis=1)

    def fit(self, features: Floats, measured: Floats) -> Fit:
        """Weights, and of the sources' powers the likeliest."""
        unit_ms = float(np.exp(np.log(measured).mean()))
        found = []
        for power in sorted({1.0, *(one.power for one in self._sources)}):
            terms = Fit(np.zeros(0), power, unit_ms).to_terms(measured)
            posterior = self._prior.fit(features, terms)
            evidence = posterior.evidence - len(measured) * math.log(power)
            found.append((evidence, Fit(posterior.weights, power, unit_ms)))
        return max(found, key=lambda pair: pair[0])[1]

    def sum_of(self, weights: Floats) -> tuple[Floats, float]:
        """``(len(layer_table),)`` what each layer adds to the weighted sum, and the constant."""
        return self.table @ weights[1:], float(weights[0] + self._intercepts @ weights[1:])

    def design(self, num: int, known: Archs) -> Archs:
        """The networks to measure: every resolution once, then where least is known.

        Args:
            num: How many.
            known: ``(n, num_choices)`` those that are measured.

        Returns:
            ``(num, num_choices)``, or fewer where the space has no more.
        """
        sides, seen = self._space.resolution_of(self.candidates), known
        for side in self._space.resolutions:
            if side not in self._space.resolution_of(known):
                seen = np.concatenate([seen, self._next(1, seen, sides == side)])
        left = num - (len(seen) - len(known))
        seen = np.concatenate([seen, self._next(left, seen, sides == sides)])
        found: Archs = seen[len(known) :]
        return found

    def _next(self, num: int, known: Archs, allowed: npt.NDArray[np.bool_]) -> Archs:
        rows = self._prior.design(num, self(known), allowed)
        found: Archs = self.candidates[rows]
        return found


def _candidates(space: SearchSpace) -> Archs:
    """Networks from small to large at every resolution, the same every time."""
    rng, half = np.random.default_rng(3), NUM_KNOWN // 2
    archs = [space.sample(half, rng), space.sample_spread(half, rng)]
    for side in space.resolutions:
        ends = np.concatenate([space.smallest(), space.largest()])
        archs.append(space.canonical(space.with_resolution(ends, side)))
    return np.unique(np.concatenate(archs), axis=0)
