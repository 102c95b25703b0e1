"""The latency model: table of layers plus calibration on whole networks.

Predictions are sums over layers, or a power of them, as :mod:`deploynas.profile.features` fits
them; their bounds are what held-out networks tell.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from deploynas.device import Drift, Level
from deploynas.errors import IncompleteProfileError
from deploynas.profile.device_profile import (
    DeviceProfile,
    Precision,
    Validation,
    layer_key,
    profile_command,
    space_key,
)
from deploynas.profile.features import Fit, fit
from deploynas.profile.levels import unmeasured
from deploynas.profile.transfer import features_of
from deploynas.spaces import Archs, SearchSpace

Floats = npt.NDArray[np.float64]
MARGIN_LEVEL = 0.95  # of networks whose time lies within the margin of their prediction
LEAST = 0.1  # of what a network took, that a prediction without it may be, however bad the fit
PICKED = 3.0  # standard deviations: the dearest of some hundred networks of one latency


@dataclass(frozen=True)
class Bound:
    """What the bound of a prediction is made of, each a share of it.

    Attributes:
        fit: Of a network that the model never saw, in the profile's own minutes; see
            :func:`conformal_margin`.
        drift: Of the machine's level now; see :class:`~deploynas.device.Drift`.
        optimism: What a search picks takes longer than predicted by so much, as it picks among
            the networks that are predicted too quick; see :func:`optimism_of`.
    """

    fit: float
    drift: float
    optimism: float

    @property
    def half_width(self) -> float:
        """Of the whole: fit and drift are independent, optimism goes one way."""
        return math.hypot(self.fit, self.drift) + self.optimism

    @property
    def words(self) -> str:
        """For people."""
        return (
            f"+-{self.half_width:.1%}: fit {self.fit:.1%}, drift {self.drift:.1%}, optimism of a "
            f"search {self.optimism:.1%}"
        )


class LatencyModel:
    """Predicts the latency of architectures of one space on one device.

    Args:
        space: All its layers must be in the profile.
        profile: Table and calibration networks.
        precision: Of the networks.
        drift: Of the machine since its profile; where None, that of one on which nothing was
            measured since: predictions are at the profile's level, and their bound is wide.

    Attributes:
        space, profile, precision: As given.
        drift: See above.
        bound: What :attr:`half_width` is made of.
        records: Calibration networks at the space's resolutions.
        low_ms, high_ms: Range of the calibration networks, at all resolutions; outside it a
            prediction is an extrapolation.
        layer_terms: ``(len(layer_table),)`` what each layer adds to the sum that a prediction is
            made of by :meth:`ms_of`.
        intercept_term: What every network has beside its layers.

    Raises:
        IncompleteProfileError: A layer or the calibration is missing; says what to type.
    """

    def __init__(
        self,
        space: SearchSpace,
        profile: DeviceProfile,
        precision: Precision = "fp32",
        drift: Drift | None = None,
    ) -> None:
        self.precision: Precision = precision
        self.space = profile_complete(space, profile, precision)
        self.profile = profile
        key = space_key(space, precision)
        if key not in profile.networks or key not in profile.validations:
            raise IncompleteProfileError(
                f"the profile holds no calibration of {space.name}",
                f"add it: {profile_command(space, profile.identity, precision)}",
            )
        self.validation = profile.validations[key]
        sides = {r.resolution for r in profile.networks[key]}
        lacking = sorted(set(space.resolutions) - sides)
        if lacking:  # a profile that was interrupted after its layers
            raise IncompleteProfileError(
                f"the profile holds no calibration of {space.name} at {lacking[0]} px",
                f"add it: {profile_command(space, profile.identity, precision)}",
            )
        # fitted as it was judged, to all resolutions, whichever of them are asked for
        self._whole = profile.restrict(space.with_resolutions(sorted(sides)), precision)
        records = [r for r in profile.networks[key] if r.resolution in self._whole.resolutions]
        archs = self._whole.encode([r.architecture for r in records])
        measured = np.array([profile.estimate(r.samples).median for r in records])
        self._range = float(measured.min()), float(measured.max())
        self.records = [r for r in records if r.resolution in space.resolutions]
        features = features_of(self._whole, profile, precision)
        self._fitted = features.fit(features(archs), measured)
        self._optimism = optimism_of(self._fitted.residuals, measured, self._whole.macs(archs))
        self.drift = drift or unmeasured(profile, self.records)
        terms, self.intercept_term = features.sum_of(self._fitted.weights)
        of_layer = dict(zip(self._whole.layer_table, terms, strict=True))
        self.layer_terms: Floats = np.array([of_layer[layer] for layer in space.layer_table])

    def at(self, drift: Drift) -> LatencyModel:
        """The same after another drift."""
        other = copy.copy(self)
        other.drift = drift
        return other

    @property
    def bound(self) -> Bound:
        """See the class."""
        return Bound(self.validation.margin, self.drift.spread, self._optimism)

    @property
    def half_width(self) -> float:
        """Share of a prediction that its bounds lie away from it, within the calibrated range."""
        return self.bound.half_width

    @property
    def level(self) -> Level:
        """The reference level of predictions: what is measured later is to be normalised to it."""
        core_ms, memory_ms = self.drift.core_ms, self.drift.memory_ms
        if core_ms is None or memory_ms is None:
            return self.profile.reference
        return Level(core_ms, memory_ms)

    @property
    def low_ms(self) -> float:
        """See the class."""
        return self._range[0] * self.drift.factor

    @property
    def high_ms(self) -> float:
        """See the class."""
        return self._range[1] * self.drift.factor

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that predictions are made from: samples of the space's layers and networks.

        What else the profile's file holds, or comes to hold, does not change it, nor does what the
        machine drifts by.
        """
        profile, precision = self.profile, self.precision
        digest = hashlib.sha256()
        for layer in self._whole.layer_table:
            key = layer_key(layer, precision)
            if key in profile.layers:
                digest.update(f"{key} {profile.layers[key].samples.model_dump_json()}".encode())
        transfer = profile.transfers.get(space_key(self.space, precision))
        digest.update(transfer.model_dump_json().encode() if transfer is not None else b"")
        for record in profile.networks[space_key(self.space, precision)]:
            digest.update(record.model_dump_json().encode())
        identity = profile.identity.model_dump_json(exclude={"recorded"})
        digest.update(f"{identity} {profile.reference} {self.validation.margin}".encode())
        return digest.hexdigest()[:16]

    def predict_ms(self, archs: Archs) -> Floats:
        """``(n,)`` milliseconds: at the profile's reference level, times the drift since then."""
        terms: Floats = self.space.sum_over_layers(archs, self.layer_terms) + self.intercept_term
        return self._fitted.to_ms(terms) * self.drift.factor

    @property
    def power(self) -> float:
        """Of the sum of terms, which is the time; 1 where that sum is it."""
        return self._fitted.power

    def ms_of(self, terms: float) -> float:
        """Predicted milliseconds of a network whose terms add up to so much."""
        return float(self._fitted.to_ms(np.array([terms]))[0]) * self.drift.factor

    def terms_of(self, milliseconds: float) -> float:
        """What the terms of a network add up to that is predicted to take so long."""
        then = milliseconds / self.drift.factor
        return float(self._fitted.to_terms(np.array([then]))[0])

    def upper_ms(self, archs: Archs) -> Floats:
        """``(n,)`` upper bound: what a budget is compared with."""
        return self._upper(self.predict_ms(archs))

    def within_ms(self, limit: float) -> float:
        """The prediction whose upper bound is ``limit``."""
        low, high = 0.0, limit
        for _ in range(60):
            middle = (low + high) / 2
            fits = self._upper(np.array([middle]))[0] <= limit
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _upper(self, predicted: Floats) -> Floats:
        """Upper bounds of predictions.

        Beyond the calibrated range the margin grows: it has doubled as far outside, by the
        logarithm, as the range is wide.
        """
        inside = np.clip(predicted, self.low_ms, self.high_ms)
        beyond = np.abs(np.log(np.maximum(predicted, 1e-9) / inside))
        # never so fast that of two networks the quicker has the higher bound
        width = max(math.log(self.high_ms / self.low_ms), self.half_width, 1e-9)
        upper: Floats = predicted * (1 + self.half_width * (1 + beyond / width))
        return upper

    def extrapolates(self, milliseconds: float) -> bool:
        """Whether a prediction lies outside the calibrated range."""
        return not self.low_ms * 0.95 <= milliseconds <= self.high_ms * 1.05


