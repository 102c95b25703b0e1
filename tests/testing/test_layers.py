"""Every kind of layer has its records, and they agree; the check itself sees what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from deploynas.errors import InvalidInputError
from deploynas.graph import RandomWeights, emit
from deploynas.graph.emitters import EMITTERS
from deploynas.nn.static import MODULES, ModuleKind, build_layer
from deploynas.spaces import Layer
from deploynas.spaces.layers import KINDS, chain, macs
from deploynas.testing import check_layer, check_slices

LAYERS = [
    Layer("conv", 3, 16, 15, 15, kernel_size=3, stride=2, activation="h_swish"),
    Layer("conv", 4, 6, 5, 7, kernel_size=5, bias=True, batch_norm=False),
    Layer("conv", 4, 6, 5, 5, activation="relu6"),
    Layer("conv", 3, 8, 15, 15, batch_norm=False, activation="relu"),
    Layer("mbconv", 8, 8, 9, 9, kernel_size=3, mid_channels=8, expand=False, activation="relu",
          residual=True),
    Layer("mbconv", 8, 16, 9, 12, kernel_size=5, stride=2, mid_channels=24, activation="relu6"),
    Layer("mbconv", 8, 8, 9, 9, kernel_size=7, mid_channels=32, se_channels=8,
          activation="h_swish", residual=True, batch_norm_eps=1e-3),
    Layer("uib", 8, 8, 9, 9, kernel_size=0, mid_channels=16, activation="relu", residual=True),
    Layer("uib", 8, 12, 9, 12, kernel_size=0, mid_channels=16, activation="relu", stride=2,
          start_kernel_size=5),
    Layer("uib", 8, 12, 9, 9, kernel_size=3, mid_channels=16, activation="h_swish", stride=2,
          start_kernel_size=5),
    Layer("uib", 8, 8, 9, 9, kernel_size=5, mid_channels=16, activation="relu6", residual=True),
    Layer("head", 16, 10, 4, 4, mid_channels=32, feature_channels=24, activation="h_swish"),
    Layer("head", 16, 10, 4, 4, mid_channels=32, activation="relu6"),
    Layer("head", 16, 10, 4, 4),
    Layer("relu_conv", 6, 8, 7, 7),
    Layer("factorised_reduce", 6, 7, 9, 8, stride=2),
    Layer("factorised_reduce", 6, 8, 8, 8, stride=2),
    Layer("sep_conv", 8, 8, 9, 9, kernel_size=5, stride=2),
    Layer("sep_conv", 8, 12, 8, 8, kernel_size=3),
    Layer("dil_conv", 8, 8, 9, 9, kernel_size=3, dilation=2),
    Layer("dil_conv", 8, 8, 10, 10, kernel_size=5, dilation=2, stride=2),
    Layer("avg_pool", 8, 8, 9, 9, kernel_size=3, stride=2),
    Layer("max_pool", 8, 8, 8, 8, kernel_size=3),
    Layer("add", 8, 8, 8, 8, num_inputs=2),
    Layer("concat", 8, 24, 8, 8, num_inputs=3),
    Layer("avg_pool", 8, 8, 9, 8, kernel_size=2, stride=2),
    Layer("max_pool", 8, 8, 7, 9, kernel_size=2, stride=2),
    Layer("relu_conv", 6, 8, 9, 8, kernel_size=3, stride=2),
    Layer("bn_relu", 8, 8, 5, 7),
    Layer("zeros", 8, 8, 5, 7),
]  # fmt: skip
SLICES = {
    "mbconv": [
        Layer("mbconv", 8, 8, 9, 9, kernel_size=k, mid_channels=m, se_channels=m // 4,
              activation="h_swish", residual=True)
        for k in (3, 5, 7)
        for m in (16, 32, 48)
    ],
    "head": [Layer("head", 8, 4, 5, 5, mid_channels=m, activation="relu") for m in (8, 16)],
    "uib": [
        Layer("uib", 8, 8, 9, 9, kernel_size=k, mid_channels=m, start_kernel_size=3)
        for k in (3, 5)
        for m in (16, 24)
    ],
    "sep_conv": [Layer("sep_conv", 8, 8, 9, 9, kernel_size=k) for k in (3, 5)],
    "dil_conv": [Layer("dil_conv", 8, 8, 9, 9, kernel_size=k, dilation=2) for k in (3, 5)],
    "conv": [Layer("conv", 8, 8, 9, 9, kernel_size=k) for k in (1, 3)],
    "relu_conv": [Layer("relu_conv", 8, 8, 9, 9, kernel_size=k) for k in (1, 3)],
}  # fmt: skip
WITHOUT_SLICES = {
    "factorised_reduce", "avg_pool", "max_pool", "add", "concat", "bn_relu", "zeros",
}  # fmt: skip


def test_every_kind_is_recorded_and_checked():
    assert KINDS.keys() == MODULES.keys() == EMITTERS.keys() == {x.kind for x in LAYERS}
    assert SLICES.keys() | WITHOUT_SLICES == KINDS.keys()


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.key)
def test_layer(layer):
    check_layer(layer)


@pytest.mark.parametrize("kind", SLICES)
def test_slices(kind):
    check_slices(SLICES[kind])


def test_an_unknown_kind_is_named():
    layer = Layer("fire", 3, 8, 8, 8)
    for use in (macs, build_layer, lambda x: emit(chain([x]), RandomWeights())):
        with pytest.raises(InvalidInputError, match="unknown layer kind 'fire'"):
            use(layer)
    with pytest.raises(AssertionError, match="no record of the kind 'fire'"):
        check_layer(layer)


@pytest.fixture
def own_kind(monkeypatch):
    """Another package's kind, a convolution by another name, by what each record holds."""
    layer = Layer("mine", 4, 6, 5, 5, kernel_size=3)

    def register(kind=KINDS["conv"], module=MODULES["conv"], emitter=EMITTERS["conv"]):
        for records, record in ((KINDS, kind), (MODULES, module), (EMITTERS, emitter)):
            monkeypatch.setitem(records, "mine", record)
        return layer

    return register


def test_another_packages_kind(own_kind):
    check_layer(own_kind())


def test_wrong_macs_are_found(own_kind):
    doubled = replace(KINDS["conv"], convs=lambda layer: KINDS["conv"].convs(layer) * 2)
    with pytest.raises(AssertionError):
        check_layer(own_kind(kind=doubled))


def test_a_wrong_shape_is_found(own_kind):
    module = ModuleKind(lambda layer: nn.Conv2d(4, 6, 3, bias=False))
    with pytest.raises(AssertionError):
        check_layer(own_kind(module=module))


def test_wrong_operators_are_found(own_kind):
    def with_relu(graph, layer, name, sources):
        x = graph.op("Relu", sources)
        return EMITTERS["conv"](graph, layer, name, [x])

    with pytest.raises(AssertionError, match="ONNX Runtime and torch differ"):
        check_layer(own_kind(emitter=with_relu))


def test_sliced_channels_must_be_the_same_after_sorting(monkeypatch):
    def shuffle(module):
        weight = module.project.conv.weight
        weight.data = weight.data.flip(1)

    monkeypatch.setitem(MODULES, "mbconv", replace(MODULES["mbconv"], sort_channels=shuffle))
    with pytest.raises(AssertionError, match="sorting the channels"):
        check_slices(SLICES["mbconv"])
