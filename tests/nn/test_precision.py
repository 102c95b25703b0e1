"""Every network of shared weights trains under autocast, as on a GPU: here in bfloat16."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import deploynas as dn
from deploynas.nn import Lender, MixedNetwork, Supernet, mixture_of, supernet_of
from deploynas.train.task import CLASSIFICATION

pytestmark = pytest.mark.slow

SIDE = 16
SPACES = ["mobile-small", "one-shot", "proxyless-small", "darts"]


def trains(network, logits_of):
    """Forward under autocast and backward; what got a gradient."""
    x = torch.randn(4, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = logits_of(x)
        loss = CLASSIFICATION.loss(logits, torch.arange(4))
    assert loss.dtype == torch.float32
    loss.backward()
    found = [p for p in network.parameters() if p.grad is not None]
    assert found
    for parameter in found:
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()
    return logits


def made(build, name):
    torch.manual_seed(0)
    return build(dn.space(name, 10, 3, [SIDE])).train()


@pytest.mark.parametrize("name", SPACES)
def test_a_path(name):
    network = made(supernet_of, name)
    for arch in network.space.sample(2, np.random.default_rng(0)):
        assert trains(network, lambda x, a=arch: network(x, a)).dtype == torch.bfloat16


def test_lent_kernels_of_every_size():
    network = made(Supernet, "mobile-small")
    lender = Lender()
    for arch in (network.space.largest()[0], network.space.smallest()[0]):
        loan = network.lend(arch, lender)
        lender.open(loan)
        assert trains(network, loan.run).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["proxyless-small", "darts"])
def test_all_candidates_at_once(name):
    network = made(mixture_of, name)
    trains(network, lambda x: network.forward_mixed(x, network.mixtures("softmax")))


def test_gated_paths():
    network = made(MixedNetwork, "proxyless-small")
    paths = network.space.sample(2, np.random.default_rng(0))
    gates = torch.tensor([[1.0, 0.0]] * len(network.mixed), requires_grad=True)
    trains(network, lambda x: network.forward_gated(x, *paths, gates))
    assert torch.isfinite(gates.grad).all()