def cross_validate(
    features: Floats,
    measured: Floats,
    fit: Callable[[Floats, Floats], Fit] = fit,
    num_folds: int = 10,
) -> Floats:
    """Held-out predictions: each fold by a model fitted, penalty included, without it.

    Args:
        features: ``(n, num_features)``.
        measured: ``(n,)`` milliseconds.
        fit: Of features to times.
        num_folds: Of networks; fewer networks are held out one by one.
    """
    folds = np.random.default_rng(0).permutation(len(measured)) % num_folds
    predicted = np.empty(len(measured))
    for fold in range(num_folds):
        held = folds == fold
        if held.all():  # a space of one network: nothing to fit to but the sum of its layers
            predicted = features[:, 1].copy()
        elif held.any():
            predicted[held] = fit(features[~held], measured[~held])(features[held])
    return predicted


def conformal_margin(predicted: Floats, measured: Floats) -> float:
    """Share of a held-out prediction that a network's time lies from it at most, in 95 % of cases.

    The ceil(0.95 (n + 1))-th smallest of n such shares (Lei et al. 2018, "Distribution-free
    predictive inference for regression", 2.2), which the next network keeps to in 95 % or more.
    Fewer than 19 cannot tell that much: of them it is the largest, which holds for n / (n + 1).

    Args:
        predicted: ``(n,)`` milliseconds, each by a model that never saw the network.
        measured: ``(n,)`` milliseconds.
    """
    predicted = np.maximum(predicted, LEAST * measured)  # a hopeless fit may say 0
    shares = np.sort(np.abs(measured / predicted - 1))
    rank = math.ceil(MARGIN_LEVEL * (len(shares) + 1))
    return float(shares[min(rank, len(shares)) - 1])


