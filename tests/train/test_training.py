"""The training loop on real digits: it learns, and goes on after a kill as if nothing had been."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deploynas import spaces
from deploynas.data.sources import _load_digits
from deploynas.errors import InvalidInputError
from deploynas.nn import Supernet, build
from deploynas.train import (
    Batches,
    Recipe,
    SupernetEvaluator,
    SupernetRecipe,
    accuracy,
    loop,
    train_network,
    train_supernet,
)

RECIPE = SupernetRecipe(epochs=0.5, batch_size=64, num_random=1)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def digits():
    return _load_digits((), seed=0, max_size=64)


@pytest.fixture
def space(digits):
    return spaces.space("mobile-small", digits.num_classes, digits.channels, [20])


def new_supernet(space):
    torch.manual_seed(0)
    return Supernet(space)


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(v, second[k]) for k, v in first.items())


def test_a_killed_training_goes_on(digits, space, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    whole = new_supernet(space)
    train_supernet(whole, digits, RECIPE)

    def kill(progress):
        if progress.step == 4:
            raise Killed

    killed = new_supernet(space)
    path = tmp_path / "checkpoint"
    with pytest.raises(Killed):
        train_supernet(killed, digits, RECIPE, checkpoint=path, on_progress=kill)
    steps = []
    resumed = Supernet(space)  # other weights: the checkpoint's must replace them
    train_supernet(
        resumed, digits, RECIPE, checkpoint=path, on_progress=lambda p: steps.append(p.step)
    )
    assert steps[0] == 4  # the step in hand was lost, no other
    assert_same(state(whole), state(resumed))


def test_a_checkpoint_of_another_recipe_is_refused(digits, space, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    path = tmp_path / "checkpoint"
    train_supernet(new_supernet(space), digits, RECIPE, checkpoint=path)
    other = RECIPE.model_copy(update={"learning_rate": 0.1})
    with pytest.raises(InvalidInputError, match="another data set, space or recipe"):
        train_supernet(new_supernet(space), digits, other, checkpoint=path)


def test_a_training_that_diverges_says_so(digits, space):
    wild = Recipe(epochs=2, batch_size=64, learning_rate=1e12)
    network = build(space, space.smallest()[0])
    with pytest.raises(loop.DivergedError, match="lower learning rate"):
        train_network(network, digits, wild)


def test_fine_tuning_improves_on_the_supernet(digits, space):
    supernet = new_supernet(space)
    train_supernet(supernet, digits, SupernetRecipe(epochs=3, batch_size=64, num_random=1))
    network = SupernetEvaluator(supernet, digits).extract(space.smallest()[0])
    val = Batches(digits, digits.val, torch.device("cpu"))
    before, weights = accuracy(network, val, 20), state(supernet)
    train_network(network, digits, Recipe(epochs=4, batch_size=64, learning_rate=0.05))
    assert accuracy(network, val, 20) > before + 0.02
    assert not network.training
    assert_same(weights, state(supernet))  # the subnet had its own copy


def test_batch_norms_are_calibrated_after_training(digits, space):
    """The statistics are those of training images under the final weights."""
    network = build(space, space.smallest()[0])
    train_network(network, digits, Recipe(epochs=1, batch_size=64))
    seen = []
    norm = network.layers[0].bn
    norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in Batches(digits, digits.train, torch.device("cpu")).calibration(20, 2_048):
            network(batch)
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-3, atol=1e-4)
