"""Heights and widths that differ: the value, spaces of it, and how files write it."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from pydantic import ValidationError

from deploynas import spaces
from deploynas.errors import InvalidInputError
from deploynas.export.manifest import Preprocessing
from deploynas.profile import LatencyModel
from deploynas.profile.device_profile import NetworkRecord, profile_command
from deploynas.profile.profiler import calibration_archs
from deploynas.profile.shipped import calibrations
from deploynas.profile.validate import profiled_spaces
from deploynas.spaces import Resolution, parse_net, resolutions_of
from deploynas.spaces.layers import macs


def test_what_is_written_is_what_it_equals():
    square, wide = Resolution.of(128), Resolution.of("96x160")
    assert (square.size, wide.size) == ((128, 128), (96, 160))
    assert (square, wide) == (128, "96x160")
    assert (str(square), str(wide), repr([square, wide])) == ("128", "96x160", "[128, '96x160']")
    assert Resolution.of("128") == Resolution.of("128x128") == Resolution.of(square) == 128
    assert wide != 96
    assert wide != Resolution.of("160x96")
    assert {128: "a", "96x160": "b"}[wide] == "b"
    assert {square, wide} == {128, "96x160"}
    assert json.dumps([square.plain, wide.plain]) == '[128, "96x160"]'
    assert pickle.loads(pickle.dumps(wide)) == copy.deepcopy(wide) == wide


def test_order_is_by_pixels():
    found = resolutions_of(["40x24", 32, "24x40", 28, "8x200", 32])
    assert [one.plain for one in found] == [28, "24x40", "40x24", 32, "8x200"]


@pytest.mark.parametrize(
    "wrong",
    ["0x32", "32x", "x32", "96x160x3", "96 x 160", "1.5", 1.5, "", -8, 0, True, None, [96, 160],
     "9" * 40, "96×160", "٣x٣"],
)  # fmt: skip
def test_what_is_none_is_refused_in_one_line(wrong):
    with pytest.raises(InvalidInputError, match="HEIGHTxWIDTH like 96x160") as caught:
        spaces.space("mobile-small", 10, 3, [wrong])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["4x32", "32x4", "99999x99999", 5000])
def test_sides_have_limits(wrong):
    with pytest.raises(InvalidInputError, match=r"8 px or more, at most 4,096, got .*"):
        spaces.space("mobile-small", 10, 3, [wrong])


def test_what_of_an_image_is_kept():
    wide = Resolution(24, 40)
    assert wide.part_of(48, 100) == (0, 10, 48, 80)
    assert wide.part_of(100, 40) == (38, 0, 24, 40)
    assert wide.part_of(24, 40, 0.5) == (6, 10, 12, 20)
    for height, width in np.random.default_rng(0).integers(1, 500, (200, 2)).tolist():
        side = min(height, width) * 0.875
        expected = ((height - side) / 2, (width - side) / 2, side, side)
        assert Resolution(7, 7).part_of(height, width, 0.875) == expected  # to the bit
        *_, tall, wide_ = wide.part_of(height, width)
        assert tall <= height
        assert wide_ <= width
        assert max(tall / height, wide_ / width) == pytest.approx(1)


def test_maps_shrink_by_both_sides():
    space = spaces.space("mobile-small", 10, 3, ["20x44"])
    layers = [node.layer for node in space.layers(space.largest()[0])]
    assert [(x.height, x.width) for x in layers if x.stride == 2] == [(20, 44), (10, 22), (5, 11)]
    assert (layers[-1].height, layers[-1].width) == (3, 6)
    # a stem of 3x3x3 over 10x22 outputs
    assert macs(layers[0]) == 10 * 22 * 27 * layers[0].out_channels
    assert layers[0].key.startswith(f"conv:3-{layers[0].out_channels}@20x44,")


def test_turned_networks_cost_the_same():
    wide, tall = (spaces.space("mobile-small", 10, 3, [one]) for one in ("24x40", "40x24"))
    archs = wide.sample(20, np.random.default_rng(0))
    assert wide.macs(archs).tolist() == tall.macs(archs).tolist()
    assert wide.peak_memory_bytes(archs).tolist() == tall.peak_memory_bytes(archs).tolist()
    assert not {x.key for x in wide.layer_table} & {x.key for x in tall.layer_table}


def test_rows_carry_it():
    space = spaces.space("mobile-small", 10, 3, [32, "24x40", 24])
    assert space.resolutions == (24, "24x40", 32)
    assert space.spec["resolutions"] == [24, "24x40", 32]
    assert spaces.space(**json.loads(json.dumps(space.spec))).choices == space.choices
    rows = space.with_resolution(space.smallest().repeat(3, 0), [32, "24x40", Resolution(24, 24)])
    assert space.resolution_of(rows).tolist() == [32, "24x40", 24]
    assert [arch["resolution"] for arch in space.decode(rows)] == [32, "24x40", 24]
    with pytest.raises(InvalidInputError, match=r"one of \[24, '24x40', 32\], got '40x24'"):
        space.with_resolution(rows, "40x24")
    with pytest.raises(InvalidInputError, match=r"got \[24, 40\]"):
        space.encode([space.decode(rows)[1] | {"resolution": [24, 40]}])


def test_squares_are_what_they_were():
    by_side = spaces.space("mobile-small", 10, 3, [24, 20])
    by_text = spaces.space("mobile-small", 10, 3, ["24", "20x20"])
    assert by_side.spec == by_text.spec
    assert json.dumps(by_side.spec["resolutions"]) == "[20, 24]"


def test_a_profile_holds_both(board_profile):
    space = spaces.space("mobile-small", 10, 3, [24, "24x40"])
    profile = board_profile(space)
    again = type(profile).model_validate_json(profile.model_dump_json())
    assert again.restrict(spaces.space("mobile-small", 10, 3, ["24x40", 96])).resolutions == (
        "24x40",
    )
    (held,) = profiled_spaces(again)
    assert held.resolutions == space.resolutions
    assert calibrations(again)[0].resolutions == (24, "24x40")
    model, narrow = (
        LatencyModel(one, again) for one in (space, space.with_resolutions(["24x40"]))
    )
    rows = space.with_resolution(space.sample(5, np.random.default_rng(0)), "24x40")
    own = narrow.space.with_resolution(rows, "24x40")
    assert narrow.predict_ms(own) == pytest.approx(model.predict_ms(rows), rel=0.1)
    assert "--resolution 24 --resolution 24x40" in profile_command(space, again.identity)
    added = calibration_archs(spaces.space("mobile-small", 10, 3, ["40x24"]), again)
    assert len(added) > 0
    assert len(calibration_archs(space, again)) == 0


def test_records_write_it_plain():
    one = {"channels": 3, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    for given, written in ((28, "28"), ("28x28", "28"), ("96x160", '"96x160"')):
        record = Preprocessing(resolution=given, **one)
        assert f'"resolution":{written},' in record.model_dump_json()
        assert Preprocessing.model_validate_json(record.model_dump_json()) == record
    for wrong in ("96x", 0, None):
        with pytest.raises(ValidationError):
            Preprocessing(resolution=wrong, **one)
    with pytest.raises(ValidationError):
        NetworkRecord(architecture={"resolution": "24by40"}, samples=None)


def test_a_block_list_is_read_at_one():
    conv = {"name": "ConvLayer", "kernel_size": 3, "stride": 2, "act_func": "relu"}
    net = {
        "bn": {"eps": 1e-5}, "blocks": [],
        "first_conv": {**conv, "in_channels": 3, "out_channels": 8},
        "feature_mix_layer": {**conv, "in_channels": 8, "out_channels": 16},
        "classifier": {"out_features": 5},
    }  # fmt: skip
    stem, head = (node.layer for node in parse_net(net, "30x50"))
    assert (stem.height, stem.width, head.height, head.width) == (30, 50, 15, 25)
    assert parse_net({"net": net, "resolution": "30x50"}) == parse_net(net, Resolution(30, 50))
    with pytest.raises(InvalidInputError, match="8 px or more"):
        parse_net(net, "30x4")