def optimism_of(residuals: Floats, measured: Floats, macs: npt.NDArray[np.int64]) -> float:
    """How much longer than predicted what a search picks takes, relative; at least 0.

    A search wants the most accurate of the networks of one latency, which is about the one of the
    most work; where such networks are predicted too quick, that error is picked with them. So the
    residuals are regressed on the work that is left when what the latency explains is taken out,
    and followed to the network of :data:`PICKED` standard deviations more.

    Args:
        residuals: ``(n,)`` of networks that the prediction never saw, as :attr:`Fit.residuals`.
        measured: ``(n,)`` milliseconds.
        macs: ``(n,)``.
    """
    if len(residuals) < 3:
        return 0.0
    predicted = measured * np.maximum(1 - residuals, LEAST)
    known = np.stack([np.ones(len(residuals)), np.log(predicted)], axis=1)
    work = np.log(np.maximum(macs, 1))
    more = work - known @ np.linalg.lstsq(known, work, rcond=None)[0]
    deviation = float(more.std())
    if deviation < 1e-6:
        return 0.0
    slope = float(np.mean(more * (measured / predicted - 1))) / deviation
    return max(0.0, slope * PICKED)


def judge(predicted: Floats, measured: Floats, noise: Sequence[float]) -> Validation:
    """Error table of predictions against measurements."""
    error = np.abs(predicted / measured - 1)
    rng = np.random.default_rng(0)
    taus = [
        kendall_tau(predicted[pick], measured[pick])
        for pick in rng.integers(0, len(measured), (400, len(measured)))
    ]
    low, high = np.nanquantile(taus, [0.025, 0.975])
    return Validation(
        num_networks=len(measured),
        mape=float(error.mean()),
        within_5_percent=float((error <= 0.05).mean()),
        kendall_tau=kendall_tau(predicted, measured),
        kendall_tau_low=float(low),
        kendall_tau_high=float(high),
        residual_95=float(np.quantile(error, 0.95)),
        margin=conformal_margin(predicted, measured),
        noise_floor=float(np.mean(noise)),
    )


def kendall_tau(first: Floats, second: Floats) -> float:
    """Kendall's tau-b; 0 where one side is constant."""
    i, j = np.triu_indices(len(first), 1)
    a, b = np.sign(first[i] - first[j]), np.sign(second[i] - second[j])
    scale = np.sqrt(np.sum(a != 0) * np.sum(b != 0))
    return float(np.sum(a * b) / scale) if scale else 0.0


def profile_complete(
    space: SearchSpace, profile: DeviceProfile, precision: Precision = "fp32"
) -> SearchSpace:
    """Return ``space`` if the profile holds all its layers, at every resolution.

    Raises:
        IncompleteProfileError: Names the first missing layer and the command that adds it.
    """
    missing = profile.missing(space, precision)
    if missing:
        raise IncompleteProfileError(
            f"the profile lacks {len(missing)} layers of {space.name}, the first is "
            f"{missing[0].key}",
            f"add them: {profile_command(space, profile.identity, precision)}",
        )
    return space
