"""The drift since a profile: found, said, in prediction and bound; wide where nothing is known."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from deploynas.device import Drift, Level
from deploynas.errors import DeviceMismatchError
from deploynas.profile import DeviceProfile, LatencyModel, shipped
from deploynas.profile.device_profile import SampleRecord
from deploynas.profile.features import fit
from deploynas.profile.latency_model import conformal_margin, optimism_of
from deploynas.profile.levels import WANDER, unmeasured
from deploynas.profile.refresh import (
    NUM_NETWORKS,
    _of_another_minute,
    _of_one_more,
    anchors,
    refresh,
)
from deploynas.profile.validate import bounds_of
from deploynas.spaces import space

SPACE = space("mobile-small", 10, 1, [20, 24, 28])


@pytest.fixture(scope="module")
def profile(board_profile):
    return board_profile(SPACE)


@pytest.fixture(scope="module")
def model(profile):
    return LatencyModel(SPACE, profile)


def test_a_drift_of_seven_per_cent_is_found_and_believed(model, profile, board):
    device = board(profile.identity, 1.07)
    shares = []
    drift = refresh(model, device, on_progress=lambda text, share: shares.append(share))
    assert device.asked == [NUM_NETWORKS]
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert drift.factor == pytest.approx(1.07)
    assert drift.unexplained == pytest.approx(1.07)
    assert drift.spread == pytest.approx(0.0, abs=1e-5)
    assert "7.0% slower than in its profile of a moment ago (6 networks" in drift.words
    assert not drift.exceeds(model.validation.margin)
    now = model.at(drift)
    archs = SPACE.sample(20, np.random.default_rng(0))
    predicted = model.predict_ms(archs)
    assert now.predict_ms(archs) == pytest.approx(1.07 * predicted)
    assert now.low_ms == pytest.approx(1.07 * model.low_ms)
    inside = (predicted > model.low_ms) & (predicted < model.high_ms)
    upper = now.upper_ms(archs)[inside]
    assert upper == pytest.approx((1.07 * predicted * (1 + now.half_width))[inside])
    assert now.half_width < WANDER < model.half_width
    assert now.ms_of(now.terms_of(3.0)) == pytest.approx(3.0)
    sums = SPACE.sum_over_layers(archs, now.layer_terms) + now.intercept_term
    assert [now.ms_of(one) for one in sums] == pytest.approx(now.predict_ms(archs))
    assert now.within_ms(upper[0]) == pytest.approx(now.predict_ms(archs[inside][:1])[0])
    assert now.fingerprint == model.fingerprint
    assert now.level == Level(1.0, 1.0)
    assert now.at(drift.model_copy(update={"core_ms": 2.0})).level == Level(2.0, 1.0)


def test_another_device_is_not_asked(model, profile, board):
    other = board(profile.identity.model_copy(update={"threads": 7}), 1.0)
    with pytest.raises(DeviceMismatchError, match="threads"):
        refresh(model, other)


@pytest.mark.parametrize(
    ("unexplained", "scatter", "far"),
    [(1.07, 0.01, False), (1.2, 0.01, True), (0.85, 0.0, True), (1.0, 0.05, True)],
)
def test_what_no_machine_drifts_by(unexplained, scatter, far):
    drift = Drift(factor=1.5, spread=0.1, scatter=scatter, unexplained=unexplained)
    assert drift.exceeds(0.02) == far
    assert drift.exceeds(0.08) == (far and scatter < 0.05)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (5, " of a moment ago"), (65, " of 1 minute ago"), (7300, " of 2 hours ago"),
        (3 * 86_400, " of 3 days ago"), (None, " ("),
    ],
)  # fmt: skip
def test_the_age_of_a_profile_is_told(seconds, words):
    made = time.time()
    drift = Drift(
        factor=0.98, spread=0.01, num_networks=6, made=made,
        profiled=None if seconds is None else made - seconds,
    )  # fmt: skip
    assert f"2.0% faster than in its profile{words}" in drift.words


def test_networks_are_of_all_sizes_and_resolutions(model):
    picked = anchors(model)
    times = np.array([model.profile.estimate(one.samples).median for one in picked])
    assert {one.resolution for one in picked} == set(SPACE.resolutions)
    assert (np.diff(times) > 0).all()
    assert times[-1] / times[0] > (model.high_ms / model.low_ms) ** 0.6
    quick = anchors(model, seconds=12 * times[:3].sum() / 1e3)
    assert len(quick) == NUM_NETWORKS
    assert model.profile.estimate(quick[-1].samples).median < times[-1]
    one = LatencyModel(SPACE.with_resolutions([24]), model.profile)
    assert {record.resolution for record in anchors(one)} == {24}


def test_levels_wander_where_nothing_is_measured(model, profile):
    assert unmeasured(profile, model.records).spread == WANDER  # it says nothing of longer times

    def at(levels):
        sessions = tuple((level,) * 3 for level in levels)
        samples = SampleRecord(model_bytes=9, ms=sessions, core_ms=sessions, memory_ms=sessions)
        return [model.records[0].model_copy(update={"samples": samples})]

    assert unmeasured(profile, at([1.2] * 6)).spread == pytest.approx(0.2)
    slower = [1.0, 1.0, 1.3, 1.0, 1.0, 1.0]  # one session is no measurement
    assert unmeasured(profile, at(slower)).spread == WANDER
    assert unmeasured(profile, at([0.5] * 6)).spread == WANDER  # quicker breaks no limit


@pytest.mark.slow
def test_profiles_of_earlier_formats_state_their_parts():
    real = DeviceProfile.load(shipped.locate(Path("shipped:xeon-onnxruntime")))
    bounds = bounds_of(real)
    assert set(bounds) == set(real.validations)
    for key, bound in bounds.items():
        assert bound.fit == real.validations[key].margin
        assert bound.drift >= WANDER
        assert bound.optimism >= 0
        whole = np.hypot(bound.fit, bound.drift) + bound.optimism
        assert bound.half_width == pytest.approx(whole)
        assert f"drift {bound.drift:.1%}" in bound.words


def test_what_a_search_picks_keeps_its_bound():
    """Networks of more work than their layers tell take longer, and are picked."""
    rng = np.random.default_rng(0)
    kept, without = [], []
    for _ in range(60):
        known = rng.uniform(1, 4, (2048, 2))
        hidden = rng.normal(0, 0.1, 2048)  # relative: work that no feature sees
        sums = known.sum(axis=1)
        macs = (1e6 * sums * np.exp(hidden)).astype(np.int64)
        took = sums * np.exp(0.15 * hidden + rng.normal(0, 0.01, 2048))
        features = np.column_stack([np.ones(2048), sums, known])
        fitted = fit(features[:48], took[:48])
        optimism = optimism_of(fitted.residuals, took[:48], macs[:48])
        predicted = fitted(features)
        margin = np.quantile(np.abs(fitted.residuals), 0.95)
        for limit in (4.0, 5.0, 6.0):
            for widths, half in ((without, margin), (kept, margin + optimism)):
                within = np.flatnonzero(predicted[48:] * (1 + half) <= limit) + 48
                picked = within[np.argmax(macs[within])]
                widths.append(took[picked] <= limit)
    assert np.mean(kept) >= 0.95
    assert np.mean(without) < np.mean(kept)
    nothing = optimism_of(np.zeros(48), np.ones(48), np.full(48, 100))
    assert nothing == 0.0
    hopeless = optimism_of(np.linspace(-3, 3, 48), np.ones(48), np.arange(1, 49))
    assert np.isfinite(hopeless)
    assert conformal_margin(np.zeros(30), np.ones(30)) == pytest.approx(9)


@pytest.mark.parametrize("own", [0.0, 0.01, 0.03])
def test_one_more_network_in_another_minute_is_within_the_spread(own):
    """Simulated: ``own`` is what single networks drift by, relative; a per cent each is noise."""
    rng = np.random.default_rng(0)
    num, sessions, noise = 6, 4, 0.01
    held, halves = [], []
    for _ in range(1500):
        minutes = rng.normal(0, 0.01, sessions)
        before = rng.normal(0, noise / 2, (num, 1))
        networks = rng.normal(0, own, (num + 1, 1))
        slower = networks[:num] + minutes + before + rng.normal(0, noise, (num, sessions))
        network, _ = _of_one_more(slower, (noise / 2) ** 2, 1.0)
        half = np.hypot(network, _of_another_minute(slower.mean(axis=0), 1.0))
        then = networks[num, 0] + rng.normal(0, 0.01, sessions).mean()
        held.append(abs(then - slower.mean()) <= half)
        halves.append(half)
    assert 0.94 <= np.mean(held) <= 1
    assert np.median(halves) < 0.03 + 3.5 * own


def test_what_a_single_network_or_session_tells():
    one = np.zeros((1, 4))
    assert _of_one_more(one, 0.0, 0.07) == (0.07, 0.0)
    assert _of_another_minute(one[0, :1], 0.07) == 0.07
    assert _of_another_minute(np.array([0.0, 0.5]), 0.07) == 0.07
