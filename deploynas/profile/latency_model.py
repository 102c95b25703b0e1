"""The latency model: table of layers plus calibration on whole networks.

Predictions are sums over layers, or a power of them, as :mod:`deploynas.profile.features` fits
them; their bounds are what held-out networks tell.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

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
from deploynas.profile.transfer import features_of
from deploynas.spaces import Archs, SearchSpace

Floats = npt.NDArray[np.float64]
MARGIN_LEVEL = 0.95  # of networks whose time lies within the margin of their prediction


class LatencyModel:
    """Predicts the latency of architectures of one space on one device.

    Args:
        space: All its layers must be in the profile.
        profile: Table and calibration networks.

    Attributes:
        space, profile: As given.
        half_width: Share of a prediction that its bounds lie away from it, held out; see
            :func:`conformal_margin`.
        low_ms, high_ms: Range of the calibration networks, at all resolutions; outside it a
            prediction is an extrapolation.
        layer_terms: ``(len(layer_table),)`` what each layer adds to the sum that a prediction is
            made of: milliseconds where that sum is the prediction, else see :meth:`ms_of`.
        intercept_term: What every network has beside its layers.

    Raises:
        IncompleteProfileError: A layer or the calibration is missing; says what to type.
    """

    def __init__(
        self, space: SearchSpace, profile: DeviceProfile, precision: Precision = "fp32"
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
        self.half_width = self.validation.margin
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
        self.low_ms, self.high_ms = float(measured.min()), float(measured.max())
        features = features_of(self._whole, profile, precision)
        self._fitted = features.fit(features(archs), measured)
        terms, self.intercept_term = features.sum_of(self._fitted.weights)
        of_layer = dict(zip(self._whole.layer_table, terms, strict=True))
        self.layer_terms: Floats = np.array([of_layer[layer] for layer in space.layer_table])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that predictions are made from: samples of the space's layers and networks.

        What else the profile's file holds, or comes to hold, does not change it.
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
        digest.update(f"{identity} {profile.reference} {self.half_width}".encode())
        return digest.hexdigest()[:16]

    def predict_ms(self, archs: Archs) -> Floats:
        """``(n,)`` milliseconds at the profile's reference level."""
        terms: Floats = self.space.sum_over_layers(archs, self.layer_terms) + self.intercept_term
        return self._fitted.to_ms(terms)

    @property
    def power(self) -> float:
        """Of the sum of terms, which is the time; 1 where that sum is it."""
        return self._fitted.power

    def ms_of(self, terms: float) -> float:
        """Predicted milliseconds of a network whose terms add up to so much."""
        return float(self._fitted.to_ms(np.array([terms]))[0])

    def terms_of(self, milliseconds: float) -> float:
        """What the terms of a network add up to that is predicted to take so long."""
        return float(self._fitted.to_terms(np.array([milliseconds]))[0])

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
    shares = np.sort(np.abs(measured / predicted - 1))
    rank = math.ceil(MARGIN_LEVEL * (len(shares) + 1))
    return float(shares[min(rank, len(shares)) - 1])


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
