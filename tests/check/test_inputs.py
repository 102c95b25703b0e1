"""Inputs of every type, real ones from files, and outputs of every kind."""

from __future__ import annotations

import zipfile
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploynas.check import check, regression, verdict
from deploynas.check.inputs import Given, read_inputs
from deploynas.check.regression import SlowerLayer, slower_layers
from deploynas.device import LocalDevice
from deploynas.errors import DeploynasError, InvalidInputError, MissingFileError
from deploynas.onboard.conversation import Examination
from deploynas.onboard.runtime import Input, inputs_beside, numbers
from deploynas.onboard.worker import Networks
from deploynas.runtimes.onnxruntime import RUNTIME


@pytest.fixture(autouse=True)
def short_sessions(monkeypatch):
    monkeypatch.setattr(
        verdict, "RULE", replace(verdict.RULE, min_sessions=1, max_sessions=1, rounds=1)
    )


def save(path, nodes, inputs, outputs, initializer=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializer))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def value(name, kind, *shape):
    return helper.make_tensor_value_info(name, kind, shape)


TYPES = ("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT16", "FLOAT16", "DOUBLE", "BFLOAT16")


@pytest.mark.parametrize("name", TYPES)
def test_inputs_of_every_type(name, tmp_path):
    """Whole numbers are looked up in a table of two rows, which no other index has."""
    kind = getattr(TensorProto, name)
    to = TensorProto.FLOAT if "FLOAT" in name or name == "DOUBLE" else TensorProto.INT64
    nodes = [helper.make_node("Cast", ["x"], ["c"], to=to)]
    nodes.append(
        helper.make_node("Relu", ["c"], ["y"])
        if to == TensorProto.FLOAT
        else helper.make_node("Gather", ["table", "c"], ["y"])
    )
    table = numpy_helper.from_array(np.ones(2, np.float32), "table")
    path = save(
        tmp_path / "m.onnx", nodes, [value("x", kind, 4)], [value("y", TensorProto.FLOAT, 4)],
        [table],
    )  # fmt: skip
    networks = Networks(RUNTIME, "", 1)
    assert networks.answer({"load": str(path)}) == {"loaded": 1}
    (times,) = networks.answer({"time": [[0, 2]]})["ms"]
    assert all(ms > 0 for ms in times)


@pytest.mark.slow
def test_models_without_inputs(tmp_path):
    node = helper.make_node("RandomNormal", [], ["y"], shape=[3], seed=1.0)
    path = save(tmp_path / "m.onnx", [node], [], [value("y", TensorProto.FLOAT, 3)])
    assert check(path, LocalDevice()).verdict == "pass"
    with pytest.raises(InvalidInputError, match="takes no input"):
        check(path, LocalDevice(), given=Given(["1,3"]))


@pytest.mark.slow
def test_outputs_that_are_no_arrays(tmp_path):
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("SplitToSequence", ["x"], ["y"], axis=1)
    path = save(tmp_path / "s.onnx", [node], [value("x", TensorProto.FLOAT, 1, 4)], [sequence])
    (_, outputs) = check(path, LocalDevice()).gates
    assert (outputs.verdict, outputs.reason) == ("pass", "outputs are finite")
    words = numpy_helper.from_array(np.array(["a", "b"], object), "words")
    node = helper.make_node("Gather", ["words", "x"], ["y"])
    path = save(
        tmp_path / "t.onnx", [node], [value("x", TensorProto.INT64, 3)],
        [value("y", TensorProto.STRING, 3)], [words],
    )  # fmt: skip
    (_, outputs) = check(path, LocalDevice()).gates
    assert outputs.reason == "outputs are finite; not looked at, as it is text: y"


def test_numbers_in_whatever_is_answered():
    found = numbers([np.ones(2), [np.zeros(1), {"a": 1.5, 2: 2}], np.array(["x"], object), "x"])
    assert [one.tolist() for one in found] == [[1, 1], [0], 1.5, 2]


TWO = [Input("x", ["n", 3], "float32"), Input("ids", [1, 2], "int32")]


