"""Emitted ONNX against torch, through the real ONNX Runtime."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from deploynas import spaces
from deploynas.errors import InvalidInputError
from deploynas.graph.emit import DEFAULT_OPSET, MIN_OPSET, RandomWeights, StateWeights, emit
from deploynas.nn import Supernet, build, recalibrate
from deploynas.spaces import Layer
from deploynas.spaces.layers import chain


def perturb(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def images(n, side, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, side, side, generator=generator)


def state_of(module, prefix=""):
    return StateWeights({prefix + k: v.numpy() for k, v in module.state_dict().items()})


def session(model):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(model, batch):
    opened = session(model)
    return np.concatenate([opened.run(None, {"image": x[None].numpy()})[0] for x in batch])


def assert_near(found, expected):
    assert found.shape == expected.shape
    assert expected.std() > 1e-3
    assert np.abs(found - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


@functools.cache
def small_net():
    """An extracted, recalibrated network of mobile-small."""
    torch.manual_seed(0)
    space = spaces.space("mobile-small", resolutions=[28])
    net = perturb(Supernet(space)).extract(space.sample(1, np.random.default_rng(0))[0])
    recalibrate(net, [images(8, 28)])
    return net


@pytest.mark.parametrize("opset", [MIN_OPSET, 15, DEFAULT_OPSET, 19])
@torch.no_grad()
def test_opsets(opset):
    net, batch = small_net(), images(1, 28)
    model = emit(net.nodes, state_of(net), opset=opset)
    assert [o.version for o in model.opset_import] == [opset]
    assert_near(run(model, batch), net(batch).numpy())


def test_old_opset_is_refused():
    with pytest.raises(InvalidInputError, match="opset 13 is too old"):
        emit(small_net().nodes, RandomWeights(), opset=MIN_OPSET - 1)


def test_shapes_are_fixed():
    opened = session(emit(small_net().nodes, RandomWeights()))
    (image,), (logits,) = opened.get_inputs(), opened.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(float)", [1, 3, 28, 28])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", [1, 10])


def test_single_layer_gives_a_feature_map():
    layer = Layer("conv", 3, 8, 15, 15, kernel_size=3, stride=2, activation="relu")
    (output,) = session(emit(chain([layer]), RandomWeights())).get_outputs()
    assert (output.name, output.shape) == ("features", [1, 8, 8, 8])


def test_metadata():
    model = emit(small_net().nodes, RandomWeights(), metadata={"space": "mobile-small"})
    seed = {"random_weights_seed": "0"}
    found = session(model).get_modelmeta().custom_metadata_map
    assert found == {"space": "mobile-small"} | seed


@pytest.mark.parametrize(
    "name",
    ["layers.0.conv.weight", "layers.1.depthwise.bn.running_var", "layers.2.project.bn.bias"],
)
def test_missing_tensor_is_named(name):
    net = small_net()
    state = {k: v.numpy() for k, v in net.state_dict().items() if k != name}
    with pytest.raises(InvalidInputError, match=f"lack the tensor '{name}'"):
        emit(net.nodes, StateWeights(state))


def test_random_weights_are_deterministic():
    def content(seed):
        return emit(small_net().nodes, RandomWeights(seed)).SerializeToString()

    assert content(1) == content(1)
    assert content(1) != content(2)


def test_random_weights_keep_activations_normal():
    space = spaces.space("ofa-mbv3-w1.0", resolutions=[64])
    model = emit(space.layers(space.largest()[0]), RandomWeights())
    logits = run(model, images(1, 64))
    assert np.isfinite(logits).all()
    assert 1e-2 < logits.std() < 1e2


@pytest.mark.parametrize("name", ["mobile-small", "ofa-mbv3-w1.0"])
def test_weight_bytes_are_those_of_the_file(name):
    space = spaces.space(name)
    archs = space.sample(3, np.random.default_rng(0))
    for arch, expected in zip(archs, space.weight_bytes(archs), strict=True):
        graph = emit(space.layers(arch), RandomWeights()).graph
        assert sum(onnx.numpy_helper.to_array(t).nbytes for t in graph.initializer) == expected


def test_names_are_unique_and_batch_norm_is_folded():
    graph = emit(small_net().nodes, RandomWeights()).graph
    outputs = [o for node in graph.node for o in node.output]
    assert len(set(outputs)) == len(outputs)
    assert "BatchNormalization" not in {node.op_type for node in graph.node}


def test_parameters_of_a_fresh_build_are_enough():
    space = spaces.space("mobile-small", num_classes=4, in_channels=1)
    net = build(space, space.largest()[0])
    model = emit(net.nodes, state_of(net))
    assert run(model, images(1, 28, 1)).shape == (1, 4)
