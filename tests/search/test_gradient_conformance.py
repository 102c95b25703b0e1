"""Gradient strategies on every space that they fit: the promises that all strategies share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from deploynas import spaces
from deploynas.data.sources import load_digits
from deploynas.errors import InfeasibleBudgetError, InvalidInputError
from deploynas.nn import MixedBlocks, MixedCells, MixedNetwork
from deploynas.profile import LatencyModel
from deploynas.search import STRATEGIES, Budget, Problem
from deploynas.spaces import CandidateSpace
from deploynas.spaces.staged import Stage
from deploynas.train import loop

SHARES = {"feasible": 0.5, "tight": 0.02}


@pytest.fixture(scope="module")
def digits():
    return load_digits((), seed=0, max_size=64)


def spaces_of(digits):
    """Name -> a small space of each kind."""
    shape = {"num_classes": digits.num_classes, "in_channels": 1, "resolutions": [8]}
    stages = (Stage(8, 2, "relu", False, (1, 2)), Stage(12, 2, "h_swish", True, (1, 2)))
    own = {"stages": stages, "head_width": 16, "head_features": 0}
    chain = replace(spaces.space("proxyless-small").table, **own)
    blocks = replace(spaces.space("one-shot").table, **own)
    return {
        "chain": CandidateSpace("chain", chain, **shape),
        "one-shot": CandidateSpace("blocks", blocks, **shape),
        "cells": spaces.space(
            "darts-small:channels=4,cells=3,nodes=2,operations=skip_connect+sep_conv_3x3",
            digits.num_classes, 1, [8],
        ),
    }  # fmt: skip


FITS = [
    ("proxyless", "chain"), ("proxyless", "one-shot"),
    ("darts", "chain"), ("darts", "one-shot"), ("darts", "cells"),
]  # fmt: skip


@pytest.fixture(scope="module")
def models(digits, board_profile):
    return {
        name: LatencyModel(space, board_profile(space))
        for name, space in spaces_of(digits).items()
    }


def learned(strategy, model, digits, budget, checkpoint=None, kill_at=None):
    """A short search from the start, or from a checkpoint."""
    torch.manual_seed(0)
    space = model.space

    def watch(state):
        if state.step == kill_at:
            raise KeyboardInterrupt

    one = STRATEGIES.load(strategy)
    recipe = one.recipe(one.options(), 0).model_copy(update={"epochs": 0.7})
    problem = Problem(model, budget)
    return one.learner(space, recipe).learn(
        digits, problem, checkpoint=checkpoint, on_progress=watch
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "name"), FITS)
@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
def test_the_budget_holds_and_a_search_can_be_repeated_and_resumed(
    strategy, name, share, models, digits, tmp_path, monkeypatch
):
    model = models[name]
    low, high = model.upper_ms(np.concatenate([model.space.smallest(), model.space.largest()]))
    budget = Budget(latency_ms=float(low + share * (high - low)))
    whole = learned(strategy, model, digits, budget)
    assert Problem(model, budget).admits(whole.decision.arch[None]).all()
    assert whole.decision.is_exact
    if share > 0.1:
        return
    again = learned(strategy, model, digits, budget)
    assert (again.decision.arch == whole.decision.arch).all()
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        learned(strategy, model, digits, budget, tmp_path / "checkpoint", kill_at=5)
    resumed = learned(strategy, model, digits, budget, tmp_path / "checkpoint")
    for one, other in zip(whole.probabilities, resumed.probabilities, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "name"), FITS)
def test_an_impossible_budget_ends(strategy, name, models, digits):
    model = models[name]
    low = float(model.upper_ms(model.space.smallest())[0])
    with pytest.raises(InfeasibleBudgetError):
        learned(strategy, model, digits, Budget(latency_ms=0.9 * low))
    with pytest.raises(InfeasibleBudgetError, match="lowest reachable"):
        Problem(model, Budget(latency_ms=0.9 * low)).require_reachable(np.random.default_rng(0))


def test_spaces_that_do_not_fit(digits):
    once_for_all = spaces.space("mobile-small", digits.num_classes, 1, [8])
    for kind in (MixedNetwork, MixedBlocks):
        with pytest.raises(InvalidInputError, match="not candidate operations"):
            kind(once_for_all)
    with pytest.raises(InvalidInputError, match="one resolution"):
        MixedCells(spaces.space("darts-small", 10, 1, [8, 16]))