def test_real_inputs_from_files(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6.0).reshape(2, 3))
    np.save(tmp_path / "ids.npy", np.array([[5, 6], [7, 8]]))
    found = read_inputs([f"x={tmp_path / 'x.npy'}"], TWO, tmp_path)
    assert [a.shape for a in found["x"]] == [(2, 3)]
    assert found["x"][0].dtype == np.float32
    found = read_inputs([f"ids={tmp_path / 'ids.npy'}"], TWO, tmp_path)
    assert [a.tolist() for a in found["ids"]] == [[[5, 6]], [[7, 8]]]
    folder = tmp_path / "samples"
    folder.mkdir()
    for i in range(3):
        np.savez(folder / f"{i}.npz", x=np.full((1, 3), i), ids=np.full(2, i))
    found = read_inputs([str(folder)], TWO, tmp_path)
    assert [float(a.max()) for a in found["x"]] == [0, 1, 2]
    assert [a.shape for a in found["ids"]] == [(1, 2)] * 3


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("x=none.npy", "does not exist"),
        ("wide.npy", "the inputs x, ids: write --inputs NAME="),
        ("y=wide.npy", "no input 'y', but x, ids"),
        ("x=wide.npy", r"shape \[1, 4\], input 'x' takes \['n', 3\]"),
        ("ids=half.npy", "holds float64, input 'ids' takes int32, and it does not fit"),
        ("x=text.npy", "no .npy or .npz file of numbers"),
        ("x=lfs.npy", "a Git LFS pointer"),
        ("x=empty", "holds no .npy"),
        ("x=none.npz", "no .npy or .npz file of numbers"),
        ("x=other.npz", "no .npy or .npz file of numbers"),
        ("x=no-rows.npy", "holds no sample"),
    ],
)
def test_files_that_do_not_fit(typed, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("wide.npy", np.ones((1, 4)))
    np.save("half.npy", np.full((1, 2), 0.5))
    (tmp_path / "text.npy").write_text("1 2 3")
    (tmp_path / "lfs.npy").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "empty").mkdir()
    np.savez("none.npz")
    with zipfile.ZipFile("other.npz", "w") as archive:
        archive.writestr("x.npy", "no array")
    np.save("no-rows.npy", np.ones((0, 1, 3)))
    with pytest.raises(DeploynasError, match=said) as caught:
        read_inputs([typed], TWO, tmp_path / "m.onnx")
    assert isinstance(caught.value, (InvalidInputError, MissingFileError))


def test_samples_must_be_of_all_inputs(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 1, 3)))
    np.save(tmp_path / "ids.npy", np.ones((1, 2), np.int32))
    typed = [f"x={tmp_path / 'x.npy'}", f"ids={tmp_path / 'ids.npy'}"]
    with pytest.raises(InvalidInputError, match="2 of 'x', 1 of 'ids'"):
        read_inputs(typed, TWO, tmp_path / "m.onnx")


def test_a_worker_times_the_inputs_beside_a_model(tmp_path):
    """An index that only the file has: noise would be out of the table."""
    table = numpy_helper.from_array(np.ones((1, 2), np.float32), "table")
    path = save(
        tmp_path / "m.onnx", [helper.make_node("Gather", ["table", "x"], ["y"])],
        [value("x", TensorProto.INT64, 50)], [value("y", TensorProto.FLOAT, 50, 2)], [table],
    )  # fmt: skip
    networks = Networks(RUNTIME, "", 1)
    networks.answer({"load": str(path)})
    with pytest.raises(Exception, match="[Oo]ut of"):
        networks.answer({"time": [[0, 1]]})
    np.savez(inputs_beside(path), x=np.zeros(50, np.int64))
    networks.answer({"load": str(path)})
    assert networks.answer({"time": [[1, 1]]})["ms"][0][0] > 0


class Tells:
    """A device that tells the times of nodes."""

    def __init__(self, times):
        self._times = times

    def examine(self, model, session=0):
        return Examination(None, self._times[model.name])


def test_nodes_that_the_baseline_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(regression, "EXAMINATIONS", 1)
    floats = TensorProto.FLOAT

    def chain(name, nodes):
        names = [f"v{i}" for i in range(len(nodes))]
        made = [
            helper.make_node(kind, [a], [b], node)
            for (kind, node), a, b in zip(nodes, ["x", *names], names, strict=False)
        ]
        return save(tmp_path / name, made, [value("x", floats, 3)], [value(names[-1], floats, 3)])

    old = chain("old.onnx", [("Relu", "a"), ("Exp", "b")])
    grown = chain("grown.onnx", [("Relu", "a"), ("Exp", "b"), ("Exp", "c")])
    device = Tells({
        "old.onnx": {"a": 1.0, "b": 2.0}, "grown.onnx": {"a": 1.5, "b": 2.0, "c": 9.0},
        "renamed.onnx": {"p": 1.0, "q": 5.0},
    })  # fmt: skip
    found = slower_layers(device, grown, old)
    assert found == [SlowerLayer("c", None, 9.0), SlowerLayer("a", 1.0, 1.5)]
    assert found[0].words == "c: new, 9.0000 ms"
    renamed = chain("renamed.onnx", [("Relu", "p"), ("Exp", "q")])
    assert slower_layers(device, renamed, old) == [SlowerLayer("q (was b)", 2.0, 5.0)]


def test_nodes_of_a_runtimes_own_files_are_those_of_equal_names(tmp_path, monkeypatch):
    monkeypatch.setattr(regression, "EXAMINATIONS", 1)
    device = Tells({
        "old.param": {"a": 1.0, "b": 2.0, "c": 3.0}, "new.param": {"a": 1.5, "p": 2.0, "q": 3.0},
    })  # fmt: skip
    for name in ("old.param", "new.param"):
        (tmp_path / name).write_text("7767517")
    found = slower_layers(device, tmp_path / "new.param", tmp_path / "old.param")
    assert SlowerLayer("a", 1.0, 1.5) in found
