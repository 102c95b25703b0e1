"""The space of NAS-Bench-201: sizes by hand, zeros, and every network in ONNX."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from deploynas import spaces
from deploynas.errors import InvalidInputError
from deploynas.nn import recalibrate, supernet_of
from deploynas.spaces.nasbench201 import EDGES, OPERATIONS, cell_text, parse_cell
from deploynas.testing.layers import perturb, require_parity

NONE, SKIP, POOL, CONV1, CONV3 = range(5)


@pytest.fixture(scope="module")
def space():
    return spaces.space("nasbench201")


def rows(space, *cells):
    return space.as_rows([[0, *cell] for cell in cells])


def test_every_cell_is_an_architecture(space):
    assert space.size == len(OPERATIONS) ** len(EDGES) == 15_625
    assert len(np.unique(space.everything(), axis=0)) == space.size


def test_macs_and_params_by_hand(space):
    """A 3x3 convolution of c channels: 9 c^2 weights, 2 c of its batch norm; so for 1x1."""
    cells = list(itertools.islice(itertools.product(range(5), repeat=6), 0, None, 997))
    found = rows(space, *cells, [NONE] * 6, [CONV3] * 6)
    fixed_params = 464 + (4_672 + 9_280 + 512) + (18_560 + 36_992 + 2_048) + 128 + 650
    fixed_macs = 3 * 9 * 16 * 32**2 + 2 * (14_336 * 16**2) + 640
    params, macs = [], []
    for row in found:
        kernels = [{CONV1: 1, CONV3: 9}.get(op, 0) for op in row[1:].tolist()]
        own = [k * c * c + 2 * c for c in (16, 32, 64) for k in kernels if k]
        params.append(fixed_params + 5 * sum(own))
        macs.append(fixed_macs + 5 * sum(kernels) * 3 * 16**2 * 32**2)
    assert space.params(found).tolist() == params
    assert space.macs(found).tolist() == macs
    assert params[-2:] == [73_306, 1_531_546]
    assert np.round(np.array(macs[-2:]) / 1e6, 2).tolist() == [7.78, 220.12]


def test_an_edge_of_none_is_no_layer(space):
    (row,) = rows(space, [CONV3, NONE, SKIP, CONV1, NONE, NONE])
    kinds = [node.layer.kind for node in space.layers(row)]
    # node 2 is node 1 handed on, and the output is one edge: nothing is added up in a cell
    assert kinds.count("add") == 2  # of the two residual blocks
    assert "zeros" not in kinds
    assert kinds.count("relu_conv") == 2 * 15 + 2 * 2


@torch.no_grad()
@pytest.mark.parametrize(
    "cell",
    [
        [NONE] * 6,
        [CONV3] * 6,
        [SKIP] * 6,
        [NONE, NONE, CONV3, SKIP, CONV1, NONE],  # a convolution of zeros
        [CONV1, POOL, NONE, NONE, NONE, NONE],  # nothing reaches the output
        [SKIP, NONE, SKIP, NONE, SKIP, SKIP],  # the input twice
    ],
)
def test_shared_weights_and_onnx(cell):
    space = spaces.space("nasbench201:channels=4,cells=1", 3, 1, [9])
    torch.manual_seed(0)
    supernet = supernet_of(space)
    perturb(supernet)
    (row,) = rows(space, cell)
    x = torch.randn(4, 1, 9, 9)
    network = supernet.extract(row)
    torch.testing.assert_close(network.train()(x), supernet.train()(x, row))
    network = supernet.extract(row)
    recalibrate(network, [x])
    assert network(x).std() > 1e-4 or cell in ([NONE] * 6, [CONV1, POOL, NONE, NONE, NONE, NONE])
    require_parity(network, x, str(cell))


@torch.no_grad()
def test_zeros_where_no_edge_feeds_a_node(space):
    network = supernet_of(space).extract(rows(space, [NONE] * 6)[0])
    outputs = {}
    for number, (module, node) in enumerate(zip(network.layers, network.nodes, strict=True)):
        if node.layer.kind == "zeros":
            module.register_forward_hook(
                lambda module, inputs, output, number=number: outputs.update({number: output})
            )
    network(torch.randn(2, 3, 32, 32))
    assert outputs
    assert all((output == 0).all() and len(output) == 2 for output in outputs.values())


def test_cells_as_the_tables_write_them(space):
    text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"
    (arch,) = space.decode(space.encode([{"resolution": 32, **parse_cell(text)}]))
    assert cell_text(arch) == text
    assert arch["ops"] == [
        "nor_conv_3x3", "none", "skip_connect", "avg_pool_3x3", "none", "nor_conv_1x1",
    ]  # fmt: skip
    for wrong in ("", text[:-1], text.replace("~2", "~0"), text + text):
        with pytest.raises(InvalidInputError, match="not a cell"):
            parse_cell(wrong)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ({"resolution": 33, "ops": ["none"] * 6}, "resolution of nasbench201 is one of"),
        ({"resolution": 32, "ops": ["none"] * 5}, "a list 'ops' of 6"),
        ({"resolution": 32, "ops": ["none"] * 5 + ["conv"]}, "no operation 'conv'"),
    ],
)
def test_what_is_no_architecture(space, arch, message):
    with pytest.raises(InvalidInputError, match=message):
        space.encode([arch])


@pytest.mark.parametrize("name", ["nodes=3", "cells=0", "cells=x"])
def test_what_is_no_space(name):
    with pytest.raises(InvalidInputError, match="nasbench201"):
        spaces.space(f"nasbench201:{name}")


def test_other_sizes_have_a_name_of_their_own():
    assert spaces.space("nasbench201", cells=1).name == "nasbench201:cells=1"
    assert spaces.space("nasbench201:cells=5").name == "nasbench201"
