"""Subnets that train on lent weights: the same gradients as through the supernet itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deploynas import spaces
from deploynas.nn import Lender, Supernet

pytestmark = pytest.mark.slow


@pytest.fixture
def supernet():
    torch.manual_seed(0)
    return Supernet(spaces.space("mobile-small", resolutions=[20])).train()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 20, 20, generator=generator), torch.arange(8)


def archs_of(space):
    """The ends, and random ones between them with small kernels."""
    drawn = space.sample(4, np.random.default_rng(0))
    return np.concatenate([space.largest(), space.smallest(), drawn])


def through_autograd(supernet, archs, x, y):
    for arch in archs:
        nn.functional.cross_entropy(supernet(x, arch), y).backward()
    found = {name: p.grad for name, p in supernet.named_parameters()}
    supernet.zero_grad(set_to_none=True)
    return found


def through_loans(supernet, lender, archs, x, y):
    for arch in archs:
        loan = supernet.lend(arch, lender)
        lender.open(loan)
        nn.functional.cross_entropy(loan.run(x), y).backward()
    found = {n: None if p.grad is None else p.grad.clone() for n, p in supernet.named_parameters()}
    supernet.zero_grad(set_to_none=True)
    return found


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        if wanted is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-6, msg=name)


def test_gradients_of_a_step_are_those_of_the_supernet(supernet, batch):
    archs = archs_of(supernet.space)
    lender = Lender()
    for step in range(3):  # layers and gradients are kept between steps
        some = archs[step : step + 3]
        expected = through_autograd(supernet, some, *batch)
        assert any(g is not None and g.abs().max() > 0 for g in expected.values())
        assert_close(through_loans(supernet, lender, some, *batch), expected)
        with torch.no_grad():
            for parameter in supernet.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))


def test_what_a_step_does_not_use_has_no_gradient(supernet, batch):
    """Else momentum and weight decay would move it."""
    lender = Lender()
    through_loans(supernet, lender, supernet.space.largest(), *batch)
    found = through_loans(supernet, lender, supernet.space.smallest(), *batch)
    assert found["slots.2.kernel_7to5"] is not None
    deepest = [n for n in found if n.startswith(f"slots.{len(supernet.slots) - 2}.")]
    assert deepest
    assert all(found[name] is None for name in deepest)


def test_lent_weights_are_the_supernets(supernet, batch):
    arch = archs_of(supernet.space)[2]
    loan = supernet.lend(arch, Lender())
    torch.testing.assert_close(loan.run(batch[0]), supernet(batch[0], arch))
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(loan.run(batch[0]), supernet(batch[0], arch))


def test_loans_outlive_the_sorting_of_channels(supernet, batch):
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    arch = supernet.space.smallest()[0]
    loan = supernet.lend(arch, Lender())
    before = loan.run(batch[0])
    supernet.sort_channels()
    assert not torch.allclose(loan.run(batch[0]), before, atol=1e-3)
    torch.testing.assert_close(loan.run(batch[0]), supernet(batch[0], arch))


def test_forward_passes_leave_no_statistics(supernet, batch):
    before = {name: tensor.clone() for name, tensor in supernet.named_buffers()}
    supernet.lend(supernet.space.largest()[0], Lender()).run(batch[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.named_buffers())
