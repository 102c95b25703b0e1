"""LiteRT: what is converted computes what ONNX Runtime does, operator by operator."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploynas import spaces
from deploynas.device import StopRule, measure, open_device
from deploynas.device.wire import Parcel
from deploynas.errors import InvalidInputError, MissingDependencyError, ModelError
from deploynas.export.probe import open_session
from deploynas.graph.emit import RandomWeights, write_model
from deploynas.onboard.parts import join
from deploynas.runtimes import litert, tflite
from deploynas.runtimes.litert import RUNTIME

installed = pytest.importorskip("ai_edge_litert")
SPACES = (
    "mobile-small",
    "mobile-uib",
    "proxyless-small",
    "one-shot",
    "darts-small",
    "nasbench201",
)
ONCE = StopRule(precision=1e-9, min_sessions=1, max_sessions=1, rounds=2, touch_ms=0.1)
RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def node(kind, *constants, inputs=("x",), output="y", **attributes):
    """An operator, and the constants that it reads after its inputs."""
    names = [f"{output}.{i}" for i in range(len(constants))]
    return (
        helper.make_node(kind, [*inputs, *names], [output], f"the {kind}", **attributes),
        dict(zip(names, map(np.asarray, constants), strict=True)),
    )


def model_of(shape, *nodes, output="y", opset=17, dtype=TensorProto.FLOAT):
    constants = {name: array for _, own in nodes for name, array in own.items()}
    graph = helper.make_graph(
        [one for one, _ in nodes],
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_empty_tensor_value_info(output)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def saved(model, folder, name="model"):
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return path


def differs(model, folder):
    """Largest difference from ONNX Runtime, of the outputs' deviation; and the file."""
    path = saved(model, folder)
    (image,) = model.graph.input
    shape = [side.dim_value for side in image.type.tensor_type.shape.dim]
    x = 2 * noise(*shape)
    if image.type.tensor_type.elem_type == TensorProto.UINT8:
        x = RNG.integers(0, 256, shape, np.uint8)
    expected = open_session(path).run(None, {"x": x})
    converted = RUNTIME.convert(path, folder)
    answers = RUNTIME.open(str(converted), "XNNPACK", 1).answers({"x": x})
    assert [a.shape for a in answers] == [e.shape for e in expected]
    assert [a.dtype for a in answers] == [e.dtype for e in expected]
    pairs = zip(answers, expected, strict=True)
    worst = max(np.abs(a - e).max() / (e.std() or 1.0) for a, e in pairs)
    return worst, converted


