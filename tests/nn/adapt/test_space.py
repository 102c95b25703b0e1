"""A network of one's own as a search space: what its options leave, counted and cut."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from foreign import EXAMPLE, Concatenated, Residual, Shuffled
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deploynas.errors import InvalidInputError
from deploynas.nn.adapt import read
from deploynas.nn.adapt.files import INPUT, onnx_bytes
from deploynas.nn.adapt.importance import by_magnitude, by_taylor
from deploynas.nn.adapt.sources import with_classes
from deploynas.nn.adapt.space import AdaptedSpace, few_widths, widths
from deploynas.search import Budget, Effort, Problem, explore
from deploynas.search.sensitivity import STRATEGY

NETWORKS = [Residual, Concatenated, Shuffled]


def space_of(kind, seed=0):
    torch.manual_seed(seed)
    return AdaptedSpace(read(kind(), EXAMPLE))


def some(space, n=6):
    rng = np.random.default_rng(0)
    return np.concatenate([space.largest(), space.smallest(), space.sample(n, rng)])


@pytest.mark.parametrize("kind", NETWORKS)
def test_costs_are_those_of_the_networks_that_are_cut(kind):
    space = space_of(kind)
    archs = some(space)
    macs, params = space.macs(archs), space.params(archs)
    for arch, counted, held in zip(archs, macs, params, strict=True):
        module = space.module(arch)
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            module(EXAMPLE)
        assert counted == flops.get_total_flops() // 2
        assert held == sum(p.numel() for p in module.parameters())
    assert len(set(macs.tolist())) > 3


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_largest_network_answers_as_the_original(kind):
    space = space_of(kind)
    with torch.no_grad():
        found, expected = (m(EXAMPLE) for m in (space.module(space.largest()[0]),
                                                space.reading.module.eval()))  # fmt: skip
    assert torch.equal(found, expected)


def test_what_can_be_chosen_has_names():
    space = space_of(Residual)
    names = [choice.name for choice in space.choices]
    assert "depth block" in names
    assert "kernel block.spatial.0" in names
    assert "width block.expand.0" in names
    (row,) = space.encode(space.decode(space.smallest()))
    assert (row == space.smallest()[0]).all()


def test_the_memory_of_a_network_is_its_weights_and_its_busiest_layer():
    space = space_of(Residual)
    rows = some(space)
    held = space.peak_memory_bytes(rows) - 4 * space.params(rows)
    # the depthwise layer reads and makes 12 channels of 16 x 16 pixels
    assert held[0] == 4 * 2 * 12 * 16 * 16
    assert (held > 0).all()


def test_narrower_networks_keep_the_important_channels():
    torch.manual_seed(0)
    reading = read(Residual(), EXAMPLE)
    place = next(i for i, g in enumerate(reading.groups) if "block.expand.0" in g.layers)
    loud = [1, 4, 6]
    with torch.no_grad():
        reading.module.block.expand[0].weight[loud] *= 30
        reading.module.block.project[0].weight[:, loud] *= 30
    order = by_magnitude(reading)
    assert sorted(order[place][:3]) == loud
    space = AdaptedSpace(reading, order)
    arch = space.largest()[0].copy()
    arch[place] = 0
    kept = space.kept(arch)[place]
    assert len(kept) == space.choices[place].options[0]
    assert set(loud) <= set(kept)


def test_importance_by_the_loss_finds_what_the_answer_rests_on():
    """All of a channel's readers are zero but those of two channels."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    used = [3, 11]
    with torch.no_grad():
        module[5].weight[:, [i for i in range(16) if i not in used]] *= 1e-3
    reading = read(module, EXAMPLE)
    batch = (torch.randn(32, 3, 16, 16), torch.randint(5, (32,)))
    asked = [p.requires_grad for p in module.parameters()]
    order = by_taylor(reading, [batch], nn.functional.cross_entropy)
    assert sorted(order[0][:2]) == used
    assert [p.requires_grad for p in module.parameters()] == asked
    assert all(p.grad is None for p in module.parameters())


def test_files_answer_as_the_networks():
    space = space_of(Shuffled)
    for arch in some(space, 2):
        module = space.module(arch)
        session = onnxruntime.InferenceSession(onnx_bytes(module, EXAMPLE))
        (found,) = session.run(None, {INPUT: EXAMPLE.numpy()})
        with torch.no_grad():
            assert np.abs(found - module(EXAMPLE).numpy()).max() < 1e-5


def test_a_search_keeps_its_limits():
    space = space_of(Residual)
    limit = float(space.macs(space.largest())[0]) * 0.5

    class Known:
        def __init__(self):
            self.space = space

    problem = Problem(Known(), Budget(macs=limit))
    score = lambda archs: 0.2 + 0.5 * space.macs(archs) / limit / 2  # noqa: E731
    history = explore(
        STRATEGY, STRATEGY.options(), problem, score, np.random.default_rng(0), Effort(60)
    )
    macs = space.macs(history.archs)
    assert macs.max() <= limit
    assert macs[history.best(1)[0]] > 0.9 * limit


def test_what_is_narrowed_uniformly_is_as_wide_as_it_may_be():
    space = space_of(Concatenated)
    limit = 0.6 * space.macs(space.largest())[0]
    (row,) = space.narrowed(lambda rows: space.macs(rows) <= limit)
    assert 0.3 * limit < space.macs(row[None])[0] <= limit


@pytest.mark.parametrize(
    ("size", "found"), [(3, [1, 2, 3]), (16, [8, 16]), (64, [16, 24, 32, 40, 48, 56, 64])]
)
def test_widths_are_steps_of_the_device(size, found):
    assert widths(size) == found


def test_many_widths_are_thinned_out():
    found = few_widths(960)
    assert len(found) == 9
    assert (found[0], found[-1]) == (240, 960)
    assert all(w % 8 == 0 for w in found)


def test_kept_modules_stay_whole():
    torch.manual_seed(0)
    reading = read(Residual(), EXAMPLE)
    kept = reading.without(["block.*", "stem.?"])
    assert not [g for g in kept.groups if any("block" in name for name in g.layers)]
    assert not kept.kernels
    assert kept.macs({}) == reading.macs({})
    space = AdaptedSpace(reading.without(["stem"]))
    row = some(space)[1:2]
    module = space.module(row[0])
    assert space.params(row)[0] == sum(p.numel() for p in module.parameters())
    with pytest.raises(InvalidInputError, match="names nothing"):
        reading.without(["steam"])


def test_a_network_without_choices_is_told():
    reading = read(Residual(), EXAMPLE).without(["stem", "block"])
    with pytest.raises(InvalidInputError, match="nothing in Residual can be chosen"):
        AdaptedSpace(reading)


def test_other_classes_get_a_new_last_layer():
    torch.manual_seed(0)
    module = Residual()
    assert not with_classes(module, EXAMPLE, 5)
    assert with_classes(module, EXAMPLE, 3)
    assert module(EXAMPLE).shape == (1, 3)
    assert read(module, EXAMPLE).num_outputs == 3
