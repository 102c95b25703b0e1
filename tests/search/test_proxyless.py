"""ProxylessNAS: gradients against the exact expectation, budgets, resume."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from deploynas import spaces
from deploynas.data.dataset import Split
from deploynas.data.sources import _load_digits
from deploynas.errors import InfeasibleBudgetError, InvalidInputError
from deploynas.nn import MixedNetwork
from deploynas.profile import LatencyModel
from deploynas.search import Budget, search
from deploynas.search import architecture as arch_module
from deploynas.search.architecture import (
    AdditiveCost,
    ArchitectureOptimizer,
    ArchitectureRecipe,
    additive_costs,
    draw_pair,
    keep_the_rest,
    score,
    softmax_gradient,
)
from deploynas.search.discretise import USE, discretise
from deploynas.search.proxyless import ProxylessRecipe, learn, split_for_architecture
from deploynas.spaces import CandidateSpace
from deploynas.spaces.staged import Stage
from deploynas.train import loop
from deploynas.train.loop import DivergedError

RECIPE = ProxylessRecipe(epochs=1.0, batch_size=64, held_out=0.2)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def digits():
    return _load_digits((), seed=0, max_size=64)


@pytest.fixture(scope="module")
def space(digits):
    """Two stages: seconds, not minutes."""
    table = replace(
        spaces.space("proxyless-small").table,
        stages=(
            Stage(16, 2, "relu", False, (1, 2)),
            Stage(24, 2, "h_swish", True, (1, 2, 3)),
        ),
        head_width=48, head_features=0,
    )  # fmt: skip
    return CandidateSpace(
        "tiny", table, num_classes=digits.num_classes, in_channels=digits.channels,
        resolutions=[16],
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(space, board_profile):
    return LatencyModel(space, board_profile(space))


@pytest.fixture
def network(space):
    torch.manual_seed(0)
    return MixedNetwork(space)


def middle(model, share=0.5):
    """A budget between the cheapest and the dearest network."""
    low, high = model.upper_ms(np.concatenate([model.space.smallest(), model.space.largest()]))
    return Budget(latency_ms=float(low + share * (high - low)))


def spread_alphas(network, seed=1):
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for alpha in network.alphas:
            alpha.copy_(torch.from_numpy(rng.normal(size=len(alpha))))


# gradients


def test_equation_4_is_the_chain_rule_through_the_softmax():
    rng = np.random.default_rng(0)
    alpha = torch.from_numpy(rng.normal(size=7)).requires_grad_()
    gates = rng.normal(size=7)
    (alpha.softmax(0) @ torch.from_numpy(gates)).backward()
    p = alpha.detach().softmax(0).numpy()
    np.testing.assert_allclose(softmax_gradient(p, gates), alpha.grad.numpy(), rtol=1e-9)


def test_the_score_is_the_gradient_of_the_log_probability():
    alpha = torch.randn(6, dtype=torch.float64, requires_grad=True)
    alpha.log_softmax(0)[2].backward()
    p = alpha.detach().softmax(0).numpy()
    np.testing.assert_allclose(score(p, 2), alpha.grad.numpy(), rtol=1e-9)


def test_expected_latency_is_the_mean_over_all_networks(network, model):
    """Calibration included: the model's own predictions, weighted by their probabilities."""
    spread_alphas(network)
    (cost,) = additive_costs(network, model, middle(model))
    probabilities = [alpha.detach().double().softmax(0) for alpha in network.alphas]
    few = 3  # blocks that vary; the others stand at their first option
    total = weights = 0.0
    for options in itertools.product(*(range(len(p)) for p in probabilities[:few])):
        row = [*options, *[0] * (len(probabilities) - few)]
        weight = float(
            np.prod([p[o].item() for p, o in zip(probabilities, options, strict=False)])
        )
        total += weight * model.predict_ms(network.row(row)[None])[0]
        weights += weight
    assert weights == pytest.approx(1)
    fixed = [
        p if i < few else torch.eye(len(p), dtype=torch.float64)[0]
        for i, p in enumerate(probabilities)
    ]
    assert float(cost.expected(fixed).detach()) == pytest.approx(total, rel=1e-9)


