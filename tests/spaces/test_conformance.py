"""What every search space promises, checked on each one that has a name."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from deploynas import spaces
from deploynas.errors import InvalidInputError, UnknownNameError
from deploynas.spaces import CandidateSpace, MobileSpace, StagedCellSpace, layers
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


def raw_rows(space, n, seed=0):
    """Rows with any option everywhere, also where it has no effect."""
    size = (n, len(space.choices))
    return np.random.default_rng(seed).integers(0, space.num_options, size=size)


def assert_valid(space, archs):
    assert ((archs >= 0) & (archs < space.num_options)).all()
    assert np.array_equal(space.canonical(archs), archs)


def test_encode_decode_round_trip(space, archs):
    for rows in (archs, space.smallest(), space.canonical(space.largest()), space.uniform()):
        dicts = space.decode(rows)
        assert np.array_equal(space.encode(dicts), rows)
        assert space.decode(space.encode(dicts)) == dicts


def test_canonical_is_idempotent_and_keeps_the_network(space):
    rows = raw_rows(space, 60)
    canonical = space.canonical(rows)
    assert np.array_equal(space.canonical(canonical), canonical)
    for row, same in zip(rows, canonical, strict=True):
        assert space.layers(row) == space.layers(same)
    if space.size < math.prod(space.num_options.tolist()):  # not every choice always counts
        assert not np.array_equal(rows, canonical)


def test_canonical_leaves_its_argument(space):
    rows = raw_rows(space, 20)
    before = rows.copy()
    space.canonical(rows)
    assert np.array_equal(rows, before)


def test_equal_networks_are_equal_rows(space):
    base = raw_rows(space, 1)
    rng = np.random.default_rng(2)
    rows = np.repeat(base, 200, axis=0)
    column = rng.integers(0, rows.shape[1], len(rows))  # each row changes one choice
    rows[np.arange(len(rows)), column] = rng.integers(0, space.num_options[column])
    rows = space.canonical(rows)
    networks = [tuple(space.layers(row)) for row in rows]
    keys = [tuple(row) for row in rows]
    assert len(set(networks)) == len(set(keys)) == len(set(zip(networks, keys, strict=True)))
    assert 1 < len(set(keys)) < len(keys)


def test_sample(space):
    first = space.sample(3_000, np.random.default_rng(7))
    assert_valid(space, first)
    assert np.array_equal(first, space.sample(3_000, np.random.default_rng(7)))
    assert not np.array_equal(first, space.sample(3_000, np.random.default_rng(8)))
    for column, num in enumerate(space.num_options):
        assert len(np.unique(first[:, column])) == num


def test_mutate(space, archs):
    mutated = space.mutate(archs, 0.3, np.random.default_rng(7))
    assert_valid(space, mutated)
    assert np.array_equal(mutated, space.mutate(archs, 0.3, np.random.default_rng(7)))
    assert not np.array_equal(mutated, archs)
    assert np.array_equal(space.mutate(archs, 0.0, np.random.default_rng(7)), archs)


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


@pytest.mark.slow
@pytest.mark.parametrize("cost", ["macs", "params", "weight_bytes"])
def test_costs_are_sums_over_layers(space, archs, cost):
    function = getattr(layers, cost)
    expected = [sum(function(node.layer) for node in space.layers(arch)) for arch in archs]
    assert getattr(space, cost)(archs).tolist() == expected


@pytest.mark.slow
def test_peak_memory(space, archs):
    expected = [layers.peak_memory_bytes(space.layers(arch)) for arch in archs]
    assert space.peak_memory_bytes(archs).tolist() == expected


@pytest.mark.slow
def test_sum_and_max_over_layers(space, archs):
    values = np.random.default_rng(3).random(len(space.layer_table))
    index = {layer: i for i, layer in enumerate(space.layer_table)}
    found = [[values[index[n.layer]] for n in space.layers(arch)] for arch in archs]
    np.testing.assert_allclose(
        space.sum_over_layers(archs, values), [sum(f) for f in found], rtol=1e-12
    )
    assert space.max_over_layers(archs, values).tolist() == [max(f) for f in found]


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


def test_layer_keys_are_unique(space):
    assert len({layer.key for layer in space.layer_table}) == len(space.layer_table)
    assert len(set(space.layer_table)) == len(space.layer_table)


def test_every_layer_of_the_table_stands_somewhere(space):
    used = np.unique(np.concatenate([slot.layer_ids.ravel() for slot in space.slots]))
    assert used[used >= 0].tolist() == list(range(len(space.layer_table)))


def test_layers_fit_together(space, archs):
    for arch in archs[:50]:
        nodes = space.layers(arch)
        resolution = space.resolutions[arch[0]]
        shapes = {-1: (space.in_channels, resolution, resolution)}
        for i, node in enumerate(nodes):
            layer = node.layer
            assert len(node.inputs) == layer.num_inputs
            entering = {shapes[source] for source in node.inputs}
            assert entering == {(layer.in_channels, layer.height, layer.width)}
            shapes[i] = (layer.out_channels, layer.out_height, layer.out_width)
            if space.is_chain:
                assert node.inputs == (i - 1,)
        assert shapes[len(nodes) - 1] == (space.num_classes, 1, 1)
        read = {source for node in nodes for source in node.inputs}
        unread = set(range(len(nodes) - 1)) - read
        # what the last cell takes from the cell before may go unread, and nothing else; but where
        # an edge can be none, so may what leads to it
        kinds = {nodes[i].layer.kind for i in unread}
        without_reader = {"relu_conv", "factorised_reduce", "concat"}
        if isinstance(space, StagedCellSpace):
            without_reader |= {"avg_pool", "add", "zeros"}
        assert kinds <= without_reader


def test_spec_rebuilds_the_space(space):
    again = spaces.space(**space.spec)
    assert again.spec == space.spec
    assert again.layer_table == space.layer_table


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


@pytest.mark.parametrize("resolution", [None, 33])
def test_encode_wrong_resolution(space, resolution):
    arch = space.decode(space.smallest())[0] | {"resolution": resolution}
    with pytest.raises(InvalidInputError, match="resolution"):
        space.encode([arch])


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
