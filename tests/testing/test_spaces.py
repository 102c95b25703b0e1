"""What every space promises, over all that ship and tables of one's own; breaks are seen."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from deploynas import spaces
from deploynas.spaces import MobileSpace, Resolution, SearchSpace, resolutions_of, staged_space
from deploynas.spaces.tables import parse_table, shipped_table
from deploynas.testing import check_costs, check_networks, check_rows, check_space

pytestmark = pytest.mark.slow

NAMES = spaces.space_names()
TABLE = {
    "operator": "mbconv", "kernel_sizes": [3, 5], "expand_ratios": [2, 4],
    "activation": "h_swish", "resolutions": [16, 24], "num_classes": 3,
    "stem": {"width": 8}, "first": {"width": 8, "activation": "relu"},
    "stages": [
        {"width": 16, "stride": 2, "depths": [1, 2], "activation": "relu"},
        {"width": 24, "stride": 1, "depths": [1], "se": True, "kernel_sizes": [7]},
    ],
    "head": {"width": 32, "features": 16},
}  # fmt: skip
OWN = {
    "elastic": TABLE,
    "candidates": {
        **TABLE, "operator": None, "operators": ["zero", "mbconv"], "resolutions": [16],
        "stages": [
            {"width": 16, "stride": 2, "depth": 2},
            {"width": 16, "stride": 1, "depth": 2, "se": True},  # may go as a whole
        ],
    },
    "kinds": {
        **TABLE, "operator": None, "operators": ["zero", "sep_conv_3x3", "mbconv"],
        "stages": [
            {"width": 16, "stride": 2, "depth": 1, "operators": ["sep_conv_3x3"]},
            {"width": 16, "stride": 1, "depth": 2},
        ],
    },
    "widths": {
        **TABLE,
        "stages": [
            {"widths": [8, 16], "stride": 1, "depths": [1, 2]},  # the first may be residual
            {"width": 16, "stride": 1, "depths": [1], "se": True},
            {"widths": [16, 24, 32], "stride": 2, "depths": [1, 2], "kernel_sizes": [3]},
        ],
    },
    "one kind": {
        **TABLE, "operator": None, "operators": ["sep_conv_3x3", "mbconv"], "resolutions": [16],
        "stages": [{"width": 16, "stride": 2, "depth": 2}],
    },
    "one network": {
        **TABLE, "resolutions": [16], "kernel_sizes": [3], "expand_ratios": [1],
        "stages": [{"width": 8, "stride": 1, "depths": [1]}],
    },
}  # fmt: skip


def own(name):
    document = {key: value for key, value in OWN[name].items() if value is not None}
    return staged_space(name, parse_table(json.dumps(document)))


@functools.cache
def named(name):
    return spaces.space(name)


@pytest.mark.parametrize("name", NAMES)
def test_rows(name):
    check_rows(named(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_costs(name):
    check_costs(named(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_networks(name):
    check_networks(spaces.space(name, 10, 3, [32]))


@pytest.mark.parametrize("name", OWN)
def test_own_tables(name):
    check_space(own(name))


def test_cells_of_several_resolutions():
    text = "darts-small:channels=4,cells=3,nodes=1,operations=skip_connect+sep_conv_3x3"
    check_space(spaces.space(text, 3, 1, [8, 13]))


class Paths(MobileSpace):
    """A family that names no network."""

    network, schedules = SearchSpace.network, SearchSpace.schedules


def test_a_family_that_names_no_network():
    check_networks(Paths("tiny", own("elastic").table))


class Broken(MobileSpace):
    """Whatever a subclass gets wrong."""


def squares(self, sides):
    """It builds squares, whatever it says."""
    found = MobileSpace.with_resolutions(self, [Resolution.of(one).height for one in sides])
    found.resolutions = resolutions_of(sides)
    return found


def broken(monkeypatch, name, wrong):
    monkeypatch.setattr(Broken, name, wrong)
    return Broken("mobile-small", shipped_table("mobile-small"), ships=True)


def test_a_space_that_is_right_passes(monkeypatch):
    space = broken(monkeypatch, "argument", "mobile-small")
    check_rows(space)
    check_costs(space)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("canonical", lambda self, archs: self._checked(archs).copy(), "encode"),
        ("canonical", lambda self, archs: np.zeros_like(archs), "another network"),
        ("mutate", lambda self, archs, p, rng: archs[::-1], "mutate"),
        ("change_one", lambda self, archs, rng: archs + 100, "change_one gives rows"),
        ("crossover", lambda self, a, b, rng: self.sample(len(a), rng), "twins"),
        ("sample", lambda self, n, rng: np.repeat(self.largest(), n, axis=0), "options"),
        ("sample_spread", lambda self, n, rng: self.sample(n, np.random.default_rng()), "seed"),
        ("resolution_of", lambda self, archs: archs[:, 0], "resolution_of"),
        ("with_resolutions", lambda self, sides: self, "with_resolutions"),
        ("with_resolutions", lambda self, sides: squares(self, sides), "24x40"),
        ("spec", {"name": "mobile-plain"}, "spec"),
        ("decode", lambda self, archs: MobileSpace.decode(self, archs[::-1]), "encode"),
        ("encode", lambda self, dicts: np.repeat(self.smallest(), len(dicts), 0), "encode"),
    ],
)
def test_broken_rows_are_seen(monkeypatch, name, wrong, message):
    with pytest.raises(AssertionError, match=message):
        check_rows(broken(monkeypatch, name, wrong))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("macs", lambda self, archs: MobileSpace.macs(self, archs) + 1, "macs is not"),
        ("params", lambda self, archs: MobileSpace.macs(self, archs), "params is not"),
        ("ends", lambda self, values: MobileSpace.ends(self, values)[::-1], "ends"),
        ("layers", lambda self, arch: MobileSpace.layers(self, arch)[1:], "reads|given"),
        ("features", lambda self, archs: np.full((len(archs), 2), np.nan), "finite"),
        ("num_classes", 11, "logits"),
        ("peak_memory_bytes", lambda self, archs: self.weight_bytes(archs), "peak_memory"),
    ],
)
def test_broken_costs_are_seen(monkeypatch, name, wrong, message):
    space = broken(monkeypatch, "argument", "mobile-small")
    if name == "num_classes":
        space.num_classes = wrong
    else:
        monkeypatch.setattr(Broken, name, wrong)
    with pytest.raises(AssertionError, match=message):
        check_costs(space)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("schedules", ("sandwich", "sandwhich"), "sandwhich"),
        ("schedules", (), "schedules"),
        ("params", lambda self, archs: self.macs(archs), "parameters"),
    ],
)
def test_broken_networks_are_seen(monkeypatch, name, wrong, message):
    with pytest.raises(AssertionError, match=message):
        check_networks(broken(monkeypatch, name, wrong))


def test_a_network_that_extracts_another_is_seen(monkeypatch):
    from deploynas.nn import Supernet

    right = Supernet.extract
    monkeypatch.setattr(
        Supernet, "extract", lambda self, arch: right(self, self.space.smallest()[0])
    )
    with pytest.raises(AssertionError, match="extract"):
        check_networks(own("elastic"))


def test_which_network_a_table_gets():
    found = {name: own(name).network.rpartition(":")[2] for name in OWN}
    assert found == {
        "elastic": "Supernet", "candidates": "Supernet", "kinds": "PathNetwork",
        "widths": "Supernet",
        "one kind": "MixedNetwork", "one network": "Supernet",
    }  # fmt: skip
