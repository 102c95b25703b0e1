"""Latency told from networks that were measured whole."""

from __future__ import annotations

import numpy as np
import pytest

from deploynas import spaces
from deploynas.errors import InvalidInputError
from deploynas.profile.whole_networks import Measured, WholeLatency, spread_rows

SPACE = spaces.space("mobile-small", resolutions=[28])
KINDS = ["conv 3", "depthwise 3", "pointwise", "linear"]


class Layers:
    """What four layers do, in a made-up way, in networks of a space."""

    kinds = KINDS

    def layer_work(self, archs, block):
        shares = 0.3 + archs[:, 1:5] / np.maximum(1, SPACE.num_options[1:5])
        channels = np.rint(100 * shares)
        padded = np.ceil(channels / block) * block / channels
        macs = 4e6 * shares * padded * np.array([2.0, 0.3, 5.0, 0.1])
        return macs, 1e5 * shares, 1e4 * shares


def taken(archs, block=1):
    """A device whose depthwise layers are much slower than the first guess says."""
    macs, moved, _ = Layers().layer_work(archs, block)
    return (macs / np.array([3e7, 1.5e6, 2.4e7, 6e6])).sum(axis=1) + moved.sum(axis=1) / 8e6 + 0.05


@pytest.mark.parametrize("block", [1, 8, 16, 32])
def test_the_block_of_channels_is_told(block):
    archs = SPACE.sample(14, np.random.default_rng(0))
    found = WholeLatency(SPACE, Layers(), Measured(archs, taken(archs, block), np.zeros(14)))
    assert (found.block == block) or (block == 1 and found.block < 8)


def model(num, noise=0.0):
    rng = np.random.default_rng(0)
    archs = SPACE.sample(num, rng)
    ms = taken(archs) * np.exp(noise * rng.standard_normal(num))
    return WholeLatency(SPACE, Layers(), Measured(archs, ms, np.full(num, noise)))


@pytest.mark.parametrize("num", [8, 12, 24])
def test_a_few_networks_tell_the_others(num):
    fresh = SPACE.sample(200, np.random.default_rng(1))
    errors = model(num).predict_ms(fresh) / taken(fresh) - 1
    assert np.abs(errors).max() < {8: 0.3, 12: 0.05, 24: 0.04}[num]


def test_the_stated_error_holds():
    one = model(24, noise=0.02)
    fresh = SPACE.sample(400, np.random.default_rng(2))
    true = taken(fresh)
    inside = np.abs(one.predict_ms(fresh) - true) <= one.half_width * true
    assert inside.mean() > 0.9
    assert one.half_width < 0.12


def test_bounds_and_limits_are_each_others_inverse():
    one = model(12, noise=0.02)
    rows = SPACE.sample(5, np.random.default_rng(3))
    assert one.upper_ms(rows) == pytest.approx(one.predict_ms(rows) * (1 + one.half_width))
    assert one.within_ms(3.0) * (1 + one.half_width) == pytest.approx(3.0)


def test_held_out_predictions_are_of_models_without_the_network():
    whole = model(8, noise=0.05)
    measured = whole.measured
    for i in range(3):
        rest = [j for j in range(8) if j != i]
        without = WholeLatency(
            SPACE, Layers(),
            Measured(measured.archs[rest], measured.ms[rest], measured.deviations[rest]),
        )  # fmt: skip
        alone = float(without.predict_ms(measured.archs[i : i + 1])[0])
        # the factor of all is fitted with it, and hardly moves
        assert whole.held_out[i] == pytest.approx(alone, rel=0.05)


def test_two_networks_are_too_few():
    with pytest.raises(InvalidInputError, match="3 measured networks"):
        model(2)


def test_networks_to_measure_are_spread_and_have_both_ends():
    largest = float(SPACE.macs(SPACE.largest())[0])
    rows = spread_rows(SPACE, 8, (0.3, 0.8), largest, np.random.default_rng(0))
    shares = np.sort(SPACE.macs(rows) / largest)
    assert shares[-1] == 1.0
    assert shares[0] == SPACE.macs(SPACE.smallest())[0] / largest
    inner = shares[1:-1]
    assert inner.min() == pytest.approx(0.3, abs=0.05)
    assert inner.max() == pytest.approx(0.8, abs=0.1)
