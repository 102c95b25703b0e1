"""What is written for ncnn, operator by operator: it answers as ONNX Runtime does."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploynas.errors import InvalidInputError
from deploynas.export.formats import in_format
from deploynas.graph.emit import RandomWeights, emit
from deploynas.runtimes.ncnn import RUNTIME
from deploynas.runtimes.ncnn_param import WRITERS
from deploynas.spaces.layers import Layer, chain

ncnn = pytest.importorskip("ncnn")

RNG = np.random.default_rng(0)
IMAGE = [1, 6, 9, 8]  # sides that are neither even nor equal, channels that fill no vector


def numbers(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def save(path, nodes, constants=(), shape=IMAGE, outputs=("y",), kind=TensorProto.FLOAT, opset=17):
    """A network from ``x`` to ``outputs`` of (operator, inputs, output, attributes)."""
    graph = helper.make_graph(
        [
            helper.make_node(op, inputs.split(" "), [output], name=f"{op} {i}", **attributes)
            for i, (op, inputs, output, attributes) in enumerate(nodes)
        ],
        "test",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in dict(constants).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def answers_of_both(path, shape=IMAGE):
    feeds = {"x": numbers(*shape)}
    expected = ort.InferenceSession(str(path)).run(None, feeds)
    session = RUNTIME.open(str(RUNTIME.convert(path, path.parent)), "CPU", 1)
    (image,) = session.inputs
    assert image == ("x", shape, "float32")
    return session.answers(feeds), expected


def require_same(path, shape=IMAGE):
    answers, expected = answers_of_both(path, shape)
    assert [a.shape for a in answers] == [e.shape for e in expected]
    for answer, value in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer, value, atol=1e-4 * max(value.std(), 1e-6), rtol=1e-4)


def conv(inputs="x w b", output="y", **attributes):
    return ("Conv", inputs, output, attributes)


POOLED = ("GlobalAveragePool", "x", "a", {})
POOL_PADS = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}
ONE = {
    "conv": ([conv(pads=[1, 1, 1, 1])], {"w": numbers(5, 6, 3, 3), "b": numbers(5)}),
    "conv without bias": ([conv("x w", pads=[1, 1, 1, 1])], {"w": numbers(16, 6, 3, 3)}),
    "conv, stride and uneven pads": (
        [conv("x w", strides=[2, 1], pads=[0, 1, 1, 2])], {"w": numbers(5, 6, 3, 4)},
    ),
    "conv, dilated": (
        [conv("x w", dilations=[2, 2], pads=[4, 4, 4, 4])], {"w": numbers(8, 6, 5, 5)},
    ),
    "conv, padded to keep": (
        [conv("x w", auto_pad="SAME_UPPER", strides=[2, 2])], {"w": numbers(8, 6, 3, 4)},
    ),
    "conv, padded to keep, before": (
        [conv("x w", auto_pad="SAME_LOWER", strides=[2, 2])], {"w": numbers(8, 6, 3, 4)},
    ),
    "conv, not padded": ([conv("x w", auto_pad="VALID")], {"w": numbers(8, 6, 3, 4)}),
    "depthwise": (
        [conv(group=6, strides=[2, 2], pads=[3, 3, 3, 3])],
        {"w": numbers(6, 1, 7, 7), "b": numbers(6)},
    ),
    "depthwise, dilated": (
        [conv("x w", group=6, dilations=[2, 2], pads=[2, 2, 2, 2])], {"w": numbers(6, 1, 3, 3)},
    ),
    "groups": ([conv(group=3, pads=[1, 1, 1, 1])], {"w": numbers(9, 2, 3, 3), "b": numbers(9)}),
    "mean pool": ([("AveragePool", "x", "y", POOL_PADS)], {}),
    "mean pool, with its border": (
        [("AveragePool", "x", "y", {**POOL_PADS, "count_include_pad": 1})], {},
    ),
    "mean pool, borders all around": (
        [("AveragePool", "x", "y", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})], {},
    ),
    "mean pool, an odd side alone": (
        [("AveragePool", "x", "y",
          {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 0]})], {},
    ),
    "max pool": ([("MaxPool", "x", "y", POOL_PADS)], {}),
    "max pool, borders all around": (
        [("MaxPool", "x", "y", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})], {},
    ),
    "global mean": ([("GlobalAveragePool", "x", "y", {})], {}),
    "global maximum": ([("GlobalMaxPool", "x", "y", {})], {}),
    "mean of axes": ([("ReduceMean", "x", "y", {"axes": [2, 3], "keepdims": 0})], {}),
    "sum with itself": ([("Add", "x x", "y", {})], {}),
    "difference with itself": ([("Sub", "x x", "y", {})], {}),
    "constant a channel": ([("Mul", "x c", "y", {})], {"c": numbers(6, 1, 1)}),
    "constant a channel, added": ([("Add", "c x", "y", {})], {"c": numbers(1, 6, 1, 1)}),
    "constant a column": ([("Div", "x c", "y", {})], {"c": 2 + numbers(8) ** 2}),
    "constant number": ([("Sub", "c x", "y", {})], {"c": np.array(3, np.float32)}),
    "constant image": ([("Mul", "x c", "y", {})], {"c": numbers(*IMAGE)}),
    "concat": ([("Relu", "x", "a", {}), ("Concat", "x a x", "y", {"axis": 1})], {}),
    "concat of rows": ([("Concat", "x x", "y", {"axis": -2})], {}),
    "slice": (
        [("Slice", "x s e a", "y", {})],
        {"s": np.array([1, -7]), "e": np.array([2**63 - 1, -1]), "a": np.array([2, -1])},
    ),
    "flatten": ([("Flatten", "x", "y", {})], {}),
    "reshape": ([("Reshape", "x s", "y", {})], {"s": np.array([1, -1, 12, 3])}),
    "softmax of channels": ([("Softmax", "x", "y", {"axis": 1})], {}),
    "softmax of columns": ([("Softmax", "x", "y", {})], {}),
    "clip": ([("Clip", "x a b", "y", {})], {"a": np.float32(-0.3), "b": np.float32(0.7)}),
    "clip from below": ([("Clip", "x a", "y", {})], {"a": np.float32(0.2)}),
    "clip from above": (
        [conv("x w", "a"), ("Clip", "a  b", "y", {})],
        {"w": numbers(6, 6, 1, 1), "b": np.float32(1)},
    ),
    "clip to no bounds": ([("Clip", "x", "a", {}), ("Relu", "a", "y", {})], {}),
    "tanh": ([("Tanh", "x", "y", {})], {}),
    "relu of a network alone": ([("Relu", "x", "y", {})], {}),
    "hard sigmoid, as ONNX has it": ([("HardSigmoid", "x", "y", {})], {}),
    "nothing": ([("Identity", "x", "y", {})], {}),
    "scale and shift": (
        [("Mul", "x c", "a", {}), ("Add", "a d", "b", {}), ("Relu", "b", "y", {})],
        {"c": numbers(6, 1, 1), "d": numbers(6, 1, 1)},
    ),
    "scale, read twice": (
        [("Mul", "x c", "a", {}), ("Add", "a d", "b", {}), ("Add", "a b", "y", {})],
        {"c": numbers(6, 1, 1), "d": numbers(6, 1, 1)},
    ),
    "squeeze and excitation": (
        [
            ("GlobalAveragePool", "x", "a", {}), conv("a w", "b"), ("Relu", "b", "c", {}),
            conv("c v", "d"), ("HardSigmoid", "d", "e", {"alpha": 1 / 6}),
            ("Mul", "x e", "y", {}),
        ],
        {"w": numbers(4, 6, 1, 1), "v": numbers(6, 4, 1, 1)},
    ),
    "squeeze and excitation, spelled out": (
        [
            POOLED, ("Add", "a c", "b", {}), ("Clip", "b low high", "d", {}),
            ("Div", "d high", "e", {}), ("Mul", "x e", "y", {}),
        ],
        {"c": np.float32(3), "low": np.float32(0), "high": np.float32(6)},
    ),
    "one minus a vector": ([POOLED, ("Sub", "c a", "y", {})], {"c": np.float32([1])}),
    "a number by a vector": ([POOLED, ("Div", "c a", "y", {})], {"c": np.float32([[2]])}),
    "a vector and a map": (
        [POOLED, ("Mul", "a c", "b", {}), conv("x w", "m"), ("Sub", "m a", "d", {}),
         ("Add", "b d", "y", {})],
        {"c": numbers(1, 1, 9, 8), "w": numbers(1, 6, 1, 1)},
    ),
    "a vector divided by its channels": (
        [POOLED, ("Div", "a c", "y", {})], {"c": 1 + numbers(1, 6, 1, 1) ** 2},
    ),
    "a vector with a border": (
        [POOLED, conv("a w", "y", pads=[1, 1, 1, 1])], {"w": numbers(4, 6, 1, 1)},
    ),
    "softmax of a vector": ([POOLED, ("Flatten", "a", "b", {}), ("Softmax", "b", "y", {})], {}),
    "slice of a vector": (
        [POOLED, ("Flatten", "a", "b", {}), ("Slice", "b s e i", "y", {})],
        {"s": np.array([1]), "e": np.array([4]), "i": np.array([1])},
    ),
    "a window of one pixel": (
        [("GlobalAveragePool", "x", "a", {}), conv("a w", "y", pads=[1, 1, 1, 1])],
        {"w": numbers(4, 6, 3, 3)},
    ),
    "vectors beside each other": (
        [("GlobalAveragePool", "x", "a", {}), ("GlobalMaxPool", "x", "b", {}),
         ("Concat", "a b", "c", {"axis": 1}), ("Flatten", "c", "y", {})], {},
    ),
    "a vector and its channels": (
        [("GlobalAveragePool", "x", "a", {}), ("Mul", "a c", "y", {})], {"c": numbers(6, 1, 1)},
    ),
    "head": (
        [("GlobalAveragePool", "x", "a", {}), ("Flatten", "a", "b", {}),
         ("Gemm", "b w c", "d", {"transB": 1}), ("Softmax", "d", "y", {})],
        {"w": numbers(10, 6), "c": numbers(10)},
    ),
    "product": (
        [("Flatten", "x", "a", {}), ("MatMul", "a w", "y", {})], {"w": numbers(6 * 9 * 8, 7)},
    ),
    "gemm, not transposed": (
        [("Flatten", "x", "a", {}), ("Gemm", "a w c", "y", {})],
        {"w": numbers(6 * 9 * 8, 7), "c": numbers(1, 7)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ONE)
def test_operator(what, tmp_path):
    nodes, constants = ONE[what]
    require_same(save(tmp_path / "one.onnx", nodes, constants))


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [("Relu", {}), ("HardSwish", {}), ("Sigmoid", {}), ("LeakyRelu", {"alpha": 0.2}),
     ("HardSigmoid", {"alpha": 0.3, "beta": 0.4})],
)  # fmt: skip
@pytest.mark.parametrize("group", [1, 6])
def test_activation_behind_a_convolution(operator, attributes, group, tmp_path):
    weights = {"w": numbers(6, 6 // group, 3, 3), "b": numbers(6)}
    nodes = [conv("x w b", "a", group=group), (operator, "a", "y", attributes)]
    require_same(save(tmp_path / "fused.onnx", nodes, weights))
    # what else reads the convolution reads it without its activation
    nodes += [("Sub", "y a", "z", {})]
    require_same(save(tmp_path / "read.onnx", nodes, weights, outputs=("z",)))


def test_activations_join_the_convolution_before_them(tmp_path):
    nodes = [conv("x w", "a"), ("Clip", "a low high", "b", {}), ("Relu", "b", "y", {})]
    constants = {"w": numbers(6, 6, 1, 1), "low": np.float32(0), "high": np.float32(6)}
    text = RUNTIME.convert(save(tmp_path / "n.onnx", nodes, constants), tmp_path).read_text()
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["Input", "Convolution", "ReLU"]


def test_what_is_there_already_is_not_computed_again(tmp_path):
    nodes = [
        ("Relu", "x", "a", {}), ("Relu", "x", "b", {}), conv("a w", "c"), conv("b v", "d"),
        ("MaxPool", "b", "e", {"kernel_shape": [1, 1]}), ("Add", "c d", "f", {}),
        ("Add", "f e", "y", {}),
    ]  # fmt: skip
    path = save(tmp_path / "n.onnx", nodes, {"w": numbers(6, 6, 1, 1), "v": numbers(6, 6, 1, 1)})
    require_same(path)
    text = RUNTIME.convert(path, tmp_path).read_text()
    assert text.count("ReLU") == 1
    require_same(save(tmp_path / "two.onnx", nodes[:2], outputs=("a", "b")))


def test_what_no_output_needs_is_left_out(tmp_path):
    nodes = [("Relu", "x", "y", {}), ("Tanh", "x", "a", {}), ("Erf", "a", "b", {})]
    require_same(save(tmp_path / "n.onnx", nodes))


def test_outputs_in_their_order_and_read_by_others(tmp_path):
    nodes = [conv("x w", "a"), ("Relu", "a", "b", {}), ("GlobalAveragePool", "b", "c", {})]
    for outputs in (("c", "a"), ("b", "a", "c"), ("a", "c", "b")):
        path = tmp_path / f"{''.join(outputs)}.onnx"
        require_same(save(path, nodes, {"w": numbers(6, 6, 1, 1)}, outputs=outputs))


def test_a_vector_is_an_output_in_two_shapes(tmp_path):
    nodes = [("GlobalAveragePool", "x", "a", {}), ("Flatten", "a", "b", {})]
    for outputs in ("ab", "ba"):
        require_same(save(tmp_path / "n.onnx", nodes, outputs=outputs))


def test_the_input_is_an_output(tmp_path):
    nodes = [("Identity", "x", "y", {}), ("Relu", "x", "z", {})]
    require_same(save(tmp_path / "n.onnx", nodes, outputs=("z", "y")))


def test_an_input_that_nothing_reads(tmp_path):
    model = onnx.load(save(tmp_path / "n.onnx", [("Relu", "x", "y", {})]))
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 3]))
    onnx.save(model, tmp_path / "n.onnx")
    session = RUNTIME.open(str(RUNTIME.convert(tmp_path / "n.onnx", tmp_path)), "CPU", 1)
    assert [one.name for one in session.inputs] == ["x", "z"]
    feeds = {"x": numbers(*IMAGE), "z": numbers(1, 3)}
    (answer,) = session.answers(feeds)
    np.testing.assert_array_equal(answer, np.maximum(feeds["x"], 0))


def test_softmax_before_it_was_along_one_axis(tmp_path):
    softmax = ("Softmax", "a", "y", {})
    flat = [("Flatten", "x", "a", {}), softmax]
    require_same(save(tmp_path / "n.onnx", flat, opset=11))
    require_same(save(tmp_path / "n.onnx", [POOLED, softmax], opset=11))
    with pytest.raises(InvalidInputError, match=r"Softmax \(Softmax 1\): .*one axis"):
        RUNTIME.convert(
            save(tmp_path / "n.onnx", [("Relu", "x", "a", {}), softmax], opset=11), tmp_path
        )


def test_slice_before_its_bounds_were_inputs(tmp_path):
    cut = ("Slice", "x", "y", {"starts": [1, 2], "ends": [5, -1], "axes": [1, 3]})
    require_same(save(tmp_path / "n.onnx", [cut], opset=9))


def test_what_goes_wrong_with_a_node_is_a_line_with_its_name(monkeypatch, tmp_path):
    def broken(writer, node):
        return {}["no such"]

    monkeypatch.setitem(WRITERS, "Relu", broken)
    path = save(tmp_path / "n.onnx", [("Relu", "x", "y", {})])
    with pytest.raises(InvalidInputError, match=r"^Relu \(Relu 0\): cannot be converted"):
        RUNTIME.convert(path, tmp_path)


def test_a_damaged_constant(tmp_path):
    model = onnx.load(save(tmp_path / "n.onnx", [conv("x w")], {"w": numbers(2, 6, 1, 1)}))
    model.graph.initializer[0].raw_data = b"123"
    onnx.save(model, tmp_path / "n.onnx")
    with pytest.raises(InvalidInputError, match="the constant 'w' cannot be converted"):
        RUNTIME.convert(tmp_path / "n.onnx", tmp_path)


def test_a_vector_goes_in(tmp_path):
    nodes, constants = [("Gemm", "x w", "y", {"transB": 1})], {"w": numbers(3, 5)}
    require_same(save(tmp_path / "n.onnx", nodes, constants, shape=[1, 5]), [1, 5])


@pytest.mark.parametrize(
    ("nodes", "constants", "what"),
    [
        ([("Erf", "x", "y", {})], {}, r"Erf \(Erf 0\): no layer of ncnn"),
        ([("MaxPool", "x", "y", {"kernel_shape": [2, 2], "ceil_mode": 1})], {}, "ceil_mode=1"),
        ([("Concat", "x x", "y", {"axis": 0})], {}, r"Concat \(Concat 0\): .* no batch"),
        ([conv("x w", "a"), ("Clip", "x a", "y", {})], {"w": numbers(1, 6, 9, 8)},
         "its input a must be a constant"),
        ([("ReduceMean", "x", "y", {"axes": [1]})], {}, "whole channels alone"),
        ([("Concat", "x c", "y", {"axis": 1})], {"c": numbers(1, 2, 9, 8)},
         r"Concat \(Concat 0\): its input c must not be a constant"),
        ([("Relu", "x", "z", {}), ("Identity", "c", "y", {})], {"c": numbers(1, 2)},
         r"Identity \(Identity 1\): its input c must not be a constant"),
        ([POOLED, ("Flatten", "a", "b", {}), ("Add", "a b", "y", {})], {}, "different ranks"),
        ([("Reshape", "x s", "a", {}), ("GlobalAveragePool", "a", "y", {})],
         {"s": np.array([1, 6, 72])}, "whole channels alone"),
        ([("Transpose", "x", "y", {})], {}, r"Transpose \(Transpose 0\)"),
        ([("Reshape", "x s", "y", {})], {"s": np.array([2, -1])}, "not one image"),
        ([("Slice", "x s e a t", "y", {})],
         {"s": np.array([0]), "e": np.array([9]), "a": np.array([2]), "t": np.array([2])},
         "nor with steps"),
    ],
)  # fmt: skip
def test_what_ncnn_lacks_is_named_with_its_node(nodes, constants, what, tmp_path):
    with pytest.raises(InvalidInputError, match=what):
        RUNTIME.convert(save(tmp_path / "n.onnx", nodes, constants), tmp_path)


def test_an_output_that_is_a_constant_is_named(tmp_path):
    path = save(tmp_path / "n.onnx", [("Relu", "x", "y", {})], {"c": numbers(2)}, outputs="yc")
    with pytest.raises(InvalidInputError, match="output c: no node computes it"):
        RUNTIME.convert(path, tmp_path)


def test_inputs_that_ncnn_lacks(tmp_path):
    relu = [("Relu", "x", "y", {})]
    with pytest.raises(InvalidInputError, match="input x: .* one image"):
        RUNTIME.convert(save(tmp_path / "n.onnx", relu, shape=[2, 3, 4, 4]), tmp_path)
    with pytest.raises(InvalidInputError, match="input x: .* one image of a fixed size"):
        RUNTIME.convert(save(tmp_path / "n.onnx", relu, shape=["n", 3, 4, 4]), tmp_path)
    cast = [("Cast", "x", "y", {"to": 1})]
    path = save(tmp_path / "n.onnx", cast, kind=TensorProto.UINT8)
    with pytest.raises(InvalidInputError, match="input x: ncnn takes float32"):
        RUNTIME.convert(path, tmp_path)


def test_files_that_are_none(tmp_path):
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(InvalidInputError, match="no ONNX file"):
        RUNTIME.convert(tmp_path / "text.onnx", tmp_path)
    (tmp_path / "text.param").write_text("no network")
    with pytest.raises(ValueError, match=r"no \.param file"):
        RUNTIME.open(str(tmp_path / "text.param"), "CPU", 1)
    nodes, constants = ONE["conv"]
    path = RUNTIME.convert(save(tmp_path / "n.onnx", nodes, constants), tmp_path)
    weights = path.with_suffix(".bin").read_bytes()
    path.with_suffix(".bin").write_bytes(weights[:-8])
    with pytest.raises(ValueError, match=r"cannot read its \.bin file"):
        RUNTIME.open(str(path), "CPU", 1)
    path.write_text(path.read_text().replace("Convolution", "Konvolution"))
    with pytest.raises(ValueError, match=r"cannot read its \.param file"):
        RUNTIME.open(str(path), "CPU", 1)


def test_what_it_supports():
    assert RUNTIME.supports("Conv", "fp32") == ""
    assert "no layer" in RUNTIME.supports("LSTM", "fp32")
    assert "its own quantizer" in RUNTIME.supports("Conv", "int8")
    assert "its own quantizer" in RUNTIME.supports("QuantizeLinear", "fp32")
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert set(WRITERS) <= known


def test_every_layer_has_a_time(tmp_path):
    nodes, constants = ONE["squeeze and excitation"]
    path = RUNTIME.convert(save(tmp_path / "n.onnx", nodes, constants), tmp_path)
    times = RUNTIME.node_ms(str(path), "CPU", 1, {"x": numbers(*IMAGE)}, tmp_path)
    assert list(times) == [
        "GlobalAveragePool_0", "Conv_1", "Conv_3", "HardSigmoid_4", "Mul_5",
    ]  # fmt: skip
    assert all(ms > 0 for ms in times.values())


@pytest.mark.slow
def test_an_export_has_its_files():
    layers = [Layer("conv", 3, 8, 16, 16, kernel_size=3), Layer("head", 8, 10, 16, 16)]
    files, converted = in_format(RUNTIME, emit(chain(layers), RandomWeights()).SerializeToString())
    assert list(files) == list(converted.files) == ["model.param", "model.bin"]
    assert converted.runtime.startswith("ncnn ")
    assert converted.difference < 1e-5
