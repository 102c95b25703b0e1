"""The supernet against the static networks that are extracted from it."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn

from deploynas import spaces
from deploynas.errors import InvalidInputError
from deploynas.nn import Supernet, build, recalibrate, supernet_of
from deploynas.nn.static import MBConv

NAMES = spaces.space_names()


def perturb(module, seed=0, scale=0.1):
    """Move every parameter: no batch norm at zero, no kernel matrix at the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return module


@functools.cache
def supernet(name):
    torch.manual_seed(0)
    space = spaces.space(name, num_classes=10, resolutions=[32])
    return perturb(supernet_of(space))


def images(n=4, side=32, seed=0):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def some_archs(space, n=3):
    drawn = space.sample(n, np.random.default_rng(3))
    return np.concatenate([space.smallest(), space.largest(), drawn])


@torch.no_grad()
def test_architectures_differ():
    net = supernet("mobile-small").train()
    outputs = [net(images(), arch) for arch in some_archs(net.space)]
    for i, first in enumerate(outputs):
        assert all(not torch.allclose(first, other) for other in outputs[i + 1 :])


@torch.no_grad()
def test_kernel_matrices_matter_and_start_as_the_identity():
    space = spaces.space("mobile-small", resolutions=[32])
    net = Supernet(space).train()
    small = space.smallest()[0]  # kernel size 3 everywhere
    block = net.slots[2]
    fresh = net.extract(small).layers[2].depthwise.conv.weight
    centre = block.full.depthwise.conv.weight[: len(fresh), :, 2:5, 2:5]
    assert torch.equal(fresh, centre)
    block.kernel_7to5 += 0.1 * torch.randn(25, 25)
    block.kernel_5to3 += 0.1 * torch.randn(9, 9)
    moved = net.extract(small).layers[2].depthwise.conv.weight
    five = (block.full.depthwise.conv.weight[: len(fresh), 0, 1:6, 1:6]).reshape(-1, 25)
    five = (five @ block.kernel_7to5.T).reshape(-1, 5, 5)
    three = five[:, 1:4, 1:4].reshape(-1, 9) @ block.kernel_5to3.T
    assert not torch.allclose(moved, fresh, atol=1e-3)
    torch.testing.assert_close(moved[:, 0], three.reshape(-1, 3, 3))


@torch.no_grad()
def test_extracted_weights_are_copies():
    net = perturb(Supernet(spaces.space("mobile-small", resolutions=[32]))).train()
    arch = net.space.largest()[0]
    before = net(images(), arch)
    perturb(net.extract(arch), seed=1, scale=1.0)
    assert torch.equal(net(images(), arch), before)


def test_forward_keeps_no_batch_statistics():
    net = perturb(Supernet(spaces.space("mobile-small", resolutions=[32]))).train()
    before = {k: v.clone() for k, v in net.named_buffers()}
    net(images(), net.space.largest()[0])
    assert before
    assert all(torch.equal(v, before[k]) for k, v in net.named_buffers())


def test_gradients_reach_full_weights_and_kernel_matrices():
    net = perturb(Supernet(spaces.space("mobile-small", resolutions=[32]))).train()
    net(images(), net.space.smallest()[0]).square().sum().backward()
    block = net.slots[2]
    for matrix in (block.kernel_7to5, block.kernel_5to3):
        assert matrix.grad.abs().max() > 0
    used = net.space.layers(net.space.smallest()[0])[2].layer.mid_channels
    grad = block.full.depthwise.conv.weight.grad
    assert grad.shape[0] > used
    assert (grad[:used, :, 1:6, 1:6] != 0).all()  # through 7 -> 5: all of the 5x5 centre
    assert (grad[used:] == 0).all()
    outside = grad.clone()
    outside[:, :, 1:6, 1:6] = 0
    assert (outside == 0).all()
    assert net.slots[-1].full.classifier.weight.grad.abs().max() > 0


def test_largest_reaches_every_weight_but_no_matrix():
    net = perturb(Supernet(spaces.space("mobile-small", resolutions=[32]))).train()
    net(images(), net.space.largest()[0]).square().sum().backward()
    for name, parameter in net.named_parameters():
        if ".kernel_" in name:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_recalibrate_gives_batch_statistics():
    net = supernet("mobile-small")
    network = net.extract(net.space.largest()[0])
    batches = [images(8, seed=s) * (1 + s) + s for s in range(3)]
    recalibrate(network, batches)
    assert not network.training
    stem = network.layers[0]
    maps = [stem.conv(batch) for batch in batches]
    mean = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    var = torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0)
    torch.testing.assert_close(stem.bn.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stem.bn.running_var, var, rtol=1e-4, atol=1e-5)
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


@torch.no_grad()
def test_recalibrate_forgets_the_past():
    net = supernet("mobile-small")
    network = net.extract(net.space.smallest()[0])
    recalibrate(network, [images(8)])
    first = {k: v.clone() for k, v in network.state_dict().items()}
    recalibrate(network, [images(8, seed=9) * 5])
    assert not torch.equal(network.layers[0].bn.running_var, first["layers.0.bn.running_var"])
    recalibrate(network, [images(8)])
    second = network.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(v, second[k]) for k, v in first.items())


@torch.no_grad()
def test_recalibrate_without_images_says_so_and_changes_nothing():
    network = build(spaces.space("mobile-small", 10), supernet("mobile-small").space.smallest()[0])
    recalibrate(network, [images(8)])
    before = {k: v.clone() for k, v in network.state_dict().items()}
    for batches in ([], iter(()), [images(0)]):
        with pytest.raises(InvalidInputError, match="no images"):
            recalibrate(network, batches)
        assert not network.training
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    recalibrate(network, [images(0), images(8)])
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@torch.no_grad()
def test_recalibrated_network_nearly_equals_train_mode():
    """On the batch itself; running variances are unbiased, a batch's are not."""
    net = supernet("mobile-small").train()
    arch = net.space.smallest()[0]
    network = net.extract(arch)
    batch = images(64)
    recalibrate(network, [batch])
    expected = net(batch, arch)
    assert (network(batch) - expected).abs().max() < 0.02 * expected.abs().max()


@torch.no_grad()
def test_sorted_channels_compute_the_same_and_the_important_come_first():
    net = copy.deepcopy(supernet("mobile-small"))
    archs = np.concatenate([net.space.largest(), net.space.smallest()])
    batch = images(4)
    before = [net.extract(arch)(batch) for arch in archs]
    net.sort_channels()
    after = [net.extract(arch)(batch) for arch in archs]
    torch.testing.assert_close(after[0], before[0], rtol=1e-4, atol=1e-5)
    assert (after[1] - before[1]).abs().max() > 1e-3  # a narrow one keeps other channels now
    blocks = [m for m in net.modules() if isinstance(m, MBConv) and hasattr(m.expand, "conv")]
    assert len(blocks) == 9
    for block in blocks:
        importance = block.project.conv.weight.abs().sum((0, 2, 3))
        assert (importance.diff() <= 1e-5).all()
