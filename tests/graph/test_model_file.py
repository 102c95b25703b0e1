"""Weights wherever a file has them, and files that are none."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploynas.device.wire import Parcel
from deploynas.errors import InvalidInputError, MissingFileError
from deploynas.graph.costs import node_costs
from deploynas.graph.model_file import ModelFile, is_model

SIDE = 16


def value(name, *shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def weight(name, seed=0):
    numbers = np.random.default_rng(seed).normal(size=(SIDE, SIDE)).astype(np.float32)
    return numpy_helper.from_array(numbers, name)


def model_of(nodes, inputs, outputs, initializer=(), functions=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializer))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=list(functions))


def branches(in_constant=False):
    """An If with two products in one branch, one in the other; weights in its bodies alone."""

    def body(*names):
        nodes, before = [], "x"
        for name in names:
            if in_constant:
                nodes.append(helper.make_node("Constant", [], [name], value=weight(name)))
            nodes.append(helper.make_node("MatMul", [before, name], [f"{name}.y"]))
            before = f"{name}.y"
        stored = [] if in_constant else [weight(name) for name in names]
        return helper.make_graph(nodes, names[0], [], [value(before, 1, SIDE)], stored)

    nodes = [
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["yes"], ["y"], then_branch=body("a"), else_branch=body("b", "c")),
    ]
    return model_of(nodes, [value("x", 1, SIDE)], [value("y", 1, SIDE)])


def beside(model, path):
    """Save with every weight in ``w.bin``, those of bodies too."""
    convert = onnx.external_data_helper.set_external_data
    content, graphs = b"", [model.graph]
    while graphs:
        graph = graphs.pop()
        constants = [a.t for n in graph.node for a in n.attribute if a.HasField("t")]
        for tensor in (*graph.initializer, *constants):
            if len(tensor.dims) == 2:
                raw = tensor.raw_data
                convert(tensor, "w.bin", len(content), len(raw))
                tensor.ClearField("raw_data")
                content += raw
        graphs += [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
    (path.parent / "w.bin").write_bytes(content)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("in_constant", [False, True])
def test_weights_inside_bodies(in_constant, tmp_path):
    whole = branches(in_constant)
    path = beside(branches(in_constant), tmp_path / "m.onnx")
    file = ModelFile(path)
    assert file.external == [tmp_path / "w.bin"]
    assert file.num_bytes == path.stat().st_size + 3 * SIDE * SIDE * 4
    (tmp_path / "copy").mkdir()
    copy = file.fixed((), tmp_path / "copy")
    assert onnx.load(copy).SerializeToString() == whole.SerializeToString()
    assert Parcel.of([copy], copy).literal  # of one piece
    with pytest.raises(InvalidInputError, match="weights in a file beside it"):
        Parcel.of([path], path)
    (tmp_path / "w.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InvalidInputError, match="w.bin is a Git LFS pointer"):
        ModelFile(path)
    (tmp_path / "w.bin").write_bytes(bytes(range(100)))
    with pytest.raises(InvalidInputError, match="has 100 bytes, and 3,072 are needed"):
        ModelFile(path)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(MissingFileError, match="keeps its weights in w.bin"):
        ModelFile(path)


@pytest.mark.parametrize("in_constant", [False, True])
def test_an_if_costs_its_dearest_branch_and_stores_all(in_constant, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(branches(in_constant), path)
    ((cost,), _) = node_costs(path)
    assert (cost.macs, cost.counted) == (2 * SIDE * SIDE, True)
    assert cost.weight_bytes == 3 * SIDE * SIDE * 4 + 1  # and the condition


@pytest.mark.parametrize(("trips", "counted"), [(5, True), (None, False)])
def test_a_loop_costs_its_body_as_often_as_it_runs(trips, counted, tmp_path):
    nodes = [
        helper.make_node("MatMul", ["v", "w"], ["o"]),
        helper.make_node("Identity", ["c"], ["d"]),
    ]
    number, flag = value("i", kind=TensorProto.INT64), value("c", kind=TensorProto.BOOL)
    body = helper.make_graph(
        nodes, "body", [number, flag, value("v", 1, SIDE)],
        [value("d", kind=TensorProto.BOOL), value("o", 1, SIDE)],
        [weight("w")],
    )  # fmt: skip
    node = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    inputs = [value("x", 1, SIDE)]
    stored = []
    if trips is None:
        inputs.append(value("n", kind=TensorProto.INT64))
    else:
        stored.append(numpy_helper.from_array(np.array(trips), "n"))
    path = tmp_path / "m.onnx"
    onnx.save(model_of([node], inputs, [value("y", 1, SIDE)], stored), path)
    ((cost,), _) = node_costs(path)
    assert (cost.macs, cost.counted) == ((trips or 1) * SIDE * SIDE, counted)
    assert cost.num_weights == SIDE * SIDE + (trips is not None)


def test_functions_are_inlined(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["a", "w"], ["m"]),
        helper.make_node("MatMul", ["m", "w"], ["b"]),
    ]
    function = helper.make_function(
        "own", "Twice", ["a", "w"], ["b"], nodes, [helper.make_opsetid("", 17)],
    )  # fmt: skip
    node = helper.make_node("Twice", ["x", "w"], ["y"], domain="own")
    path = tmp_path / "m.onnx"
    made = model_of(
        [node], [value("x", 1, SIDE)], [value("y", 1, SIDE)], [weight("w")], [function]
    )
    onnx.save(made, path)
    costs, _ = node_costs(path)
    assert [(cost.kind, cost.macs) for cost in costs] == [("MatMul", SIDE * SIDE)] * 2
    assert sum(cost.num_weights for cost in costs) == SIDE * SIDE


@pytest.mark.parametrize("side", [-1, 0, "n", None])
def test_sides_that_are_none(side, tmp_path):
    """Dynamic, told as such: never negative costs, and never none without a word."""
    relu = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = tmp_path / "m.onnx"
    onnx.save(
        model_of([relu], [value("x", side, SIDE)], [value("y", side, SIDE)], [weight("w")]), path
    )
    with pytest.raises(InvalidInputError, match=r"dynamic shape .*--input-shape 1,16"):
        node_costs(path)
    ((cost,), peak) = node_costs(path, ["3,16"])
    assert (cost.macs, peak) == (3 * SIDE * SIDE, 2 * 3 * SIDE * 4)


def test_one_unknown_shape_does_not_lose_the_table(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Invented", ["a"], ["b"], domain="own"),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    path = tmp_path / "m.onnx"
    onnx.save(model_of(nodes, [value("x", 1, SIDE)], [value("y", 1, SIDE)], [weight("w")]), path)
    costs, peak = node_costs(path)
    assert peak is None
    assert [(c.macs, c.counted) for c in costs] == [(SIDE * SIDE, True), (0, False), (0, False)]
    assert (costs[1].input_shape, costs[1].output_shape) == ((1, SIDE), None)


@pytest.mark.slow
def test_models_over_two_gigabytes(tmp_path):
    """The weights are not read: they are a hole in the disk."""
    side = 24_000
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[side, side])
    tensor.raw_data = b""
    onnx.external_data_helper.set_external_data(tensor, "w.bin", 0, side * side * 4)
    tensor.ClearField("raw_data")
    made = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", "n", side)],
        [value("y", "n", side)], [tensor],
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(side * side * 4)
    ((cost,), _) = node_costs(path, [f"1,{side}"])
    assert (cost.macs, cost.num_weights) == (side**2, side**2)
    (tmp_path / "fixed").mkdir()
    copy = ModelFile(path).fixed([f"1,{side}"], tmp_path / "fixed")
    assert ModelFile(copy).num_bytes > side * side * 4
    assert (copy.parent / "w.bin").samefile(tmp_path / "w.bin")  # no second copy


def test_two_files_with_the_weights_of_one(tmp_path):
    path = beside(branches(), tmp_path / "m.onnx")
    old = tmp_path / "old.onnx"
    old.write_bytes(path.read_bytes())
    with pytest.raises(InvalidInputError, match="both read the weights of w.bin"):
        ModelFile(old).require_own_weights(ModelFile(path))
    ModelFile(path).require_own_weights(ModelFile(tmp_path / "." / "m.onnx"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid x", "Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (bytes(100), "nothing but zeros"),
        (b"\x08\x09\x12", "cut off or damaged"),
        (b"PK\x03\x04", "not an ONNX file"),
    ],
)  # fmt: skip
def test_what_stands_in_place_of_a_model(content, said, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=said):
        ModelFile(path)


def test_a_model_is_known_by_its_name_or_content(tmp_path):
    for name in ("MODEL.ONNX", "model", "m.bin"):
        onnx.save(branches(), tmp_path / name, format="protobuf")
        assert is_model(tmp_path / name)
    (tmp_path / "net.config").write_text('{"name": "net"}')
    assert not is_model(tmp_path / "net.config")
