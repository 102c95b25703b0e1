"""Spaces from TOML: what a table can say, what it cannot, and that artefacts carry it."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

import deploynas as dn
from deploynas import spaces
from deploynas.data import space_for
from deploynas.data.sources import load_digits
from deploynas.errors import InvalidInputError, MissingFileError
from deploynas.profile.device_profile import space_key
from deploynas.spaces import CandidateSpace, MobileSpace
from deploynas.spaces.tables import parse_table, shipped_names, shipped_table
from deploynas.testing import check_space

ELASTIC = """\
operator = "mbconv"
kernel_sizes = [3, 5]
expand_ratios = [2, 4]
activation = "relu"
resolutions = [16, 24]
num_classes = 3

[stem]
width = 8

[first]
width = 8

[[stages]]
width = 16
stride = 2
depths = [1, 2]

[[stages]] # a wider one
width = 24
stride = 1
activation = "h_swish"
se = true
depths = [1]
kernel_sizes = [7]

[head]
width = 32
features = 16
"""
CANDIDATES = (
    ELASTIC.replace('operator = "mbconv"', 'operators = ["mbconv", "sep_conv_5x5", "zero"]')
    .replace("depths = [1, 2]", "depth = 2")
    .replace("depths = [1]", 'depth = 2\noperators = ["sep_conv_3x3"]')
    .replace("[16, 24]", "[16]")
)  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.toml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def test_an_elastic_space(write):
    space = dn.space(write(ELASTIC))
    assert isinstance(space, MobileSpace)
    assert (space.name, space.num_classes, space.resolutions) == ("mine.toml", 3, (16, 24))
    # two resolutions; one or two blocks of four kinds; one block of two kinds
    assert space.size == 2 * (4 + 16) * 2
    layers = [node.layer for node in space.layers(space.largest()[0])]
    assert [x.kernel_size for x in layers[2:-1]] == [5, 5, 7]
    assert [x.activation for x in layers[:-1]] == ["relu"] * 4 + ["h_swish"]
    assert [x.se_channels > 0 for x in layers[2:-1]] == [False, False, True]
    assert layers[-1].feature_channels == 16
    assert space.schedules[0] == "sandwich"


def test_a_space_of_candidates(write):
    space = dn.space(write(CANDIDATES))
    assert isinstance(space, CandidateSpace)
    assert [choice.options for choice in space.choices[1:]] == [
        ("sep_conv_5x5", "mbconv_k3_e2", "mbconv_k5_e2", "mbconv_k3_e4", "mbconv_k5_e4"),
        ("zero", "sep_conv_5x5", "mbconv_k3_e2", "mbconv_k5_e2", "mbconv_k3_e4", "mbconv_k5_e4"),
        ("sep_conv_3x3",),
        ("sep_conv_3x3",),
    ]
    kinds = [node.layer.kind for node in space.layers(space.smallest()[0])]
    assert kinds == ["conv", "mbconv", "sep_conv", "sep_conv", "sep_conv", "head"]
    assert space.schedules == ("single-path",)


def test_universal_inverted_bottlenecks():
    """A network without any depthwise convolution is not offered where it would have to stride."""
    space = dn.space("mobile-uib")
    first, second = space.choices[1].options, space.choices[2].options
    universal = ("convnext_k3", "convnext_k5", "extradw_k3", "extradw_k5")
    own = [f"{name}_e{e}" for e in (2, 4) for name in universal]
    usual = [f"mbconv_k{k}_e{e}" for e in (2, 4) for k in (3, 5)]
    assert list(first) == own + usual
    with_ffn = [*("ffn_e2", *own[:4]), *("ffn_e4", *own[4:])]
    assert list(second) == ["zero", *with_ffn, *usual]
    ops = ["extradw_k5_e4", "ffn_e2", "convnext_k3_e2"] * 2 + ["mbconv_k3_e2", "zero", "zero"]
    (row,) = space.encode([{"resolution": 28, "ops": ops}])
    layers = [node.layer for node in space.layers(row)][2:-1]
    assert [(x.kind, x.start_kernel_size, x.kernel_size) for x in layers[:3]] == [
        ("uib", 5, 5), ("uib", 0, 0), ("uib", 3, 0)
    ]  # fmt: skip
    assert [x.residual for x in layers[:3]] == [False, True, True]
    assert layers[-1].kind == "mbconv"
    assert {layer.activation for layer in space.layer_table} == {"relu"}


def test_elastic_widths(write):
    """A stage's width is chosen for all of its blocks, and enters the next stage."""
    space = dn.space(write(ELASTIC.replace("width = 16", "widths = [24, 16]")))
    assert space.choices[-1] == spaces.Choice("stage1.width", (16, 24))
    small, large = space.smallest()[0], space.largest()[0]
    assert space.decode(small[None])[0]["widths"] == [16, 24]
    for row, width in ((small, 16), (large, 24)):
        layers = [node.layer for node in space.layers(row)][2:-1]
        last = layers[-1]
        assert [x.out_channels for x in layers[:-1]] == [width] * (len(layers) - 1)
        assert (last.in_channels, last.out_channels, last.residual) == (width, 24, width == 24)
    assert space.size == 2 * 2 * (4 + 16) * 2
    arch = space.decode(small[None])[0]
    for wrong, message in (
        ([16], "needs a list 'widths' of 2 values"),
        ([17, 24], "stage1.width of mine.toml is one of [16, 24], got 17"),
    ):
        with pytest.raises(InvalidInputError, match=re.escape(message)):
            space.encode([{**arch, "widths": wrong}])
    again = spaces.space(**space.spec)
    assert again.layer_table == space.layer_table


