"""The ImageNet accuracy predictor: measured accuracies, and the edge of its knowledge."""

from __future__ import annotations

import ast
import csv
from pathlib import Path

import numpy as np
import pytest

import deploynas as dn
from deploynas.errors import UnknownNameError
from deploynas.search import accuracy_model

DATA = Path(__file__).parents[3] / "shared" / "data" / "ofa_mbv3_imagenet"
WHOLE = dn.space("ofa-mbv3-w1.0")
AT_224 = dn.space("ofa-mbv3-w1.0", resolutions=[224])


def test_other_resolutions_are_unknown():
    archs = WHOLE.sample(300, np.random.default_rng(0))
    predictor = dn.imagenet_predictor("ofa-mbv3-w1.0")
    accuracies = predictor.predict(archs)
    sides = np.array(WHOLE.resolutions)[archs[:, 0]]
    assert np.array_equal(np.isnan(accuracies), sides != 224)
    assert predictor.extrapolates(archs)[sides != 224].all()
    narrow = AT_224.encode(WHOLE.decode(archs[sides == 224]))
    same = dn.imagenet_predictor(AT_224).predict(narrow)
    assert np.array_equal(same, accuracies[sides == 224])


def test_other_spaces_are_unknown():
    with pytest.raises(UnknownNameError, match=r"ofa-mbv3-w1.0"):
        dn.imagenet_predictor("ofa-mbv3-w1.2")


def test_a_network_unlike_those_fitted_to_is_told():
    predictor = dn.imagenet_predictor(AT_224)
    assert predictor.extrapolates(AT_224.largest()).all()
    low, high = predictor.record.macs_range
    archs = AT_224.sample_spread(300, np.random.default_rng(0))
    inside = (AT_224.macs(archs) >= low) & (AT_224.macs(archs) <= high)
    assert 0 < predictor.extrapolates(archs).sum() < 300
    assert predictor.extrapolates(archs)[~inside].all()


def test_skipped_blocks_have_no_say():
    arch = AT_224.decode(AT_224.smallest())[0]
    changed = arch | {"kernel_sizes": [3, 3, 7, 7] * 5}
    first, second = AT_224.features(AT_224.encode([arch, changed]))
    assert np.array_equal(first, second)


def test_predictions_match_measured_accuracies():
    """The rows it was fitted to; benchmarks/imagenet_predictor.py judges held-out ones."""
    if not DATA.is_dir():
        pytest.skip("the measured ImageNet accuracies are not here")
    with (DATA / "evonsga2_acc_macs.csv").open() as file:
        rows = list(csv.DictReader(file))
    parsed = [ast.literal_eval(row["Sub-network"]) for row in rows]
    archs = AT_224.encode(
        [
            {"resolution": 224, "depths": p["d"], "kernel_sizes": p["ks"], "expand_ratios": p["e"]}
            for p in parsed
        ]
    )
    measured = np.array([float(row["Top-1 Acc (%)"]) / 100 for row in rows])
    predictor = dn.imagenet_predictor(AT_224)
    assert np.sqrt(np.mean((predictor.predict(archs) - measured) ** 2)) < 0.0012
    assert not predictor.extrapolates(archs).mean() > 0.02


@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_a_known_relation_is_found(noise):
    rng = np.random.default_rng(0)
    archs = AT_224.sample(600, rng)
    x = AT_224.features(archs)
    weights = rng.normal(0, 0.02, x.shape[1])
    truth = 0.8 - np.exp(x @ weights - 3)
    fitted = accuracy_model.fit(x[:500], truth[:500] + rng.normal(0, noise, 500))
    error = accuracy_model.predict(*fitted, x[500:]) - truth[500:]
    assert np.sqrt(np.mean(error**2)) < 0.0005 + noise / 2
