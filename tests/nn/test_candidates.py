"""The over-parameterised network: one path at a time, gates, extraction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deploynas import spaces
from deploynas.errors import InvalidInputError
from deploynas.nn import MixedNetwork


@pytest.fixture(params=[True, False], ids=["shared weights", "own weights"])
def network(request):
    torch.manual_seed(0)
    return MixedNetwork(spaces.space("proxyless-small", 3, 1, [16]), shared=request.param)


def draw(network, seed=0):
    rng = np.random.default_rng(seed)
    return network.row([rng.integers(len(alpha)) for alpha in network.alphas])


def test_extract_computes_the_path(network):
    network.eval()
    x = torch.randn(4, 1, 16, 16)
    for seed in range(5):
        arch = draw(network, seed)
        static = network.extract(arch)
        assert [n.layer for n in static.nodes] == [n.layer for n in network.space.layers(arch)]
        with torch.no_grad():
            torch.testing.assert_close(static(x), network(x, arch), rtol=0, atol=0)


def test_a_weight_step_touches_one_path(network):
    arch = draw(network)
    network(torch.randn(4, 1, 16, 16), arch).sum().backward()
    for layer in network.mixed:
        assert layer.alpha.grad is None
        if layer.elastic is not None:  # common weights: all, or none
            gradients = [p.grad for p in layer.elastic.full.parameters()]
            is_left_out = layer.state_under(arch) is None
            assert all((g is None) == is_left_out for g in gradients)
            continue
        chosen = layer.options[int(arch[layer.column])]
        for option in layer.options:
            gradients = [p.grad for p in option.parameters()]
            assert all((g is not None) == (option is chosen) for g in gradients)


def test_candidates_that_differ_otherwise_keep_their_own_weights():
    """What shares weights differs in kernel size and width alone; a stem does not."""
    network = MixedNetwork(spaces.space("proxyless-small", 3, 1, [16]))
    shared = [part.elastic is not None for part in network.slots]
    assert shared == [len(set(part.layer_ids)) > 1 for part in network.slots]
    assert any(shared)
    assert not all(shared)


def test_weights_and_alphas_are_all_parameters(network):
    every = {id(p) for p in network.parameters()}
    assert {id(p) for p in [*network.weights, *network.alphas]} == every
    assert len(network.weights) + len(network.alphas) == len(every)


def test_gates_one_and_zero_are_the_active_path(network):
    x, active, other = torch.randn(4, 1, 16, 16), draw(network, 1), draw(network, 2)
    gates = torch.tensor([[1.0, 0.0]] * len(network.mixed))
    torch.testing.assert_close(network.forward_gated(x, active, other, gates), network(x, active))


@pytest.mark.slow
def test_the_gradient_of_a_gate_is_that_of_finite_differences(network):
    """Cai et al. 2019, section 3.2: dL/dg, the gates taken as real numbers."""
    network.double()
    x, labels = torch.randn(6, 1, 16, 16).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    active, other = draw(network, 1), draw(network, 2)
    for part in network.modules():  # a residual branch starts at zero, where no gate matters
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)

    def loss(gates):
        return nn.functional.cross_entropy(network.forward_gated(x, active, other, gates), labels)

    gates = torch.tensor([[1.0, 0.0]] * len(network.mixed)).double().requires_grad_()
    (exact,) = torch.autograd.grad(loss(gates), gates)
    assert exact.abs().min() > 0
    step = 1e-7
    for index in np.ndindex(*gates.shape):
        moved = gates.detach().clone()
        moved[index] += step
        above = float(loss(moved).detach())
        moved[index] -= 2 * step
        difference = (above - float(loss(moved).detach())) / (2 * step)
        assert difference == pytest.approx(float(exact[index]), rel=1e-3, abs=1e-7)


def test_other_spaces_are_refused():
    with pytest.raises(InvalidInputError, match="not candidate operations"):
        MixedNetwork(spaces.space("mobile-small", resolutions=[28]))
    with pytest.raises(InvalidInputError, match="one resolution"):
        MixedNetwork(spaces.space("proxyless-small", resolutions=[24, 28]))
