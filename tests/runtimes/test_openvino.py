"""What OpenVINO is given: files that are the same each time, and float32 as it stands there."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from deploynas.device import LocalDevice, local
from deploynas.errors import InvalidInputError, ModelError
from deploynas.export.formats import in_format
from deploynas.graph.emit import RandomWeights, emit, write_model
from deploynas.onboard.conversation import open_worker
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.worker import random_input
from deploynas.runtimes.openvino import RUNTIME
from deploynas.spaces.layers import Layer, chain

pytest.importorskip("openvino")

BLOCK = Layer(
    "mbconv", 8, 8, 14, 14, kernel_size=5, mid_channels=32, se_channels=8, activation="h_swish",
    residual=True,
)  # fmt: skip


@pytest.fixture
def block(tmp_path):
    return write_model(tmp_path / "block.onnx", chain([BLOCK]), RandomWeights())


def contents(path):
    return path.read_bytes(), path.with_suffix(".bin").read_bytes()


@pytest.mark.slow
def test_the_same_files_each_time(block, tmp_path):
    found = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        found.append(contents(RUNTIME.convert(block, tmp_path / name)))
    assert found[0] == found[1]


def test_weights_are_not_rounded(block, tmp_path):
    weights = RUNTIME.convert(block, tmp_path).with_suffix(".bin").read_bytes()
    for tensor in onnx.load(block).graph.initializer:
        assert tensor.raw_data in weights


def test_it_computes_in_float32(block, tmp_path):
    session = RUNTIME.open(str(RUNTIME.convert(block, tmp_path)), "CPU", 1)
    assert "float32" in session.option("INFERENCE_PRECISION_HINT")


def test_compiled_networks_are_kept_in_folders_of_ours_alone(block, tmp_path):
    path = RUNTIME.convert(block, tmp_path)
    RUNTIME.open(str(path), "CPU", 1)
    assert not (tmp_path / "compiled").exists()
    with temporary_folder() as folder:
        RUNTIME.open(str(RUNTIME.convert(block, folder)), "CPU", 1)
        assert list((folder / "compiled").iterdir())


def test_openings_are_not_served_from_what_an_earlier_one_compiled(block, monkeypatch):
    kept = []

    @contextlib.contextmanager
    def watched(command, files, runtime):
        with open_worker(command, files, runtime) as worker:
            yield worker
        kept.append([*files[0][1].parents[1].rglob("compiled")])

    monkeypatch.setattr(local, "open_worker", watched)
    size, ms = LocalDevice("openvino").opening(block, 1)
    assert kept == [[]]
    assert size > block.stat().st_size
    assert ms > 0


@pytest.mark.parametrize(
    "kind", "FLOAT FLOAT16 BFLOAT16 DOUBLE BOOL INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64"
    .split()
)  # fmt: skip
def test_inputs_of_every_type(kind, tmp_path):
    x = helper.make_tensor_value_info("x", getattr(TensorProto, kind), [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph([helper.make_node("Cast", ["x"], ["y"], to=1)], "g", [x], [y])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    session = RUNTIME.open(str(RUNTIME.convert(tmp_path / "m.onnx", tmp_path)), "CPU", 1)
    (given,) = session.inputs
    values = np.array([[0, 1, 1, 0]], np.float32)
    is_bits = given.type == "bfloat16"
    feed = (values.view("u4") >> 16).astype("u2") if is_bits else values.astype(given.type)
    assert random_input(np.random.default_rng(0), given).dtype == feed.dtype
    np.testing.assert_array_equal(session.answers({"x": feed}), [values])


def test_nodes_have_the_names_of_the_network(block, tmp_path):
    path = str(RUNTIME.convert(block, tmp_path))
    feeds = {"image": np.ones((1, 8, 14, 14), np.float32)}
    times = RUNTIME.node_ms(path, "CPU", 1, feeds, tmp_path)
    assert sum("layers.0.Conv" in name for name in times) >= 3  # two may take no microsecond
    assert all(ms > 0 for ms in times.values())


def test_a_layer_for_timing_answers_as_it_does_and_turns_nothing(block, tmp_path):
    path = RUNTIME.convert(block, tmp_path)
    session = RUNTIME.open(str(path), "CPU", 1)
    assert list(session.inputs) == [("image", [1, 8, 14, 14], "float32")]
    feeds = {"image": np.random.default_rng(0).standard_normal((1, 8, 14, 14), np.float32)}
    (answer,) = session.answers(feeds)
    (expected,) = onnxruntime.InferenceSession(str(block)).run(None, feeds)
    assert np.abs(answer - expected).max() < 1e-4 * expected.std()
    conv = Layer("conv", 3, 16, 32, 32, kernel_size=3)
    stem = write_model(tmp_path / "stem.onnx", chain([conv]), RandomWeights())
    path = RUNTIME.convert(stem, tmp_path)
    times = RUNTIME.node_ms(
        str(path), "CPU", 1, {"image": np.ones((1, 3, 32, 32), "f4")}, tmp_path
    )
    assert not any("features" in name for name in times)


def test_an_operator_that_it_lacks_is_named_with_its_node(block, tmp_path):
    model = onnx.load(block)
    model.graph.node[3].op_type = "Foo"
    onnx.save(model, tmp_path / "foo.onnx")
    with pytest.raises(InvalidInputError, match=rf"Foo \({model.graph.node[3].name}\)"):
        RUNTIME.convert(tmp_path / "foo.onnx", tmp_path)


def test_what_is_no_network(tmp_path, capfd):
    path = tmp_path / "text.onnx"
    path.write_text("no network")
    with pytest.raises(ModelError, match="no ONNX file"):
        LocalDevice("openvino").answers(path, [])
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_an_export_has_its_files():
    layers = [Layer("conv", 3, 8, 16, 16, kernel_size=3), Layer("head", 8, 10, 16, 16)]
    files, converted = in_format(RUNTIME, emit(chain(layers), RandomWeights()).SerializeToString())
    assert list(files) == list(converted.files) == ["model.xml", "model.bin"]
    assert converted.runtime.startswith("openvino ")
    assert converted.difference < 1e-5