def kinds_in(path):
    """The operators of a file, in order."""
    opened = litert.RUNTIME.open(str(path), "XNNPACK", 1)._interpreter
    kinds = [one["op_name"] for one in opened._get_ops_details()]
    return [kind for kind in kinds if kind != "DELEGATE"]


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_convolutions(tmp_path, kernel, stride, groups, side):
    conv = node(
        "Conv", noise(16, 8 // groups, kernel, kernel), noise(16),
        pads=[kernel // 2] * 4, strides=[stride] * 2, group=groups,
    )  # fmt: skip
    assert differs(model_of([1, 8, side, side + 2], conv), tmp_path)[0] < 1e-5


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_dilated_convolutions(tmp_path, stride, groups):
    weight = noise(4, 4 // groups, 5, 5)
    conv = node("Conv", weight, pads=[4] * 4, dilations=[2, 2], strides=[stride] * 2, group=groups)
    assert differs(model_of([1, 4, 12, 12], conv), tmp_path)[0] < 1e-5


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_padding_by_name(tmp_path, auto):
    conv = node("Conv", noise(4, 3, 3, 2), auto_pad=auto, strides=[2, 1])
    assert differs(model_of([1, 3, 8, 7], conv), tmp_path)[0] < 1e-5


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (2, 2), (5, 2)])
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_poolings(tmp_path, kind, kernel, stride, side):
    pads = [kernel // 2] * 4 if kernel % 2 else [0, 0, side % 2, side % 2]
    pool = node(kind, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)
    model = model_of([1, 5, side, side], node("Sub", np.float32(9), output="z"), (
        helper.make_node(kind, ["z"], ["y"], "p", **{a.name: helper.get_attribute_value(a)
                                                    for a in pool[0].attribute}), {}))  # fmt: skip
    assert differs(model, tmp_path)[0] < 1e-5  # every value is below zero


BELOW = node("Conv", noise(6, 4, 1, 1), output="c")
OPERATORS = {
    "Add": [BELOW, node("Add", inputs=("c", "c"))],
    "Add of a constant": [BELOW, node("Add", noise(6, 1, 1), inputs=("c",))],
    "Mul by a map": [BELOW, node("GlobalAveragePool", inputs=("c",), output="g"),
                     node("Mul", inputs=("c", "g"))],
    "Div": [node("Div", np.float32(3))],
    "Sub": [node("Sub", inputs=("x", "x"))],
    "Sub from a row": [node("Sub", noise(9))],
    "Relu": [BELOW, node("Relu", inputs=("c",))],
    "Relu alone": [node("Relu")],
    "ReLU6": [BELOW, node("Clip", np.float32(0), np.float32(6), inputs=("c",))],
    "Clip": [node("Clip", np.float32(-0.5), np.float32(0.7))],
    "Relu of a shared tensor": [
        BELOW, node("Relu", inputs=("c",), output="r"), node("Sub", inputs=("c", "r")),
    ],
    "HardSwish": [node("HardSwish")],
    "HardSigmoid": [node("HardSigmoid", alpha=1 / 6, beta=0.5)],
    "HardSigmoid of its own slope": [node("HardSigmoid")],
    "Sigmoid": [node("Sigmoid")],
    "Tanh": [node("Tanh")],
    "LeakyRelu": [node("LeakyRelu", alpha=0.1)],
    "BatchNormalization": [
        node("BatchNormalization", noise(4), noise(4), noise(4), noise(4) ** 2 + 0.5)
    ],
    "Concat": [BELOW, node("Concat", inputs=("c", "x"), axis=1)],
    "Concat of rows": [node("Concat", inputs=("x", "x"), axis=2)],
    "Slice": [node("Slice", np.array([1, 1]), np.array([2**63 - 1] * 2), np.array([2, 3]))],
    "Slice of every second": [
        node("Slice", np.array([1]), np.array([-1]), np.array([3]), np.array([2]))
    ],
    "Pad": [node("Pad", np.array([0, 0, 1, 2, 0, 0, 0, 1]))],
    "GlobalMaxPool": [node("GlobalMaxPool")],
    "ReduceMean": [node("ReduceMean", axes=[2, 3], keepdims=0)],
    "ReduceMean of channels": [node("ReduceMean", axes=[1])],
    "Flatten": [node("Flatten")],
    "Reshape": [node("Reshape", np.array([1, 12, -1]))],
    "Transpose": [node("Transpose", perm=[0, 2, 3, 1])],
    "Transpose of the image": [node("Transpose", perm=[0, 1, 3, 2])],
    "Gemm": [node("Flatten", output="f"), node("Gemm", noise(252, 5), noise(5), inputs=("f",))],
    "Gemm and ReLU": [
        node("Flatten", output="f"),
        node("Gemm", noise(5, 252), noise(5), inputs=("f",), output="g", transB=1, alpha=0.5),
        node("Relu", inputs=("g",)),
    ],
    "MatMul": [node("Flatten", output="f"), node("MatMul", noise(252, 5), inputs=("f",))],
    "Softmax": [node("Flatten", output="f"), node("Softmax", inputs=("f",))],
    "Constant": [
        node("Constant", output="k", inputs=(), value=numpy_helper.from_array(noise(4, 1, 1))),
        node("Mul", inputs=("x", "k")),
    ],
    "Identity": [node("Identity", output="i"), node("Relu", inputs=("i",))],
    "Identity of a constant": [
        node("Identity", noise(4, 1, 1), output="k", inputs=()), node("Add", inputs=("x", "k")),
    ],
    "Identity at the end": [BELOW, node("Identity", inputs=("c",))],
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(tmp_path, name):
    assert differs(model_of([1, 4, 7, 9], *OPERATORS[name]), tmp_path)[0] < 2e-5


OF_OPSETS = {
    "ReduceMean of no axes": (18, [node("ReduceMean", np.array([], np.int64))]),
    "ReduceMean that does nothing": (18, [node("ReduceMean", noop_with_empty_axes=1)]),
    "ReduceMean of no axes that does nothing": (
        18, [node("ReduceMean", np.array([], np.int64), noop_with_empty_axes=1)],
    ),
    "ReduceMean of axes": (18, [node("ReduceMean", np.array([3, 1]), noop_with_empty_axes=1)]),
    "Pad of axes": (
        18, [node("Pad", np.array([1, 2, 0, 3]), np.float32(0), np.array([3, 2]))],
    ),
    "Softmax of vectors": (11, [node("Flatten", output="f"), node("Softmax", inputs=("f",))]),
    "Slice by attributes": (9, [node("Slice", starts=[1], ends=[-1], axes=[2])]),
    "Constant floats": (
        13, [node("Constant", output="k", inputs=(), value_floats=[0.5] * 9),
             node("Mul", inputs=("x", "k"))],
    ),
    "Constant float": (
        13, [node("Constant", output="k", inputs=(), value_float=0.1), BELOW,
             node("Clip", inputs=("c", "k"))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_OPSETS)
def test_operators_as_opsets_have_them(tmp_path, name):
    opset, nodes = OF_OPSETS[name]
    assert differs(model_of([1, 4, 7, 9], *nodes, opset=opset), tmp_path)[0] < 2e-5


@pytest.mark.parametrize("kind", ["GlobalAveragePool", "GlobalMaxPool"])
def test_pooling_of_another_rank(tmp_path, kind):
    assert differs(model_of([1, 4, 7], node(kind)), tmp_path)[0] < 1e-5


def test_every_row_has_one_bias(tmp_path):
    gemm = node("Gemm", noise(5, 3), noise(1, 3))
    assert differs(model_of([3, 5], gemm), tmp_path)[0] < 1e-5


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_windows_that_begin_on_the_map(tmp_path, kind):
    pool = node(kind, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    assert differs(model_of([1, 5, 8, 8], pool), tmp_path)[0] < 1e-5


def test_every_operator_is_tested():
    from deploynas.runtimes.tflite import OPERATORS as converted

    tested = {one.op_type for nodes in OPERATORS.values() for one, _ in nodes}
    rest = {"Conv", "MaxPool", "AveragePool", "Cast", "Dropout", "Squeeze", "Unsqueeze"}
    assert set(converted) == tested | rest


def test_pixels_stay_channels_last(tmp_path):
    """As an export with preprocessing takes them: its transposition costs nothing."""
    turned = node("Transpose", output="t", perm=[0, 3, 1, 2])
    model = model_of(
        [1, 8, 8, 3], turned, node("Cast", inputs=("t",), output="f", to=TensorProto.FLOAT),
        node("Conv", noise(4, 3, 3, 3), inputs=("f",), pads=[1] * 4), dtype=TensorProto.UINT8,
    )  # fmt: skip
    difference, path = differs(model, tmp_path)
    assert difference < 1e-5
    assert kinds_in(path) == ["CAST", "CONV_2D"]
    (image,) = RUNTIME.open(str(path), "XNNPACK", 1).inputs
    assert image == ("x", [1, 8, 8, 3], "uint8")


def test_an_activation_is_a_part_of_what_is_before_it(tmp_path):
    relu = differs(model_of([1, 4, 7, 9], *OPERATORS["Relu"]), tmp_path)[1]
    assert kinds_in(relu) == ["CONV_2D"]
    shared = differs(model_of([1, 4, 7, 9], *OPERATORS["Relu of a shared tensor"]), tmp_path)[1]
    assert kinds_in(shared) == ["CONV_2D", "RELU", "SUB"]


def test_padding_has_an_operator_where_litert_pads_other_ends_alone(tmp_path):
    def written(side, stride):
        conv = node("Conv", noise(4, 3, 3, 3), pads=[1] * 4, strides=[stride] * 2)
        return kinds_in(differs(model_of([1, 3, side, side], conv), tmp_path)[1])

    assert written(8, 1) == written(9, 2) == ["CONV_2D"]
    assert written(8, 2) == ["PAD", "CONV_2D"]


@pytest.mark.parametrize("name", SPACES)
def test_xnnpack_runs_all_of_a_network(tmp_path, name):
    """As ``litert-benchmark --require_full_delegation`` asks."""
    compiled = pytest.importorskip("ai_edge_litert.compiled_model").CompiledModel
    space = spaces.space(name, num_classes=10, in_channels=3, resolutions=[32])
    arch = space.sample(1, np.random.default_rng(3))[0]
    model = write_model(tmp_path / "n.onnx", space.layers(arch), RandomWeights())
    assert compiled.from_file(str(RUNTIME.convert(model, tmp_path))).is_fully_accelerated()


def test_a_file_of_its_own_says_how_it_is_fed(tmp_path):
    model = model_of([1, 4, 7, 9], node("Relu"))
    onnx.helper.set_model_props(model, {"classes": '["a"]'})
    path = RUNTIME.convert(saved(model, tmp_path), tmp_path)
    session = RUNTIME.open(str(path), "XNNPACK", 1)
    assert session.inputs == [("x", [1, 4, 7, 9], "float32")]
    runner = session._interpreter.get_signature_runner("serving_default")
    x = noise(1, 7, 9, 4)  # as a program feeds it
    np.testing.assert_array_equal(runner(x=x)["y"], np.maximum(x, 0))
    assert json.dumps(["a"]).encode() in path.read_bytes()


def test_runs_do_not_change_their_input(tmp_path):
    model = model_of([1, 4, 7, 9], *OPERATORS["HardSwish"])
    session = RUNTIME.open(str(RUNTIME.convert(saved(model, tmp_path), tmp_path)), "XNNPACK", 1)
    x = noise(1, 4, 7, 9)
    first = session.answers({"x": x})
    call = session.prepared({"x": x})
    for _ in range(5):
        call()
    np.testing.assert_array_equal(session._output(session._outputs[0]), first[0])


def test_an_operator_that_is_lacking_is_named_before_anything_runs(tmp_path):
    model = model_of([1, 4, 7, 9], node("Relu", output="r"), node("Erf", inputs=("r",)))
    with pytest.raises(ModelError, match="the operator Erf of node 'the Erf' is not converted"):
        measure(open_device("litert"), {"m": saved(model, tmp_path)}, ONCE)
    assert RUNTIME.supports("Erf", "fp32")
    assert not RUNTIME.supports("Conv", "fp32")
    assert RUNTIME.supports("Conv", "int8") == "only float networks are converted for LiteRT"


REFUSED = [
    ([1, 4, 7, 9], 17, [
        BELOW, node("GlobalMaxPool", output="g"), node("Reshape", np.array([4]),
        inputs=("g",), output="r"), node("Slice", np.array([0]), np.array([1]),
        inputs=("r",), output="s"), node("Squeeze", inputs=("s",), output="high"),
        (helper.make_node("Clip", ["c", "low", "high"], ["y"], "clip"), {"low": np.float32(0)}),
    ], "Clip of node 'clip' computes its input 2"),
    ([1, 4, 7], 17, [
        node("BatchNormalization", noise(4), noise(4), noise(4), noise(4) ** 2 + 0.5)
    ], "BatchNormalization .* has not two dimensions"),
    ([5], 17, [node("MatMul", noise(5, 3))], "MatMul .* not of a matrix"),
    ([3, 5], 17, [node("Gemm", noise(5, 3), noise(3, 1))], "Gemm .* a bias a row"),
    ([3, 5], 17, [node("Gemm", noise(5, 4), noise(3, 4))], "Gemm .* a bias a row"),
    ([1, 2, 4, 4], 17, [
        node("MaxPool", kernel_shape=[1, 1], strides=[2, 2], ceil_mode=1)
    ], "MaxPool .* of padding alone"),
    ([1, 2, 8, 8], 17, [
        node("AveragePool", kernel_shape=[3, 3], strides=[3, 3], pads=[1] * 4, ceil_mode=1)
    ], "AveragePool .* of padding alone"),
    ([1, 4, 7, 9], 11, [node("Softmax", axis=2)], "Softmax .* over the last axis"),
    ([1, 4, 7, 9], 11, [node("Softmax")], "Softmax .* over the last axis"),
    ([1, 4, 7, 9], 17, [node("Relu", output="r"), node("Identity", noise(2), inputs=())],
     "no node computes the output 'y'"),
    ([1, 4, 7, 9], 17, [
        node("Constant", output="k", inputs=(), value_strings=["a"]), node("Relu")
    ], "Constant .* value_strings"),
    ([1, 4, 7, 9], 17, [
        (helper.make_node("MaxPool", ["x"], ["y", "i"], "p", kernel_shape=[2, 2]), {}),
        node("Cast", inputs=("i",), output="z", to=TensorProto.FLOAT),
    ], "MaxPool of node 'p' has outputs beside its first"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "opset", "nodes", "reason"), REFUSED)
def test_no_answer_is_better_than_a_wrong_one(tmp_path, shape, opset, nodes, reason):
    with pytest.raises(InvalidInputError, match=reason):
        RUNTIME.convert(saved(model_of(shape, *nodes, opset=opset), tmp_path), tmp_path)


def test_what_goes_wrong_with_a_node_is_a_line_with_its_name(monkeypatch, tmp_path):
    def broken(writer, node):
        return {}["no such"]

    monkeypatch.setitem(tflite.OPERATORS, "Relu", broken)
    path = saved(model_of([1, 4], node("Relu")), tmp_path)
    with pytest.raises(InvalidInputError, match="Relu of node 'the Relu' cannot be converted"):
        RUNTIME.convert(path, tmp_path)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([node("Conv", noise(4, 4, 3), pads=[1, 1])], "has not two dimensions"),
        ([node("Pad", np.array([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect")], "more than zeros"),
        ([node("Softmax", axis=1)], "not over the last axis"),
        ([node("Add", noise(2), noise(2), inputs=())], "constants alone"),
        ([node("Relu", noise(2), inputs=())], "constants alone"),
        ([node("MaxPool", kernel_shape=[2, 2], dilations=[2, 2])], "dilated"),
    ],
)
def test_what_an_operator_lacks_is_named(tmp_path, nodes, reason):
    shape = [1, 4, 7] if nodes[0][0].op_type == "Conv" else [1, 4, 7, 9]
    with pytest.raises(ModelError, match=f"the operator {nodes[0][0].op_type} .*{reason}"):
        measure(open_device("litert"), {"m": saved(model_of(shape, *nodes), tmp_path)}, ONCE)


def test_a_dynamic_shape_is_refused(tmp_path):
    path = saved(model_of(["n", 4, 7, 9], node("Relu")), tmp_path)
    with pytest.raises(ModelError, match=r"'x' has the dynamic shape \['n', 4, 7, 9\]"):
        measure(open_device("litert"), {"m": path}, ONCE)


def test_random_weights_are_drawn_on_a_device_elsewhere(tmp_path):
    space = spaces.space("mobile-small", num_classes=10, in_channels=3, resolutions=[32])
    model = write_model(tmp_path / "n.onnx", space.layers(space.largest()[0]), RandomWeights(7))
    path = RUNTIME.convert(model, tmp_path)
    parcel = Parcel.of([path], model)
    assert len(parcel.literal) < path.stat().st_size / 20
    assert join(parcel.parts, parcel.literal) == path.read_bytes()


def test_installing_what_is_there(tmp_path):
    assert RUNTIME.install() == (Path(sys.prefix), False)


def test_a_missing_package_says_what_to_type(monkeypatch):
    def version(self):
        raise ModuleNotFoundError("No module named 'ai_edge_litert'", name="ai_edge_litert")

    monkeypatch.setattr(litert.LiteRt, "version", version)
    with pytest.raises(MissingDependencyError, match="type: deploynas devices install litert"):
        open_device("litert")
