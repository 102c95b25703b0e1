"""Costs counted in ONNX files, against the spaces' own exact arithmetic."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploynas import spaces
from deploynas.errors import InvalidInputError, MissingFileError
from deploynas.graph import RandomWeights, emit
from deploynas.graph.costs import node_costs


def write(path, nodes):
    path.write_bytes(emit(nodes, RandomWeights()).SerializeToString())
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", spaces.space_names())
def test_emitted_networks(name, tmp_path):
    """MACs are equal. Params are equal once each folded norm's C numbers are counted as 2 C."""
    space = spaces.space(name, resolutions=[48])
    archs = np.concatenate(
        [space.smallest(), space.largest(), space.sample(4, np.random.default_rng(3))]
    )
    for arch, macs, params, weight_bytes in zip(
        archs, space.macs(archs), space.params(archs), space.weight_bytes(archs), strict=True
    ):
        path = write(tmp_path / "net.onnx", space.layers(arch))
        costs, peak_bytes = node_costs(path)
        assert all(c.counted for c in costs)
        assert sum(c.macs for c in costs) == macs
        folded = sum(
            tensor.dims[0]
            for tensor in onnx.load(path).graph.initializer
            if tensor.name.endswith(".conv.bias")  # ".conv" has a norm; SE and classifier none
        )
        # beside weights a file holds the limits of a relu6 and where a shifted map begins
        weights = [c for c in costs if c.kind not in ("Clip", "Slice")]
        num_weights = sum(c.num_weights for c in weights)
        assert num_weights + folded == params
        assert sum(c.weight_bytes for c in weights) == num_weights * 4 == weight_bytes
        assert peak_bytes > max(c.output_bytes for c in costs)


def model(nodes, inputs, outputs, initializers=()):
    def infos(shapes):
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]

    graph = helper.make_graph(nodes, "g", infos(inputs), infos(outputs), list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tensor(name, *shape):
    return onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)


@pytest.mark.parametrize(
    ("node", "x", "y", "weights", "macs"),
    [
        (helper.make_node("Gemm", ["x", "w"], ["y"]), (2, 3), (2, 5), [(3, 5)], 30),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), (2, 3), (2, 5), [(5, 3)], 30),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), (3, 2), (2, 5), [(3, 5)], 30),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (4, 2, 3), (4, 2, 5), [(3, 5)], 120),
        (helper.make_node("Conv", ["x", "w"], ["y"], group=2), (1, 4, 6, 6), (1, 8, 4, 4),
         [(8, 2, 3, 3)], 8 * 16 * 18),
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"]), (1, 4, 6, 6), (1, 8, 8, 8),
         [(4, 8, 3, 3)], 4 * 36 * 72),
        (helper.make_node("Add", ["x", "w"], ["y"]), (2, 3), (2, 3), [(2, 3)], 0),
    ],
)  # fmt: skip
def test_operators(node, x, y, weights, macs, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model([node], {"x": x}, {"y": y}, [tensor("w", *weights[0])]), path)
    ((cost,), peak_bytes) = node_costs(path)
    assert cost.macs == macs
    assert cost.num_weights == np.prod(weights[0])
    assert (cost.input_shape, cost.output_shape) == (x, y)
    assert peak_bytes == 4 * (np.prod(x) + np.prod(y))


def test_a_weight_that_two_nodes_share_counts_once(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    path = tmp_path / "m.onnx"
    onnx.save(model(nodes, {"x": (2, 3)}, {"y": (2, 3)}, [tensor("w", 3, 3)]), path)
    costs, _ = node_costs(path)
    assert [c.num_weights for c in costs] == [9, 0]


def test_a_feature_map_lives_until_its_last_reader(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["b", "x"], ["y"]),
    ]
    path = tmp_path / "m.onnx"
    onnx.save(model(nodes, {"x": (1, 8)}, {"y": (1, 8)}), path)
    _, peak_bytes = node_costs(path)
    assert peak_bytes == 3 * 8 * 4  # x waits for the addition


def test_what_cannot_be_counted(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(MissingFileError):
        node_costs(path)
    path.write_bytes(b"not a model")
    with pytest.raises(InvalidInputError, match="not an ONNX file"):
        node_costs(path)
    path.write_bytes(b"")
    with pytest.raises(InvalidInputError, match="is empty"):
        node_costs(path)
    onnx.save(model([], {"x": (1, 3)}, {"x": (1, 3)}), path)
    with pytest.raises(InvalidInputError, match="holds no operators"):
        node_costs(path)


def test_operators_that_are_not_counted_are_told(tmp_path):
    path = tmp_path / "m.onnx"
    einsum = helper.make_node("Einsum", ["x", "w"], ["y"], equation="ij,jk->ik")
    onnx.save(model([einsum], {"x": (2, 3)}, {"y": (2, 5)}, [tensor("w", 3, 5)]), path)
    ((cost,), _) = node_costs(path)
    assert (cost.macs, cost.counted, cost.num_weights) == (0, False, 15)


def test_what_is_no_tensor_has_no_size(tmp_path):
    path = tmp_path / "m.onnx"
    made = model([helper.make_node("SequenceConstruct", ["x"], ["y"])], {"x": (1, 3)}, {})
    made.graph.output.append(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None))
    onnx.save(made, path)
    ((cost,), peak) = node_costs(path)
    assert (cost.output_shape, cost.output_bytes, peak) == (None, None, None)


def test_a_type_that_there_is_not_has_no_size(tmp_path):
    path = write(
        tmp_path / "net.onnx",
        spaces.space("mobile-small").layers(spaces.space("mobile-small").smallest()[0]),
    )
    damaged = onnx.load(path)
    damaged.graph.value_info.add(name="nothing").type.tensor_type.elem_type = 255
    damaged.graph.value_info[0].type.tensor_type.shape.dim.add().dim_value = 1
    path.write_bytes(damaged.SerializeToString())
    costs, peak_bytes = node_costs(path)
    assert sum(cost.macs for cost in costs) > 0
    damaged.graph.node[0].doc_string = "x"
    content = damaged.SerializeToString().replace(b"Conv", b"C\xdenv")
    path.write_bytes(content)
    with pytest.raises(InvalidInputError):
        node_costs(path)
