"""ProxylessNAS: gradients against the exact expectation, budgets, resume."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from deploynas import spaces
from deploynas.data import Split
from deploynas.data.sources import load_digits
from deploynas.errors import InfeasibleBudgetError, InvalidInputError
from deploynas.nn import MixedNetwork
from deploynas.profile import LatencyModel
from deploynas.search import Budget, Effort, Plan, Problem, search
from deploynas.search import gates as arch_module
from deploynas.search.discretise import USE, discretise
from deploynas.search.gates import (
    ArchitectureOptimizer,
    additive_costs,
    draw_pair,
    keep_the_rest,
    score,
    softmax_gradient,
)
from deploynas.search.gradient import split_for_architecture, walk
from deploynas.search.proxyless import PathsLearner, ProxylessRecipe
from deploynas.search.strategies.proxyless import STRATEGY as PROXYLESS
from deploynas.search.strategies.proxyless import ProxylessOptions
from deploynas.spaces import CandidateSpace
from deploynas.spaces.staged import Stage
from deploynas.train import loop
from deploynas.train.loop import DivergedError

RECIPE = ProxylessRecipe(epochs=1.0, batch_size=64, held_out=0.2)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def digits():
    return load_digits((), seed=0, max_size=64)


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


def watched_pairs(network, monkeypatch):
    """Filled with the options of the active and the other path whenever the network runs gated."""
    drawn = {}
    monkeypatch.setattr(
        network, "forward_gated",
        lambda x, active, other, gates: drawn.update(
            active=network.options(active), other=network.options(other)
        ),
    )  # fmt: skip
    return drawn


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
    (cost,) = additive_costs(network, Problem(model, middle(model)))
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
    (cost,) = additive_costs(network, Problem(model, middle(model)))
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
def test_a_two_path_step_is_equation_4_on_the_pair(network, model, loss, monkeypatch):
    """With a known gradient of every candidate's gate, cost included, sign and all."""
    spread_alphas(network)
    weight = 0.7
    recipe = ProxylessOptions(latency_loss=loss, latency_weight=weight)
    optimizer = ArchitectureOptimizer(
        network, additive_costs(network, Problem(model, middle(model))), recipe
    )
    (cost,) = optimizer.costs
    rng = np.random.default_rng(7)
    of_gate = [rng.normal(size=len(alpha)) for alpha in network.alphas]
    seen, drawn = {}, watched_pairs(network, monkeypatch)

    def gates(forward, labels, num):
        forward(None)
        pairs = zip(of_gate, drawn["active"], drawn["other"], strict=True)
        return 2.0, np.array([[g[a], g[o]] for g, a, o in pairs])

    monkeypatch.setattr(arch_module, "gate_gradients", gates)
    monkeypatch.setattr(
        optimizer, "_adam_step",
        lambda: seen.update({i: a.grad.double().numpy() for i, a in enumerate(network.alphas)}),
    )  # fmt: skip
    ratio = float(cost.expected(optimizer.softmax_of_all()).detach()) / cost.limit
    before = optimizer.probabilities()
    for seed in range(5):
        optimizer.two_path_step(torch.zeros(1), torch.zeros(1), np.random.default_rng(seed))
        scale, slope = (1.0, weight) if loss == "sum" else (
            ratio**weight, weight * 2.0 * ratio ** (weight - 1)
        )  # fmt: skip
        for number, p in enumerate(before):
            pair = [drawn["active"][number], drawn["other"][number]]
            total = scale * of_gate[number] + slope * cost.candidates[number] / cost.limit
            q = p[pair] / p[pair].sum()
            expected = np.zeros(len(p))
            for i in (0, 1):
                expected[pair[i]] = sum(total[pair[j]] * q[j] * ((i == j) - q[i]) for j in (0, 1))
            np.testing.assert_allclose(seen[number], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_a_reinforce_step_is_the_gradient_of_the_expectation(network, monkeypatch):
    """The mean of many steps, with a reward a path that no gradient can see."""
    spread_alphas(network)
    rng = np.random.default_rng(3)
    of_option = [rng.normal(size=len(alpha)) for alpha in network.alphas]

    def objective(loss, options):
        return sum(values[o] for values, o in zip(of_option, options, strict=True))

    optimizer = ArchitectureOptimizer(
        network, [], ProxylessOptions(update="reinforce", num_samples=50), objective
    )
    monkeypatch.setattr(network, "forward", lambda x, arch: torch.zeros(2, 3))
    seen = []
    monkeypatch.setattr(
        optimizer, "_adam_step",
        lambda: seen.append([a.grad.double().numpy().copy() for a in network.alphas]),
    )  # fmt: skip
    labels = torch.tensor([0, 1])
    for _ in range(200):
        optimizer.reinforce_step(torch.zeros(2, 1), labels, rng)
    probabilities = optimizer.probabilities()
    expected = sum(float(p @ v) for p, v in zip(probabilities, of_option, strict=True))
    assert optimizer.baseline == pytest.approx(-expected, abs=0.3)
    for number, (p, values) in enumerate(zip(probabilities, of_option, strict=True)):
        draws = np.stack([step[number] for step in seen[1:]])  # after the baseline is there
        error = draws.std(axis=0) / np.sqrt(len(draws))
        exact = softmax_gradient(p, values)
        assert (np.abs(draws.mean(axis=0) - exact) < 4.5 * error + 1e-6).all()
        assert np.abs(exact).max() > 5 * error.max()


def test_the_product_form_holds_below_a_millisecond(network, model, monkeypatch):
    """A ratio of logarithms changes its sign there."""
    budget = middle(model)
    (cost,) = additive_costs(network, Problem(model, budget))
    small = replace(cost, limit=cost.limit / 1e3, constant=cost.constant / 1e3,
                    candidates=tuple(c / 1e3 for c in cost.candidates))  # fmt: skip
    found = []
    for one in (cost, small):
        recipe = ProxylessOptions(latency_loss="product", latency_weight=0.3)
        optimizer = ArchitectureOptimizer(network, [one], recipe)
        cheap, dear = ([int(f(c)) for c in one.candidates] for f in (np.argmin, np.argmax))
        assert optimizer.with_cost(2.0, cheap) < optimizer.with_cost(2.0, dear)
        found.append(optimizer.latency_terms(2.0))
        assert found[-1][1] > 0
    assert found[0] == pytest.approx(found[1])


def test_the_better_candidate_gains(network, monkeypatch):
    optimizer = ArchitectureOptimizer(network, [], ProxylessOptions(rate=0.05))
    drawn = watched_pairs(network, monkeypatch)

    def gates(forward, labels, num):
        forward(None)  # the last candidate of each block lowers the loss
        pairs = zip(network.alphas, drawn["active"], drawn["other"], strict=True)
        return 1.0, np.array([[-(a == len(p) - 1.0), -(o == len(p) - 1.0)] for p, a, o in pairs])

    monkeypatch.setattr(arch_module, "gate_gradients", gates)
    rng = np.random.default_rng(0)
    for step in range(200):
        optimizer.step(torch.zeros(1), torch.zeros(1), rng, step / 200)
    assert all(p.argmax() == len(p) - 1 and p[-1] > 0.5 for p in optimizer.probabilities())


# the budget


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_expectation_comes_to_the_limit(network, model, share, monkeypatch):
    rng = np.random.default_rng(0)
    optimizer = ArchitectureOptimizer(
        network, additive_costs(network, Problem(model, middle(model, share))), ProxylessOptions()
    )
    monkeypatch.setattr(
        arch_module, "gate_gradients", lambda f, labels, n: (1.0, rng.normal(size=(n, 2)))
    )
    for step in range(150):
        optimizer.step(torch.zeros(1), torch.zeros(1), rng, step / 150)
    (cost,) = optimizer.costs
    wanted = model.ms_of(cost.limit)
    assert optimizer.expected()["latency_ms"] == pytest.approx(wanted, rel=0.02)


def test_a_limit_beyond_the_dearest_network_does_not_steer(network, model):
    assert not additive_costs(network, Problem(model, middle(model, 1.1)))
    assert len(additive_costs(network, Problem(model, middle(model, 0.9)))) == 1


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 1.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_decision_keeps_the_budget_and_uses_it(network, model, share, seed):
    spread_alphas(network, seed)
    budget = middle(model, share)
    p = [a.detach().double().softmax(0).numpy() for a in network.alphas]
    decision = discretise(network, p, Problem(model, budget), np.random.default_rng(0))
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


@pytest.mark.slow
def test_nothing_learned_yet(board_profile):
    """Uniform probabilities on the published space: the network that uses the budget."""
    space = spaces.space("proxyless-mobile", 10, 3, [64])
    model = LatencyModel(space, board_profile(space))
    network = MixedNetwork(space)
    budget = middle(model, 0.6)
    p = [np.full(len(alpha), 1 / len(alpha)) for alpha in network.alphas]
    decision = discretise(network, p, Problem(model, budget), np.random.default_rng(0))
    upper = model.upper_ms(decision.arch[None])[0]
    assert 0.95 * budget.latency_ms <= upper <= budget.latency_ms


def test_the_ends_of_a_budget_are_exact(model):
    """The cheapest network of a table whose cheapest operation differs by block."""
    rng = np.random.default_rng(0)
    values = rng.random(len(model.space.layer_table))
    ends = model.space.ends(values)
    least, most = model.space.sum_over_layers(ends, values)
    others = model.space.sum_over_layers(model.space.sample(5_000, rng), values)
    assert least <= others.min()
    assert others.max() <= most


def test_several_limits_are_kept_and_the_search_says_that_it_is_bounded(network, model):
    spread_alphas(network)
    space = model.space
    p = [a.detach().double().softmax(0).numpy() for a in network.alphas]
    one = middle(model, 0.5)
    free = discretise(network, p, Problem(model, one), np.random.default_rng(0)).arch[None]
    tight = Budget(
        latency_ms=one.latency_ms,
        macs=float(space.macs(free)[0]) * 0.8,
        params=float(space.params(free)[0]) * 0.8,
        peak_memory_bytes=float(space.peak_memory_bytes(free)[0]) * 0.9,
    )
    decision = discretise(network, p, Problem(model, tight), np.random.default_rng(0))
    assert Problem(model, tight).admits(decision.arch[None]).all()
    assert not decision.is_exact
    rng = np.random.default_rng(1)
    others = np.stack([network.row([rng.integers(len(q)) for q in p]) for _ in range(5_000)])
    others = others[Problem(model, tight).admits(others)]
    assert len(others) > 10
    best = max(
        sum(np.log(q[o]) for q, o in zip(p, network.options(row), strict=True)) for row in others
    )
    assert decision.log_probability >= best
    again = discretise(network, p, Problem(model, tight), np.random.default_rng(0))
    assert np.array_equal(decision.arch, again.arch)
    impossible = tight.model_copy(update={"params": 10.0})
    with pytest.raises(InfeasibleBudgetError):
        discretise(network, p, Problem(model, impossible), np.random.default_rng(0))


# a whole search


def run(network, digits, model, recipe=RECIPE, **arguments):
    return learned(network, digits, model, middle(model), recipe, **arguments)


def learned(network, digits, model, budget, recipe, **arguments):
    learner = PathsLearner(model.space, recipe)
    learner.network = network
    return learner.learn(digits, Problem(model, budget), **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("update", ["two-path", pytest.param("reinforce", marks=pytest.mark.long)])
def test_a_killed_search_goes_on(update, digits, space, model, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    recipe = RECIPE.model_copy(
        update={"architecture": ProxylessOptions(update=update, num_samples=2)}
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


@pytest.mark.slow
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


def test_the_held_out_images_are_walked_through_fully():
    num_images, batch_size = 107, 20
    rows = [walk(num_images, batch_size, 0, number) for number in range(7)]
    assert sorted(np.concatenate(rows[:6])) == list(range(num_images))
    assert {len(batch) for batch in rows} == {17, 18}
    assert not np.array_equal(rows[0], rows[6])


def test_one_candidate_a_block(space, digits, board_profile):
    table = replace(
        space.table, kernel_sizes=(3,), expand_ratios=(3,),
        stages=tuple(replace(s, depths=(1,)) for s in space.table.stages),
    )  # fmt: skip
    single = type(space)("single", table, num_classes=10, in_channels=1, resolutions=[16])
    model = LatencyModel(single, board_profile(single))
    found = learned(
        MixedNetwork(single), digits, model, Budget(latency_ms=1e3),
        RECIPE.model_copy(update={"epochs": 0.2}),
    )  # fmt: skip
    assert found.decision.num_changed == 0
    assert found.decision.arch.tolist() == [0] * len(single.choices)


def test_a_decision_that_measures_over_budget_gives_way_to_the_next(space, model):
    class Same:
        identity, kind, num_finalists = None, "measured", 5

        def promising(self, archs, scores):
            return list(range(len(archs)))

        def quick(self, archs):
            return np.full(len(archs), 0.5)

        final = quick

    found = iter(space.sample(5, np.random.default_rng(0)))
    measured = iter([12.5, 10.4, 9.9])
    asked, given = [], []

    def decide(share):
        asked.append(share)
        given.append(next(found))
        return given[-1]

    plan = Plan(PROXYLESS, PROXYLESS.options(), 0, Effort(4))
    outcome = search(
        Problem(model, Budget(latency_ms=10.0)), Same(), plan,
        measure=lambda arch: {"latency_ms": next(measured)}, decide=decide,
    )  # fmt: skip
    # once to judge its accuracy, then to measure: less by as much as it was over
    assert asked == pytest.approx([1.0, 1.0, 0.8, 0.8 / 1.04], rel=0.02)
    assert outcome.best.architecture == space.decode(given[-1][None])[0]
    assert outcome.measured == {"latency_ms": 9.9}
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
