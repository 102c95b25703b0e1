"""INT8 exports of a network that was trained on real images."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import deploynas as dn
from deploynas.data import normalise
from deploynas.data.sources import load_digits
from deploynas.device import LocalDevice
from deploynas.errors import InvalidInputError
from deploynas.export.exporter import network_bytes, priced_in_parts
from deploynas.export.manifest import Preprocessing
from deploynas.graph.quantize import layer_names, quantize
from deploynas.nn import build
from deploynas.train import Recipe, train_network
from deploynas.workflows import quantized
from deploynas.workflows.quantized import Int8

SIDE = 16


@pytest.fixture(scope="module")
def digits():
    return load_digits((), seed=0, max_size=64)


@pytest.fixture(scope="module")
def model(digits):
    """The smallest network of a space, trained for some seconds."""
    space = dn.space("mobile-small", digits.num_classes, digits.channels, [SIDE])
    torch.manual_seed(0)
    network = build(space, space.smallest()[0])
    train_network(network, digits, Recipe(epochs=6, batch_size=64, augment_from=99))
    return network_bytes(network.eval(), metadata={"classes": "ten"})


@pytest.fixture(scope="module")
def preprocessing(digits):
    return Preprocessing(
        resolution=SIDE, channels=digits.channels, mean=digits.mean, std=digits.std
    )


def run(content, images):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": x[None]})[0] for x in images])


def operators(content):
    return [node.op_type for node in onnx.load_from_string(content).graph.node]


@pytest.mark.slow
def test_int8_is_accurate_and_measured(model, digits, preprocessing):
    content, record = Int8(digits, 0.02, LocalDevice())(
        model, preprocessing, lambda text, share: None
    )
    assert len(content) < len(model)
    assert "QuantizeLinear" in operators(content)
    assert record.accuracy_float > 0.8
    assert record.accuracy_int8 >= record.accuracy_float - 0.02
    assert 0 < record.ratio_low <= record.ratio <= record.ratio_high
    assert record.is_faster in (True, False, None)
    metadata = {p.key: p.value for p in onnx.load_from_string(content).metadata_props}
    assert metadata == {"classes": "ten"}
    images = normalise(digits.test.batch(np.arange(64), SIDE, SIDE), digits.mean, digits.std)
    same = run(content, images).argmax(1) == run(model, images).argmax(1)
    assert same.mean() > 0.9


@pytest.mark.slow
def test_layers_in_float(model, digits):
    images = normalise(digits.train.batch(np.arange(16), SIDE, SIDE), digits.mean, digits.std)
    names = layer_names(model)
    assert names == [f"layers.{i}" for i in range(len(names))]
    everything = quantize(model, images)
    some = quantize(model, images, names[:2])
    assert operators(some).count("QuantizeLinear") < operators(everything).count("QuantizeLinear")
    nothing = quantize(model, images, names)
    assert np.abs(run(nothing, images) - run(model, images)).max() < 1e-3


@pytest.mark.slow
def test_sensitive_layers_stay_in_float(model, digits, preprocessing, monkeypatch):
    """One layer's weights are such that 8 bits cannot hold them: it is found."""
    broken = onnx.load_from_string(model)
    names = layer_names(model)
    victim = names[3]
    found = []

    def spoiled(content, images, float_layers=()):
        made = onnx.load_from_string(quantize(content, images, float_layers))
        if victim not in float_layers:
            for tensor in made.graph.initializer:
                if re.match(rf"{victim}\..*weight_quantized", tensor.name):
                    tensor.raw_data = bytes(len(tensor.raw_data))
        found.append(float_layers)
        return made.SerializeToString()

    monkeypatch.setattr(quantized, "quantize", spoiled)
    _, record = Int8(digits, 0.03, None)(
        broken.SerializeToString(), preprocessing, lambda text, share: None
    )
    assert record.float_layers == (victim,)
    assert record.accuracy_int8 >= record.accuracy_float - 0.03
    assert record.ratio is None
    assert record.is_faster is None


def test_layers_in_float_are_priced_as_float(digits, board_profile, tmp_path):
    """Beside an int8 table that says a quarter of the float times."""
    space = dn.space("mobile-small", digits.num_classes, digits.channels, [SIDE])
    profile = board_profile(space)
    nodes = space.layers(space.smallest()[0])
    quarter = {
        key.replace("fp32/", "int8/"): record.model_copy(
            update={
                "samples": record.samples.model_copy(
                    update={"ms": tuple(tuple(x / 4 for x in s) for s in record.samples.ms)}
                )
            }
        )
        for key, record in profile.layers.items()
    }
    path = tmp_path / "profile.json"
    profile.model_copy(update={"layers": {**profile.layers, **quarter}}).write(path)
    quantization = SimpleNamespace(float_layers=("layers.1", "layers.3"))
    manifest = SimpleNamespace(predicted_latency_ms=1.0, quantization=quantization, drift=None)
    alone = sum(profile.layer_ms(nodes[i].layer) for i in (1, 3))
    found = priced_in_parts(manifest, path, nodes)
    assert found == pytest.approx(1.0 + 0.75 * alone)
    assert priced_in_parts(manifest, tmp_path / "none.json", nodes) is None
    profile.write(path)  # float alone
    assert priced_in_parts(manifest, path, nodes) is None


@pytest.mark.slow
def test_a_drop_that_cannot_be_kept(model, digits, preprocessing, monkeypatch):
    monkeypatch.setattr(quantized, "logit_error", lambda model, other, images: 0.0)
    with pytest.raises(InvalidInputError, match="even with half of the layers in float"):
        Int8(digits, -1.0, None)(model, preprocessing, lambda text, share: None)