def test_the_latency_gradient_flows(network, model):
    spread_alphas(network)
    (cost,) = additive_costs(network, model, middle(model))
    cost.expected([alpha.double().softmax(0) for alpha in network.alphas]).backward()
    for alpha, candidates in zip(network.alphas, cost.candidates, strict=True):
        p = alpha.detach().double().softmax(0).numpy()
        np.testing.assert_allclose(
            alpha.grad.numpy(), softmax_gradient(p, candidates), rtol=1e-3, atol=1e-9
        )
        assert np.abs(alpha.grad.numpy()).max() > 0


def test_reinforce_is_unbiased():
    """The mean of many score-function gradients, against the exact gradient of E[reward]."""
    rng = np.random.default_rng(0)
    p = np.exp(rng.normal(size=5))
    p /= p.sum()
    rewards = rng.normal(size=5)
    exact = softmax_gradient(p, rewards)
    draws = np.stack([(rewards[o] - 0.3) * score(p, o) for o in rng.choice(5, size=20_000, p=p)])
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - exact) < 4 * error).all()
    assert (error < 0.1 * np.abs(exact).max()).all()


def test_a_pair_keeps_the_others_probabilities():
    rng = np.random.default_rng(0)
    for temperature in (1.0, 0.3):
        before = torch.from_numpy(rng.normal(size=7))
        after, pair = before.clone(), np.array([5, 2])
        after[pair] += torch.tensor([0.4, -0.7], dtype=torch.float64)
        keep_the_rest(after, before, pair, temperature)
        old, new = (before / temperature).softmax(0), (after / temperature).softmax(0)
        others = [i for i in range(7) if i not in pair]
        torch.testing.assert_close(new[others], old[others])
        assert new[5] > old[5]


def test_pairs_follow_the_probabilities():
    rng = np.random.default_rng(0)
    p = np.array([0.6, 0.3, 0.1, 0.0])
    pairs = np.stack([draw_pair(p, rng) for _ in range(5_000)])
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert not (pairs == 3).any()
    np.testing.assert_allclose(np.bincount(pairs[:, 0], minlength=4) / 5_000, p, atol=0.03)


@pytest.mark.parametrize("loss", ["sum", "product"])
def test_a_two_path_step_follows_the_exact_gradient(network, model, loss, monkeypatch):
    """The averaged update of many steps against equation 4 on the pair, cost included."""
    weight = 0.7
    recipe = ArchitectureRecipe(latency_loss=loss, latency_weight=weight)
    optimizer = ArchitectureOptimizer(
        network, additive_costs(network, model, middle(model)), recipe
    )
    (cost,) = optimizer.costs
    seen = {}

    def gates(forward, labels, num):
        return 2.0, np.tile([0.5, -0.25], (num, 1))

    monkeypatch.setattr(arch_module, "gate_gradients", gates)
    monkeypatch.setattr(
        optimizer, "_adam_step",
        lambda: seen.update({i: a.grad.clone() for i, a in enumerate(network.alphas)}),
    )  # fmt: skip
    ratio = optimizer.expected()["latency_ms"] / cost.limit
    optimizer._two_path(torch.zeros(1), torch.zeros(1), np.random.default_rng(0))
    scale, slope = (1.0, weight) if loss == "sum" else (
        ratio**weight, weight * 2.0 * ratio ** (weight - 1)
    )  # fmt: skip
    for number, gradient in seen.items():
        pair = torch.nonzero(gradient).flatten().tolist()
        assert len(pair) == 2
        first, second = pair
        steps = slope * cost.candidates[number] / cost.limit
        # equal probabilities at the start: half of the pair each, and half of the difference
        found = {
            sign: 0.25 * (sign * 0.75 * scale + steps[first] - steps[second]) for sign in (1, -1)
        }
        assert any(float(gradient[first]) == pytest.approx(v, rel=1e-3) for v in found.values())
        assert float(gradient[first]) == pytest.approx(-float(gradient[second]), rel=1e-5)


@pytest.mark.parametrize("ratio", [0.2, 5.0])
def test_the_product_form_holds_below_a_millisecond(ratio):
    """A ratio of logarithms changes its sign there; this one grows with latency."""
    cost = AdditiveCost("latency_ms", 0.1, 0.0, (np.array([0.05, 0.4]),))
    values = [(e / cost.limit) ** 0.3 for e in (0.05 * ratio, 0.1 * ratio)]
    assert 0 < values[0] < values[1]


