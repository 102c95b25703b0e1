"""The spaces that ship: their sizes, their own encodings, what they refuse.

What every space promises is checked by :mod:`deploynas.testing`.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest

from deploynas import spaces
from deploynas.errors import InvalidInputError, UnknownNameError
from deploynas.spaces import CandidateSpace, MobileSpace
from deploynas.spaces.staged import Stage, StageTable

NAMES = spaces.space_names()
TINY = StageTable(
    stem_width=8,
    first_width=8,
    first_activation="relu",
    stages=(
        Stage(16, 2, "relu", False, (1, 2)),
        Stage(24, 1, "h_swish", True, (1,)),
    ),
    head_width=32,
    head_features=16,
    activation="h_swish",
    kernel_sizes=(3, 5),
    expand_ratios=(2, 4),
    resolutions=(16, 24),
    num_classes=3,
)


@functools.cache
def named(name):
    return spaces.space(name)


@pytest.fixture(params=NAMES)
def space(request):
    return named(request.param)


@pytest.fixture(params=[n for n in NAMES if isinstance(spaces.space(n), MobileSpace)])
def mobile(request):
    return named(request.param)


@pytest.fixture
def archs(space):
    return space.sample(200, np.random.default_rng(1))


def assert_valid(space, archs):
    assert ((archs >= 0) & (archs < space.num_options)).all()
    assert np.array_equal(space.canonical(archs), archs)


def test_crossover(space, archs):
    mothers, fathers = archs[:100], archs[100:]
    children = space.crossover(mothers, fathers, np.random.default_rng(7))
    assert_valid(space, children)
    again = space.crossover(mothers, fathers, np.random.default_rng(7))
    assert np.array_equal(children, again)
    always = range(1 + len(space.table.stages)) if isinstance(space, MobileSpace) else [0, 1]
    for column in always:  # the choices that always count
        values = children[:, column]
        assert ((values == mothers[:, column]) | (values == fathers[:, column])).all()
    same = space.crossover(mothers, mothers, np.random.default_rng(7))
    assert np.array_equal(same, mothers)


def test_sample_spread(space):
    spread = space.sample_spread(200, np.random.default_rng(7))
    assert_valid(space, spread)
    macs = space.macs(spread)
    assert macs[:50].mean() < macs[-50:].mean()


def test_large_batches_equal_small_ones(space):
    rows = space.sample(16_384 + 5, np.random.default_rng(4))
    macs = space.macs(rows)
    assert np.array_equal(macs[-10:], space.macs(rows[-10:]))
    assert space.macs(rows[:0]).shape == (0,)


@pytest.mark.slow
def test_costs_grow_from_smallest_to_largest(space):
    ends = np.concatenate([space.smallest(), space.largest()])
    for cost in (space.macs, space.params, space.weight_bytes, space.peak_memory_bytes):
        small, large = cost(ends)
        between = cost(space.sample(100, np.random.default_rng(5)))
        assert small <= between.min()
        assert between.max() <= large


def test_options_of_a_space():
    space = spaces.space("mobile-small", num_classes=7, in_channels=1, resolutions=[32, 16, 32])
    assert space.resolutions == (16, 32)
    first, last = space.layers(space.largest())[0], space.layers(space.largest())[-1]
    assert first.layer.in_channels == 1
    assert last.layer.out_channels == 7


def test_size_by_brute_force():
    space = MobileSpace("tiny", TINY)
    rows = np.array(list(itertools.product(*(range(n) for n in space.num_options))))
    distinct = np.unique(space.canonical(rows), axis=0)
    # Two resolutions; a stage of one or two blocks of four kinds, and one block of four kinds.
    assert space.size == 2 * (4 + 16) * 4 == len(distinct)
    assert len({tuple(space.layers(row)) for row in rows}) == space.size


def test_size_of_a_candidate_space_by_brute_force():
    space = CandidateSpace(
        "tiny", replace(TINY, stages=(TINY.stages[0], replace(TINY.stages[1], depths=(1, 2, 3))))
    )
    rows = np.array(list(itertools.product(*(range(n) for n in space.num_options))))
    distinct = np.unique(space.canonical(rows), axis=0)
    # The first block of a stage is one of four; up to one, and up to two, may follow.
    assert space.size == 2 * 4 * (1 + 4) * 4 * (1 + 4 + 16) == len(distinct)
    assert len({tuple(space.layers(row)) for row in rows}) == space.size


def test_proxyless_as_published():
    """21 blocks; 7 candidates where a block may be left out, else 6 (Cai et al. 2019, 4.2)."""
    space = spaces.space("proxyless-mobile")
    assert len(space.blocks) == 21
    assert space.num_options[1:].tolist() == [6, 7, 7, 7] * 5 + [6]
    assert space.size == (6 * sum(6**d for d in range(4))) ** 5 * 6
    with_zero = space.encode(
        [
            {
                "resolution": 224,
                "ops": ["mbconv_k3_e3", "zero", "mbconv_k7_e6", "zero"] * 5 + ["mbconv_k5_e6"],
            }
        ]
    )
    assert len(space.layers(with_zero[0])) == 2 + 11 + 1


@pytest.mark.parametrize("ops", [None, ["mbconv_k3_e3"], ["zero"] * 9, ["mbconv_k9_e3"] * 9])
def test_encode_wrong_operations(ops):
    space = spaces.space("proxyless-small")
    with pytest.raises(InvalidInputError, match="ops|op of proxyless-small is one of"):
        space.encode([{"resolution": 28, "ops": ops}])


def test_published_size():
    """About 2e19 networks at one resolution (Cai et al. 2020, section 3.1)."""
    space = spaces.space("ofa-mbv3-w1.0", resolutions=[224])
    assert space.size == (9**2 + 9**3 + 9**4) ** 5


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [("mobile-smal", "mobile-small"), ("ofa-mbv3-1.2", "ofa-mbv3-w1.2")],
)
def test_unknown_name_suggests_the_nearest(typed, nearest):
    with pytest.raises(UnknownNameError, match=f"did you mean '{nearest}'"):
        spaces.space(typed)


def test_unknown_name_lists_all_where_none_is_near():
    with pytest.raises(UnknownNameError) as caught:
        spaces.space("zzz")
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize(
    "options", [{"num_classes": -1}, {"in_channels": 0}, {"resolutions": [4, 32]}]
)
def test_impossible_options(options):
    with pytest.raises(InvalidInputError, match="needs at least"):
        spaces.space("mobile-small", **options)


@pytest.mark.parametrize(
    ("key", "place", "value", "named_choice"),
    [
        ("depths", 0, 99, "stage1.depth"),
        ("depths", 0, "2", "stage1.depth"),
        ("kernel_sizes", 0, 4, "stage1.block1.kernel_size"),
        ("expand_ratios", 0, 5, "stage1.block1.expand_ratio"),
    ],
)
def test_encode_names_a_wrong_option(mobile, key, place, value, named_choice):
    arch = mobile.decode(mobile.smallest())[0]
    arch[key][place] = value
    with pytest.raises(InvalidInputError, match=named_choice) as caught:
        mobile.encode([arch])
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("key", ["depths", "kernel_sizes", "expand_ratios"])
def test_encode_wrong_length(mobile, key):
    space = mobile
    arch = space.decode(space.smallest())[0]
    arch[key] = arch[key] * 2
    with pytest.raises(InvalidInputError, match=f"'{key}'.*has {len(arch[key]) // 2} values"):
        space.encode([arch])
    del arch[key]
    with pytest.raises(InvalidInputError, match=f"needs the list '{key}'"):
        space.encode([arch])


def test_encode_ignores_values_without_effect(mobile):
    space = mobile
    row = space.smallest()
    arch = space.decode(row)[0]
    deepest = space.table.stages[0].depths[-1]
    arch["kernel_sizes"][deepest - 1] = "anything"
    assert np.array_equal(space.encode([arch]), row)


@pytest.mark.parametrize("shape", [(5,), (3, 2), (1, 1, 1)])
def test_wrong_shape(space, shape):
    wrong = np.zeros(shape, int)
    for function in (space.macs, space.layer_ids, space.canonical, space.decode):
        with pytest.raises(InvalidInputError, match="rows of"):
            function(wrong)


def test_an_index_out_of_range_is_refused() -> None:
    mobile = spaces.space("mobile-small")
    row = mobile.smallest()
    for value in (3, 255):
        bad = row.copy()
        bad[0, -1] = value
        with pytest.raises(InvalidInputError, match="not an option's index"):
            mobile.macs(bad)
    with pytest.raises(InvalidInputError, match="not an option's index"):
        mobile.macs(row.astype(float))


def test_no_classes_and_no_resolutions_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least one class"):
        spaces.space("mobile-small", num_classes=0)
    with pytest.raises(InvalidInputError, match="at least one class"):
        spaces.space("mobile-small", resolutions=[])


def test_the_published_form_of_an_architecture():
    space = spaces.space("ofa-mbv3-w1.0")
    ours = {"resolution": 224, "depths": [2, 3, 4, 3, 2], "kernel_sizes": [3] * 20,
            "expand_ratios": [4] * 20}  # fmt: skip
    theirs = {"ks": [3] * 20, "e": 4, "d": [2, 3, 4, 3, 2], "r": [224], "wid": None}
    assert np.array_equal(space.encode([theirs]), space.encode([ours]))
    for change, said in (
        ({"ks": [9] * 20}, r"kernel_size of .* is one of \[3, 5, 7\], got 9"),
        ({"ks": [3] * 10}, "'ks' of ofa-mbv3-w1.0 has 20 values, got 10"),
        ({"e": None}, "needs the list 'e'"),
        ({"e": True}, "needs the list 'e'"),
        ({"wid": 1.2}, "no elastic width"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            space.encode([{**theirs, **change}])
