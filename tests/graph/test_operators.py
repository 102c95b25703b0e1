"""What runs for a node: folding, fusing and layouts, as ONNX Runtime's optimised graphs show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploynas.graph.costs import node_costs
from deploynas.graph.fragments import RECIPES, Fragment, build, grid
from deploynas.graph.operators import Priced, operators, operators_of_model


def conv(source: str, out: str, weight: str, group: int = 1, side: int = 1) -> onnx.NodeProto:
    return helper.make_node(
        "Conv", [source, weight], [out], name=out, group=group, kernel_shape=[side, side],
        pads=[side // 2] * 4,
    )  # fmt: skip


def node(kind: str, inputs: list[str], out: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [out], name=out, **attributes)


def model(
    nodes: list[onnx.NodeProto],
    shape: list[int],
    weights: dict[str, tuple[int, ...]],
    output: list[int] | None = None,
) -> onnx.ModelProto:
    """Of ``x`` with ``shape`` to the last node's output, weights of ones."""
    arrays = {name: np.ones(sides, np.float32) for name, sides in weights.items()}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, output)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def told(rows: list[Priced]) -> list[str]:
    """A word an operator, in order."""
    return [
        f"{one.kind} {one.variant}".strip() + (" blocked" if one.blocked else "")
        for row in rows
        for one in row.operators
    ]


STEM = conv("x", "a", "w", side=3)
IMAGE = [1, 3, 32, 32]


def test_norms_fold_and_activations_run_inside_a_convolution() -> None:
    one = model(
        [
            STEM, node("BatchNormalization", ["a", "s", "s", "s", "s"], "b"),
            node("Relu", ["b"], "c"), conv("c", "d", "dw", group=32, side=3),
            node("HardSwish", ["d"], "e"), conv("e", "f", "pw"), node("Add", ["c", "f"], "y"),
        ],
        IMAGE, {"w": (32, 3, 3, 3), "s": (32,), "dw": (32, 1, 3, 3), "pw": (32, 32, 1, 1)},
    )  # fmt: skip
    rows = operators_of_model(one)
    assert told(rows) == [
        "conv narrow blocked", "elementwise Relu inside blocked", "depthwise blocked",
        "elementwise HardSwish inside blocked", "pointwise blocked",
        "elementwise Add inside blocked", "call", "reorder out",
    ]  # fmt: skip
    assert [row.operators for row in rows if row.kind == "BatchNormalization"] == [()]
    (stem,) = rows[0].operators
    assert (stem.in_channels, stem.out_channels, stem.out_pixels) == (3, 32, 1024)
    assert stem.macs == 3 * 32 * 9 * 1024
    assert stem.weight_bytes == 4 * 3 * 32 * 9


@pytest.mark.parametrize(
    ("channels", "group", "blocked"),
    [(32, 1, True), (20, 1, True), (18, 1, False), (20, 20, True), (18, 18, False), (64, 4, True),
     (40, 5, False)],
)  # fmt: skip
def test_channels_decide_the_layout(channels: int, group: int, blocked: bool) -> None:
    """As the graphs that ONNX Runtime 1.32 writes with AVX-512."""
    weights = {"w": (channels, 3, 3, 3), "k": (channels, channels // group, 3, 3)}
    rows = operators_of_model(model([STEM, conv("a", "y", "k", group, 3)], IMAGE, weights))
    (second,) = [one for row in rows[1:2] for one in row.operators if one.kind != "reorder"]
    assert second.blocked == blocked
    # what is blocked leaves the layout once, wherever that is
    assert told(rows).count("reorder out") == 1


def test_gates_swishes_and_gelus_are_known_for_what_they_are() -> None:
    one = model(
        [
            STEM, node("Sigmoid", ["a"], "s"), node("Mul", ["a", "s"], "b"),
            node("GlobalAveragePool", ["b"], "p"), conv("p", "q", "k"),
            node("Sigmoid", ["q"], "g"), node("Mul", ["b", "g"], "h"),
            node("Div", ["h", "one"], "d"), node("Erf", ["d"], "e"),
            node("Add", ["e", "one"], "f"), node("Mul", ["h", "f"], "i"),
            node("Mul", ["i", "one"], "y"),
        ],
        IMAGE, {"w": (32, 3, 3, 3), "k": (32, 32, 1, 1), "one": ()},
    )  # fmt: skip
    assert told(operators_of_model(one)) == [
        "conv narrow blocked", "elementwise Swish blocked", "reorder out",
        "global_pool GlobalAveragePool", "reorder in", "pointwise blocked",
        "elementwise Sigmoid inside blocked", "reorder out", "elementwise Mul broadcast",
        "elementwise Gelu", "call",
    ]  # fmt: skip


def test_unknown_operators_keep_their_names_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    one = model([node("Det", ["x"], "y")], [4, 8, 8], {}, [4])
    path.write_bytes(one.SerializeToString())
    (only, _) = operators(path)
    (op,) = only.operators
    assert (op.kind, op.variant, op.in_bytes) == ("unknown", "Det", 4 * 8 * 8 * 4)


@pytest.mark.parametrize("recipe", [*RECIPES, "network"])
def test_fragments_are_valid_always_the_same_and_fully_priced(recipe: str, tmp_path: Path) -> None:
    fragment = Fragment(f"{recipe}-1", 1, recipe == "network")
    path = tmp_path / "m.onnx"
    path.write_bytes(build(fragment).SerializeToString())
    assert path.read_bytes() == build(fragment).SerializeToString()
    costs, _ = node_costs(path)
    rows = operators(path)
    assert len(rows) == len(costs) + 1  # the call
    assert sum(one.macs for row in rows for one in row.operators) == sum(c.macs for c in costs)
    assert "unknown" not in {one.kind for row in rows for one in row.operators}


def test_the_grid_has_every_fragment_once() -> None:
    names = [one.name for one in grid()]
    assert len(names) == len(set(names))
    assert {one.recipe for one in grid()} == {*RECIPES, "network"}