# the budget


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_expectation_comes_to_the_limit(network, model, share, monkeypatch):
    rng = np.random.default_rng(0)
    optimizer = ArchitectureOptimizer(
        network, additive_costs(network, model, middle(model, share)), ArchitectureRecipe()
    )
    monkeypatch.setattr(
        arch_module, "gate_gradients", lambda f, labels, n: (1.0, rng.normal(size=(n, 2)))
    )
    for step in range(150):
        optimizer.step(torch.zeros(1), torch.zeros(1), rng, step / 150)
    (cost,) = optimizer.costs
    assert optimizer.expected()["latency_ms"] == pytest.approx(cost.limit, rel=0.02)


def test_a_limit_beyond_the_dearest_network_does_not_steer(network, model):
    assert not additive_costs(network, model, middle(model, 1.1))
    assert len(additive_costs(network, model, middle(model, 0.9))) == 1


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 1.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_decision_keeps_the_budget_and_uses_it(network, model, share, seed):
    spread_alphas(network, seed)
    budget = middle(model, share)
    p = [a.detach().double().softmax(0).numpy() for a in network.alphas]
    decision = discretise(network, p, model, budget, np.random.default_rng(0))
    assert decision.is_exact
    upper = model.upper_ms(decision.arch[None])[0]
    assert upper <= budget.latency_ms
    if 0.1 < share < 1:
        assert upper >= 0.9 * USE * budget.latency_ms
    assert decision.log_probability <= decision.kept_log_probability + 1e-9
    assert decision.kept_log_probability <= decision.free_log_probability + 1e-9
    rng = np.random.default_rng(1)
    others = np.stack([network.row([rng.integers(len(q)) for q in p]) for _ in range(3_000)])
    costs = model.upper_ms(others)
    rivals = others[(costs <= budget.latency_ms) & (costs >= upper)]
    for row in rivals:
        likelihood = sum(np.log(q[o]) for q, o in zip(p, network.options(row), strict=True))
        assert likelihood <= decision.log_probability + 1e-9


def test_several_limits_are_kept_and_the_search_says_that_it_is_bounded(network, model):
    spread_alphas(network)
    space = model.space
    p = [a.detach().double().softmax(0).numpy() for a in network.alphas]
    one = middle(model, 0.5)
    free = discretise(network, p, model, one, np.random.default_rng(0)).arch[None]
    tight = Budget(
        latency_ms=one.latency_ms,
        macs=float(space.macs(free)[0]) * 0.8,
        params=float(space.params(free)[0]) * 0.8,
        peak_memory_bytes=float(space.peak_memory_bytes(free)[0]) * 0.9,
    )
    decision = discretise(network, p, model, tight, np.random.default_rng(0))
    assert tight.admits(decision.arch[None], model).all()
    again = discretise(network, p, model, tight, np.random.default_rng(0))
    assert np.array_equal(decision.arch, again.arch)
    impossible = tight.model_copy(update={"params": 10.0})
    with pytest.raises(InfeasibleBudgetError):
        discretise(network, p, model, impossible, np.random.default_rng(0))


# a whole search


def run(network, digits, model, recipe=RECIPE, **arguments):
    return learn(network, digits, model, middle(model), recipe, **arguments)


