"""Cell spaces: the published DARTS, genotypes, and what cannot be a cell."""

from __future__ import annotations

import numpy as np
import pytest

from deploynas import spaces
from deploynas.errors import InvalidInputError
from deploynas.spaces import genotype, operation, parse_genotype

# The best cell that Liu, Simonyan and Yang 2019 publish ("DARTS_V2"), as they write it.
PUBLISHED = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), "
    "('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)


def test_the_published_network_has_its_published_size():
    """20 cells of 36 channels: 3.3 M parameters, 3,349,342 as the published code counts them."""
    space = spaces.space("darts", channels=36, cells=20)
    arch = space.encode([parse_genotype(PUBLISHED) | {"resolution": 32}])
    assert space.params(arch).tolist() == [3_349_342]
    assert 520e6 < space.macs(arch)[0] < 535e6  # the paper's table says 528 M
    reductions = [i for i, cell in enumerate(space.cells) if cell.is_reduction]
    assert reductions == [6, 13]


def test_size_is_that_of_the_paper():
    """Section 3.1.1: about 10^9 cells of a kind, 10^18 pairs of them."""
    space = spaces.space("darts")
    pairs, ops = np.prod([1, 3, 6, 10]), 7**8
    assert space.size == int(pairs * ops) ** 2


def test_genotypes_print_and_parse():
    space = spaces.space("darts")
    for arch in space.sample(50, np.random.default_rng(0)):
        (written,) = space.decode(arch[None])
        read = parse_genotype(genotype(written)) | {"resolution": 32}
        assert np.array_equal(space.encode([read])[0], arch)


def edges(*normal):
    rest = ["sep_conv_3x3<0", "sep_conv_3x3<1"] * 3
    return {"resolution": 28, "normal": [*normal, *rest[2:]], "reduction": rest}


@pytest.mark.parametrize(
    ("normal", "says"),
    [
        (("sep_conv_9x9<0", "skip_connect<1"), "no operation 'sep_conv_9x9'"),
        (("sep_conv_3x3<2", "skip_connect<1"), "no cycles"),
        (("sep_conv_3x3<1", "skip_connect<1"), "reads 1 twice"),
        (("sep_conv_3x3", "skip_connect<1"), "an edge is written like"),
        (("sep_conv_3x3<0",), "a list 'normal' of 6 edges"),
    ],
)
def test_impossible_cells(normal, says):
    with pytest.raises(InvalidInputError, match=says):
        spaces.space("darts-small").encode([edges(*normal)])


@pytest.mark.parametrize(
    "text",
    [
        "", "Genotype(", "Genotype()", "__import__('os')", "Genotype(normal=[1], reduce=[2])",
        "Genotype(normal=[('a', 0)], reduce=open('x'))",
    ],
)  # fmt: skip
def test_what_is_not_a_genotype(text):
    with pytest.raises(InvalidInputError, match="not a genotype"):
        parse_genotype(text)


def test_a_cell_that_leaves_out_a_node():
    with pytest.raises(InvalidInputError, match="leaves out"):
        parse_genotype(PUBLISHED.replace("normal_concat=[2, 3, 4, 5]", "normal_concat=[4, 5]"))


def test_operations_have_the_strides_of_their_edges():
    """Only operations on a reduction cell's inputs halve the side, each of them once."""
    assert operation("skip_connect", 8, 16, 1) is None
    assert operation("none", 8, 16, 2) is None
    for name in spaces.space("darts").table.operations:
        layer = operation(name, 8, 15, 2)
        assert (layer.out_height, layer.out_channels) == (8, 8)
    with pytest.raises(InvalidInputError, match="no operation 'sep_conv_9x9'"):
        operation("sep_conv_9x9", 8, 16, 1)


def test_arguments_of_a_space():
    space = spaces.space("darts:channels=8,cells=5,operations=skip_connect+sep_conv_3x3")
    assert (space.table.channels, space.table.cells, space.table.nodes) == (8, 5, 4)
    assert spaces.space(**space.spec).layer_table == space.layer_table
    wrong_ones = "darts:width=3", "darts:cells=x", "darts:operations=conv", "mobile-small:cells=3"
    for wrong in wrong_ones:
        with pytest.raises(InvalidInputError):
            spaces.space(wrong)
