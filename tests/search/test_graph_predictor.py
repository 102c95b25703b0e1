"""The predictor that sees cells as graphs, on accuracies that only a graph explains."""

from __future__ import annotations

import numpy as np
import pytest

from deploynas import spaces
from deploynas.profile.latency_model import kendall_tau
from deploynas.search import graph_predictor
from deploynas.search.predictor import fit_predictor
from deploynas.spaces.cells import KINDS


@pytest.fixture(scope="module")
def space():
    return spaces.space("darts-small:channels=4,cells=3", 10, 1, [8])


def depths(space, archs):
    """The longest chain of convolutions in each cell, both together."""
    found = []
    for arch in archs:
        total = 0
        for kind in range(len(KINDS)):
            states = [0, 0]
            for node, pairs in enumerate(space.pairs):
                column = space.column(kind, node)
                sources = pairs[int(arch[column])]
                names = [space.table.operations[int(arch[column + 1 + i])] for i in range(2)]
                ways = zip(sources, names, strict=True)
                states.append(max(states[source] + ("conv" in name) for source, name in ways))
            total += max(states)
        found.append(total)
    return np.array(found) / 20


@pytest.mark.long
def test_it_is_taken_where_the_graph_decides(space):
    archs = space.sample(200, np.random.default_rng(0))
    accuracies = depths(space, archs)
    predictor = fit_predictor(space, archs[:80], accuracies[:80])
    assert predictor.kind == "graph"
    assert set(predictor.held_out) == {"ridge", "mlp", "trees", "process", "graph"}
    assert kendall_tau(predictor.predict(archs[80:]), accuracies[80:]) > 0.5
    again = fit_predictor(space, archs[:80], accuracies[:80], "graph")
    np.testing.assert_array_equal(predictor.predict(archs[80:]), again.predict(archs[80:]))


@pytest.mark.slow
def test_the_order_of_nodes_does_not_matter(space):
    archs = space.sample(40, np.random.default_rng(1)).astype(np.float64)
    predict = graph_predictor.fit(space, archs, depths(space, archs.astype(int)))
    one, other = archs[:1].copy(), archs[:1].copy()
    first, second = space.column(0, 0), space.column(0, 1)
    one[0, [first, second]] = 0  # both nodes read the cell's two inputs
    one[0, first + 1 : first + 3], one[0, second + 1 : second + 3] = (0, 1), (2, 3)
    other[0] = one[0]
    other[0, first + 1 : first + 3], other[0, second + 1 : second + 3] = (2, 3), (0, 1)
    third = space.column(0, 2)  # which reads no node, so that no name of one changes
    one[0, third] = other[0, third] = 0
    np.testing.assert_allclose(predict(one), predict(other), rtol=1e-5)
    other[0, third + 1] = (other[0, third + 1] + 1) % len(space.table.operations)
    assert predict(one)[0] != pytest.approx(predict(other)[0], rel=1e-5)