@pytest.mark.parametrize("update", ["two-path", "reinforce"])
def test_a_killed_search_goes_on(update, digits, space, model, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    recipe = RECIPE.model_copy(
        update={"architecture": ArchitectureRecipe(update=update, num_samples=2)}
    )

    def fresh(seed):
        torch.manual_seed(seed)
        return MixedNetwork(space)

    whole = fresh(0)
    expected = run(whole, digits, model, recipe)

    def kill(progress):
        if progress.step == 12:
            raise Killed

    path = tmp_path / "checkpoint"
    with pytest.raises(Killed):
        run(fresh(0), digits, model, recipe, checkpoint=path, on_progress=kill)
    resumed, steps = fresh(5), []
    found = run(
        resumed, digits, model, recipe, checkpoint=path,
        on_progress=lambda progress: steps.append(progress.step),
    )  # fmt: skip
    assert steps[0] == 12
    assert found.history == expected.history
    assert np.array_equal(found.decision.arch, expected.decision.arch)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key


def test_the_architecture_learns_after_the_warm_up_on_its_own_images(digits, network, model):
    own, held = split_for_architecture(digits, 0.2, 0)
    assert len(own.train) + len(held) == len(digits.train)
    assert len(held) == pytest.approx(0.2 * len(digits.train), rel=0.02)
    assert set(held.labels) == set(own.train.labels)
    seen = []
    found = run(network, digits, model, on_progress=lambda p: seen.append(p))
    first, last = found.history[0], found.history[-1]
    assert first.loss is None
    assert first.entropy == pytest.approx(1)
    assert last.loss is not None
    assert last.entropy < 1
    assert "expected" in seen[-1].detail
    assert any("expected/latency_ms" in progress.scalars for progress in seen)


def test_the_held_out_images_are_walked_through_fully(digits, network, model, monkeypatch):
    from deploynas.search import proxyless

    batches = []
    monkeypatch.setattr(
        proxyless.ArchitectureOptimizer, "step",
        lambda self, x, labels, rng, share: batches.append(len(labels))
        or setattr(self, "num_steps", self.num_steps + 1) or 1.0,
    )  # fmt: skip
    rows = []
    own = proxyless._Search._rows
    monkeypatch.setattr(
        proxyless._Search, "_rows",
        lambda self, number: rows.append(own(self, number)) or rows[-1],
    )  # fmt: skip
    run(network, digits, model, RECIPE.model_copy(update={"weights_only": 0.0}))
    _, held = split_for_architecture(digits, RECIPE.held_out, RECIPE.seed)
    a_pass = -(-len(held) // RECIPE.batch_size)
    assert sorted(np.concatenate(rows[:a_pass])) == list(range(len(held)))
    assert not np.array_equal(rows[0], rows[a_pass])


def test_one_candidate_a_block(space, digits, board_profile):
    table = replace(
        space.table, kernel_sizes=(3,), expand_ratios=(3,),
        stages=tuple(replace(s, depths=(1,)) for s in space.table.stages),
    )  # fmt: skip
    single = type(space)("single", table, num_classes=10, in_channels=1, resolutions=[16])
    model = LatencyModel(single, board_profile(single))
    found = learn(
        MixedNetwork(single), digits, model, Budget(latency_ms=1e3),
        RECIPE.model_copy(update={"epochs": 0.2}),
    )  # fmt: skip
    assert found.decision.num_changed == 0
    assert found.decision.arch.tolist() == [0] * len(single.choices)


def test_a_decision_that_measures_over_budget_gives_way_to_the_next(space, model):
    class Same:
        kind, chunk, num_finalists = "measured", 8, 5

        def quick(self, archs):
            return np.full(len(archs), 0.5)

        final = quick

    decided = space.sample(3, np.random.default_rng(0))
    measured = iter([11.0, 10.4, 9.9])
    outcome = search(
        model, Same(), Budget(latency_ms=10.0), strategy="proxyless", seed=0,
        num_evaluations=4, measure_ms=lambda arch: next(measured), decided=decided,
    )  # fmt: skip
    assert outcome.best.architecture == space.decode(decided[2:])[0]
    assert outcome.measured_latency_ms == 9.9
    assert outcome.random_best is not None


def test_a_class_with_one_image_cannot_be_split(digits):
    labels = digits.train.labels
    keep = np.flatnonzero((labels != 3) | (np.cumsum(labels == 3) == 1))
    few = replace(digits, train=Split(digits.train.images[keep], labels[keep]))
    with pytest.raises(InvalidInputError, match="too small to hold out"):
        split_for_architecture(few, 0.2, 0)


def test_a_weight_that_is_not_finite_stops_the_search(digits, network, model):
    recipe = RECIPE.model_copy(update={"learning_rate": 1e12})
    with pytest.raises(DivergedError, match="diverged"):
        run(network, digits, model, recipe)


def test_history_survives_a_file(digits, network, model):
    found = run(network, digits, model, RECIPE.model_copy(update={"epochs": 0.3}))
    text = json.dumps([point.model_dump(mode="json") for point in found.history])
    again = [type(found.history[0]).model_validate(point) for point in json.loads(text)]
    assert tuple(again) == found.history