@pytest.mark.parametrize("text", [ELASTIC, CANDIDATES])
def test_widths_need_not_be_multiples_of_eight(text, write):
    """A block that does not expand is as wide as its input."""
    odd = (
        text.replace("[stem]\nwidth = 8", "[stem]\nwidth = 12")
        .replace("expand_ratios = [2, 4]", "expand_ratios = [1, 4]")
        .replace("width = 16", "width = 36").replace("[first]\nwidth = 8", "[first]\nwidth = 20")
    )  # fmt: skip
    check_space(spaces.space(write(odd)))


def test_a_table_of_ones_own_keeps_its_resolutions(write):
    digits = load_digits((), seed=0, max_size=64)
    path = write(ELASTIC)
    assert space_for(path, digits).resolutions == (16, 24)
    assert space_for(path, digits, [32]).resolutions == (32,)
    assert space_for("mobile-plain", digits).resolutions == (20, 24, 28)  # the data has 28


def test_a_file_with_a_byte_order_mark_is_read(write):
    assert spaces.space(write("\ufeff" + ELASTIC)).size == spaces.space(write(ELASTIC)).size


def test_arguments_override_the_tables(write):
    space = spaces.space(write(ELASTIC), 7, 1, [32])
    layers = [node.layer for node in space.layers(space.smallest()[0])]
    assert (layers[0].in_channels, layers[0].height, layers[-1].out_channels) == (1, 32, 7)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("stride = 1", "stride = 3", "line 21: stride of stage 2 is one of 1, 2, got 3"),
        ("depths = [1, 2]", "depths = []", "line 17: depths of stage 1 needs at least one option"),
        ("[3, 5]", "[]", "line 2: kernel_sizes needs at least one option, got []"),
        ("[3, 5]", "[3, 4]", "line 2: kernel_sizes is a list: each is an odd number from 1 to 31"),
        ("[2, 4]", "[4, 4]", "line 3: expand_ratios names an option twice"),
        ("[2, 4]", "4", "line 3: expand_ratios is a list of options, got 4"),
        ("width = 24", "widht = 24", "line 20: unknown key 'widht' of stage 2 (did you"),
        ("features = 16", "feature_maps = 3\nzzz = 1", "unknown key 'feature_maps' of head"),
        ("num_classes", "dropout = 0.1\nnum_classes", "line 6: unknown key 'dropout' (there are"),
        ("width = 16\n", "widths = []\n", "line 15: widths of stage 1 needs at least one"),
        ("width = 16\n", "", "line 14: stage 1 lacks the key 'width'"),
        ("[stem]\nwidth = 8\n", "", "the table lacks the key 'stem'"),
        ('"h_swish"', '"swish"', "line 22: activation of stage 2 is one of \"none\", \"relu\""),
        ("se = true", 'se = "yes"', "line 23: se of stage 2 is one of false, true, got 'yes'"),
        ("se = true", "se = 1", "line 23: se of stage 2 is one of false, true, got 1"),
        ("stride = 2", "stride = true", "line 16: stride of stage 1 is one of 1, 2, got True"),
        ("[16, 24]", "[4]", "line 5: resolutions is a list: each is a whole number from 8"),
        ("[16, 24]", '[16, "24x"]', "line 5: resolutions is a list: each is a whole number"),
        ("[16, 24]", '["24x9999"]', "line 5: resolutions is a list: each is a whole number"),
        ("[16, 24]", '["24x40", "24x40"]', "line 5: resolutions names an option twice"),
        ("num_classes = 3", "num_classes = 0", "line 6: num_classes is a whole number from 1"),
        ('operator = "mbconv"', 'operator = "fire"', 'line 1: operator is "mbconv", got \'fire\''),
        ('operator = "mbconv"\n', "", "give either operator"),
        ("depths = [1]", "depth = 1", "line 24: unknown key 'depth' of stage 2 (did you mean"),
        ("width = 24", "width = 24\nwidths = [8]", "line 21: a stage has one width, or widths"),
        ("[16, 24]", f"{list(range(8, 509))}", "501 combinations of widths and resolutions"),
        ("[head]", "[[head]]", "line 27: head is a table of its own"),
        ("[[stages]] # a wider one", "[stages2]", "line 19: unknown key 'stages2'"),
        ("[stem]", "[stem", "cannot be read as TOML"),
        ("width = 8\n\n[first]", "width = 99999\n\n[first]", "line 9: width of stem is a whole"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(write, old, new, message):
    assert old in ELASTIC
    path = write(ELASTIC.replace(old, new, 1))
    with pytest.raises(InvalidInputError) as caught:
        dn.space(path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"zero"]',
            '"zero", "fire"]',
            "line 1: operators is a list: each is zero, mbcon",
        ),
        ('["mbconv", "sep_conv_5x5", "zero"]', '["zero"]', "needs an operator beside zero"),
        (
            "depth = 2\n",
            "depths = [1]\n",
            "unknown key 'depths' of stage 1 (did you mean 'de",
        ),
        ("kernel_sizes = [3, 5]\n", "", "line 13: stage 1 lacks the key 'kernel_sizes'"),
        ('"sep_conv_5x5"', '"sep_conv_4x4"', "got ['mbconv', 'sep_conv_4x4', 'zero']"),
    ],
)
def test_what_is_wrong_with_candidates(write, old, new, message):
    assert old in CANDIDATES
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        dn.space(write(CANDIDATES.replace(old, new, 1)))


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(MissingFileError, match=r"none\.toml does not exist"):
        dn.space(str(tmp_path / "none.toml"))
    (tmp_path / "image.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match="cannot be read as TOML"):
        dn.space(str(tmp_path / "image.toml"))


@pytest.mark.parametrize("text", [ELASTIC, CANDIDATES], ids=["elastic", "candidates"])
def test_a_spec_carries_the_table(write, text):
    """What was trained is what is exported, whatever became of the file."""
    path = write(text)
    before = spaces.space(path, 5, 1, [16])
    spec = json.loads(json.dumps(before.spec))
    write(text.replace("width = 24", "width = 32"))
    again = spaces.space(**spec)
    assert again.layer_table == before.layer_table
    assert (again.spec, again.choices, again.key) == (before.spec, before.choices, before.key)
    assert spaces.space(path, 5, 1, [16]).layer_table != before.layer_table
    wide = again.with_resolutions([16, 32])
    assert (wide.spec["table"], wide.key) == (before.spec["table"], before.key)


def test_a_changed_file_is_another_space_to_a_profile(write):
    first = space_key(dn.space(write(ELASTIC)), "fp32")
    assert re.fullmatch(r"fp32/mine\.toml@[0-9a-f]{8}/3/3", first)
    assert space_key(dn.space(write("# a comment\n" + ELASTIC)), "fp32") == first
    written_out = ELASTIC.replace("se = true", "se = true\nexpand_ratios = [2, 4]")
    assert space_key(dn.space(write(written_out)), "fp32") == first
    for old, new in (("[3, 5]", "[3, 7]"), ("se = true", "se = false"), ("[1, 2]", "[1, 3]")):
        assert space_key(dn.space(write(ELASTIC.replace(old, new))), "fp32") != first
    assert space_key(dn.space("mobile-small"), "fp32") == "fp32/mobile-small/10/3"


def test_a_copy_of_a_table_that_ships_is_a_space_of_its_own(tmp_path):
    shipped = spaces.tables.FOLDER / "mobile-small.toml"
    copy = tmp_path / "copy.toml"
    copy.write_text(shipped.read_text())
    space, original = dn.space(str(copy)), dn.space("mobile-small")
    assert space.layer_table == original.layer_table
    assert space.key.startswith("copy.toml@")
    assert original.spec == {
        "name": "mobile-small", "num_classes": 10, "in_channels": 3, "resolutions": [20, 24, 28]
    }  # fmt: skip


@pytest.mark.parametrize("name", shipped_names())
def test_text_and_table_say_the_same(name):
    table = shipped_table(name)
    again = parse_table(table.text)
    assert again.text == table.text
    assert again.resolved == table.resolved
    empty = {"kernel_sizes": (), "expand_ratios": (), "stages": ()}
    assert replace(again, **empty) == replace(table, **empty)


@pytest.mark.parametrize("text", ["{", "[]", '{"operator": "mbconv"}', '{"stages": [3]}'])
def test_a_table_that_was_edited_in_an_artefact(text):
    with pytest.raises(InvalidInputError, match="the table of a space"):
        spaces.space("mine.toml", table=text)


def test_mobile_plain_has_relu_alone_and_no_squeeze_and_excitation():
    plain, small = dn.space("mobile-plain"), dn.space("mobile-small")
    assert {layer.activation for layer in plain.layer_table} == {"relu"}
    assert {layer.se_channels for layer in plain.layer_table} == {0}
    assert plain.choices == small.choices
    rows = small.sample(50, np.random.default_rng(0))
    assert (plain.macs(rows) < small.macs(rows)).all()


@pytest.mark.parametrize(
    "spec",
    [
        {}, {"name": None}, {"name": "mobile-small", "resolutions": 0},
        {"name": "mobile-small", "in_channels": "x"}, {"name": "darts", "resolutions": 5},
    ],
)  # fmt: skip
def test_a_file_that_describes_no_space(spec):
    with pytest.raises(InvalidInputError, match="which describes none"):
        spaces.recorded_space(spec)
