"""A network in a runtime's own format: written beside the ONNX file, gated as that is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploynas import spaces
from deploynas.check import Baseline
from deploynas.check.accuracy import Examples, ImageInput, file_accuracy
from deploynas.check.inputs import Given
from deploynas.check.model_file import costs_of
from deploynas.check.verdict import check
from deploynas.data.sources import load_digits
from deploynas.device import open_device
from deploynas.errors import (
    DeviceError,
    InvalidInputError,
    MissingFileError,
    ModelError,
    ParityError,
    UnknownNameError,
)
from deploynas.export import Manifest, formats
from deploynas.export.exporter import _write
from deploynas.export.formats import in_format
from deploynas.graph.emit import RandomWeights, emit
from deploynas.runtimes import of_file, of_format
from deploynas.runtimes.litert import RUNTIME
from deploynas.workflows.inspect import inspect_model

SHIPPED = Path(__file__).parents[2] / "exports" / "fashion-mnist"
pytest.importorskip("ai_edge_litert")
pytestmark = pytest.mark.usefixtures("short_sessions")


@pytest.fixture(scope="module")
def content():
    space = spaces.space("mobile-small", num_classes=10, in_channels=1, resolutions=[32])
    model = emit(space.layers(space.smallest()[0]), RandomWeights(), metadata={"classes": "ten"})
    return model.SerializeToString()


@pytest.fixture(scope="module")
def written(content):
    return in_format(RUNTIME, content)


@pytest.fixture
def folder(content, written, tmp_path):
    for name, data in {"model.onnx": content, **written[0]}.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_what_is_written(written):
    files, converted = written
    assert list(files) == list(converted.files) == ["model.tflite"]
    assert converted.runtime.startswith("litert ")
    assert 0 < converted.difference < 1e-5
    assert b"ten" in files["model.tflite"]  # the classes are inside


def test_a_manifest_names_it_first(written):
    manifest = Manifest.model_construct(converted=written[1], model_sha256="a")
    assert list(manifest.files) == ["model.tflite", "model.onnx"]
    assert list(manifest.model_copy(update={"converted": None}).files) == ["model.onnx"]


def test_what_answers_otherwise_is_not_written(content, monkeypatch):
    monkeypatch.setattr(formats, "TOLERANCE", 1e-12)
    with pytest.raises(ParityError, match=r"model.tflite answers otherwise than model.onnx, by "):
        in_format(RUNTIME, content)


def test_formats_by_name(tmp_path):
    assert of_format("tflite") is of_format("litert") is of_file(tmp_path / "a.tflite") is RUNTIME
    assert of_format("onnx") is of_file(tmp_path / "a.onnx") is of_file(tmp_path / "a")
    with pytest.raises(UnknownNameError, match="did you mean 'tflite'"):
        of_format("tflit")


def test_what_an_earlier_export_named_goes_and_nothing_else(written, tmp_path):
    manifest = Manifest.read(SHIPPED / "manifest.json")
    earlier = manifest.model_copy(update={"converted": written[1]})
    files = {"model.onnx": b"new", "manifest.json": manifest.content}
    _write(tmp_path, {**files, **written[0], "manifest.json": earlier.content})
    (tmp_path / "model.md").write_text("my notes")
    _write(tmp_path, files)
    assert {path.name for path in tmp_path.iterdir()} == {"model.md", *files}
    (tmp_path / "manifest.json").write_text("{")
    (tmp_path / "model.tflite").write_bytes(b"mine")
    _write(tmp_path, files)
    assert (tmp_path / "model.tflite").read_bytes() == b"mine"


@pytest.mark.slow
def test_check_measures_it(folder):
    device = open_device("litert")
    baseline = Baseline(folder / "model.onnx", max_regression=3.0)  # converted, it is the same
    result = check(
        folder / "model.tflite", device, limits={"latency_ms": 1e4, "file_bytes": 2e6},
        baseline=baseline,
    )  # fmt: skip
    assert result.verdict == "pass"
    assert {gate.name for gate in result.gates} == {"latency", "regression", "size", "outputs"}
    size = (folder / "model.tflite").stat().st_size
    assert result.taken["file_bytes"] == size


def test_inspect_counts_what_the_onnx_file_has(folder):
    of_onnx, own = (inspect_model(folder / f"model.{kind}") for kind in ("onnx", "tflite"))
    assert (
        own["macs"]
        == of_onnx["macs"]
        == sum(node.macs for node in costs_of(folder / "model.onnx"))
    )
    assert own["uncounted"] == []
    assert own["layers"][0]["kind"] == "PAD"
    assert own["layers"][0]["input"] == [1, 32, 32, 1]
    assert own["layers"][-1]["output"] == [1, 10]
    assert 0.9 < own["weight_bytes"] / of_onnx["weight_bytes"] < 1.1
    (folder / "cut.tflite").write_bytes((folder / "model.tflite").read_bytes()[:3000])
    with pytest.raises(InvalidInputError, match="is not a .tflite file, or is damaged"):
        inspect_model(folder / "cut.tflite")


def test_its_accuracy_is_that_of_the_onnx_file(folder):
    examples = Examples.of(load_digits((), seed=0, max_size=64), None)
    examples = replace(examples, split=examples.split.take(np.arange(60)))
    found = {
        name: file_accuracy(folder / name, examples, lambda text, share: None)
        for name in ("model.onnx", "model.tflite")
    }
    assert found["model.onnx"] == found["model.tflite"]
    assert ImageInput.of(folder / "model.tflite").height == 32


def test_what_cannot_be_judged_says_why(folder, tmp_path):
    device = open_device("litert")
    with pytest.raises(ModelError, match="it is a file of litert .try --device litert"):
        check(folder / "model.tflite", open_device("cpu"))
    cut = tmp_path / "cut.tflite"
    cut.write_bytes((folder / "model.tflite").read_bytes()[:3000])
    with pytest.raises(DeviceError, match="failed with cut: .*not a valid Flatbuffer"):
        check(cut, device)
    cut.write_bytes(b"")
    with pytest.raises(InvalidInputError, match="is empty"):
        check(cut, device)
    with pytest.raises(MissingFileError):
        check(tmp_path / "none.tflite", device)
    with pytest.raises(InvalidInputError, match="--input-shape is for ONNX files"):
        check(folder / "model.tflite", device, given=Given(["1,1,32,32"]))
