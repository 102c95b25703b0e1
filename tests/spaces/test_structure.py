"""What follows exactly of sums over layers, against every network of small spaces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from deploynas import spaces
from deploynas.spaces import CandidateSpace, MobileSpace
from deploynas.spaces.tables import shipped_table

TINY_CELLS = (
    "darts-small:channels=4,cells=3,nodes=2,operations=skip_connect+max_pool_3x3+sep_conv_3x3"
)


def few_stages(table, **changes):
    stages = tuple(replace(s, depths=s.depths[:2]) for s in table.stages[1:])
    return replace(table, stages=stages, kernel_sizes=(3, 5), **changes)


SMALL = {
    "cells": spaces.space(TINY_CELLS, resolutions=[16]),
    "elastic": MobileSpace(
        "m", few_stages(shipped_table("mobile-small"), expand_ratios=(2, 3), resolutions=(20, 28))
    ),
    "widths": MobileSpace(
        "w",
        replace(
            shipped_table("mobile-small"), kernel_sizes=(3,), expand_ratios=(2, 3),
            resolutions=(20, 28), stages=tuple(
                replace(stage, depths=(1, 2), widths=(stage.width - 8, stage.width))
                for stage in shipped_table("mobile-small").stages
            ),
        ),
    ),
    "candidates": CandidateSpace(
        "c", few_stages(shipped_table("proxyless-small"), expand_ratios=(3, 6))
    ),
    "one-shot": spaces.space("one-shot", resolutions=[16]),
}  # fmt: skip


@pytest.fixture(params=SMALL)
def space(request):
    return SMALL[request.param]


@pytest.mark.slow
def test_everything_is_every_canonical_row_once(space):
    everything = space.everything()
    assert len(everything) == space.size == len(np.unique(everything, axis=0))
    assert np.array_equal(space.canonical(everything), everything)
    known = {row.tobytes() for row in everything}
    assert {row.tobytes() for row in space.sample(2_000, np.random.default_rng(0))} <= known


@pytest.mark.parametrize("seed", [0, 1])
def test_least_and_most(space, seed):
    values = np.random.default_rng(seed).normal(size=len(space.layer_table))  # negative ones too
    sums = space.sum_over_layers(space.everything(), values)
    own = space.sums(values)
    for (found, row), wanted in ((own.least(), sums.min()), (own.most(), sums.max())):
        assert found == pytest.approx(wanted)
        assert space.sum_over_layers(space.as_rows(row), values)[0] == pytest.approx(wanted)
    assert np.array_equal(space.ends(values)[0], space.as_rows(own.least()[1])[0])


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_counts_and_draws(space, share):
    values = np.random.default_rng(2).normal(size=len(space.layer_table))
    everything = space.everything()
    sums = space.sum_over_layers(everything, values)
    limit = float(np.quantile(sums, share)) + 1e-9
    inside = everything[sums <= limit]
    own = space.sums(values)
    assert np.exp(own.log_count(limit)) == pytest.approx(len(inside), rel=0.05, abs=2)
    assert own.log_count(float(sums.min()) - 1) == -np.inf
    drawn = space.as_rows(own.sample(20_000, limit, np.random.default_rng(0)))
    assert len(drawn) > 15_000
    assert (space.sum_over_layers(drawn, values) <= limit + 1e-9).all()
    # every network inside is as likely: by chi-square over groups of them
    place = {row.tobytes(): i for i, row in enumerate(inside)}
    groups = np.random.default_rng(1).permutation(len(inside)) % min(len(inside), 200)
    found = np.bincount(
        groups[[place[row.tobytes()] for row in drawn]], minlength=groups.max() + 1
    )
    expected = len(drawn) * np.bincount(groups) / len(groups)
    total = float(((found - expected) ** 2 / expected).sum())
    assert stats.chi2.sf(total, int(groups.max())) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("num", [1, 2, 3])
def test_several_limits_are_kept_together_where_any_network_keeps_them(space, num):
    rng, seen = np.random.default_rng(3), set()
    values = rng.normal(size=(len(space.layer_table), num))
    everything = space.everything()
    sums = np.stack([space.sum_over_layers(everything, v) for v in values.T], axis=1)
    own = space.sums(values)
    for shares in rng.uniform(0, 0.3, (40, num)):
        limits = [float(np.quantile(sums[:, k], share)) + 1e-9 for k, share in enumerate(shares)]
        limits[0] -= rng.choice([0.0, float(np.ptp(sums[:, 0])) * 0.3])
        row = own.within(limits)
        possible = bool((sums <= limits).all(axis=1).any())
        assert (row is not None) == possible
        if row is not None:
            reached = [space.sum_over_layers(space.as_rows(row), v)[0] for v in values.T]
            assert (np.array(reached) <= np.array(limits) + 1e-9).all()
        seen.add(possible)
    assert seen == {True, False}


@pytest.mark.slow
def test_more_than_255_options_do_not_wrap():
    """24 nodes: the last one's inputs are one of 300 pairs."""
    space = spaces.space("darts:nodes=24")
    assert space.num_options.max() == 300
    archs = np.concatenate(
        [
            space.as_rows(space.num_options - 1),
            space.sample(50, np.random.default_rng(0)),
            space.uniform(),
        ]
    )
    assert archs.max() > 255
    assert np.array_equal(space.encode(space.decode(archs)), archs)
    edges = space.decode(archs[:1])[0]["normal"][-2:]
    assert [edge.partition("<")[2] for edge in edges] == ["23", "24"]
    for rows in (space.mutate(archs, 0.5, np.random.default_rng(1)), space.smallest()):
        assert np.array_equal(space.encode(space.decode(rows)), rows)
