"""DARTS: mixtures, both orders of the gradient, derivation under a budget, collapse."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from deploynas import spaces
from deploynas.data.sources import load_digits
from deploynas.errors import InfeasibleBudgetError, InvalidInputError
from deploynas.nn import MixedBlocks, MixedCells
from deploynas.profile import LatencyModel
from deploynas.search import Budget, Effort, Plan, Problem, darts
from deploynas.search.cells import cells_decision, derive
from deploynas.search.darts import (
    DartsOptimizer,
    DartsRecipe,
    MixturesLearner,
    expectations,
)
from deploynas.search.gradient import WeightStep
from deploynas.search.strategies.darts import STRATEGY as DARTS
from deploynas.search.strategies.darts import DartsOptions
from deploynas.spaces import CandidateSpace
from deploynas.spaces.staged import Stage
from deploynas.train import loop
from deploynas.workflows.gradient import Learning
from deploynas.workflows.search import search
from deploynas.workflows.target import Target, Tell

TINY = "darts-small:channels=4,cells=3,nodes=2,operations=skip_connect+max_pool_3x3+sep_conv_3x3"


@pytest.fixture(scope="module")
def digits():
    return load_digits((), seed=0, max_size=64)


@pytest.fixture(scope="module")
def space(digits):
    return spaces.space(TINY, digits.num_classes, digits.channels, [8])


@pytest.fixture(scope="module")
def model(space, board_profile):
    return LatencyModel(space, board_profile(space))


@pytest.fixture
def network(space):
    torch.manual_seed(0)
    return MixedCells(space)


def one_hot(network, arch):
    """Mixtures that are an architecture."""
    space = network.space
    found = torch.zeros(len(network.alphas), 1 + len(space.table.operations))
    for kind, node in itertools.product(range(2), range(space.table.nodes)):
        for source, option in network.chosen_edges(arch, kind, node):
            found[network.row_of[kind, node, source], 1 + option] = 1.0
    return found


def random_mixtures(network, seed=0):
    shape = (len(network.alphas), 1 + len(network.space.table.operations))
    return np.random.default_rng(seed).dirichlet(np.ones(shape[1]), shape[0])


@torch.no_grad()
def test_a_mixture_of_one_operation_an_edge_is_the_architecture(network):
    x = torch.randn(4, 1, 8, 8)
    for arch in network.space.sample(4, np.random.default_rng(0)):
        mixed = network.forward_mixed(x, one_hot(network, arch))
        torch.testing.assert_close(mixed, network(x, arch), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_the_strongest_cells_by_brute_force(nodes, board_profile):
    """Every cell of a smaller space: the strongest within the limits, and without any."""
    operations = "skip_connect+sep_conv_3x3"
    spec = f"darts-small:channels=4,cells=3,nodes={nodes},operations={operations}"
    space = spaces.space(spec, 10, 1, [8])
    small = MixedCells(space)
    rows = np.array(list(itertools.product(*(range(n) for n in space.num_options))), np.uint8)

    def strength(mixtures, row):
        chosen = one_hot(small, row).bool().numpy()
        return float(np.log(mixtures[chosen]).sum())

    priced = LatencyModel(space, board_profile(space))
    for seed in range(8 if nodes == 1 else 3):
        mixtures = random_mixtures(small, seed)
        strengths = [strength(mixtures, row) for row in rows]
        limit = float(np.quantile(space.macs(rows), 0.1 + 0.1 * seed))
        both = Budget(macs=limit, params=int(np.quantile(space.params(rows), 0.3 + 0.1 * seed)))
        budgets = (Budget(macs=limit), Budget(), both)
        for budget, skips in itertools.product(budgets, (None, 2, 1, 0)):
            problem = Problem(priced, budget)
            kept = problem.admits(rows)
            kept &= [skips is None or space.num_skips(row) <= skips for row in rows]
            found = derive(small, mixtures, problem, skips)
            if not kept.any():
                assert found is None
                continue
            if budget is both and found is None:
                continue
            row, is_exact = found
            if budget is both and not is_exact:  # it does not claim to be
                assert problem.admits(row[None])[0]
                continue
            assert is_exact
            assert (rows[kept] == row).all(axis=1).any()
            assert strength(mixtures, row) == pytest.approx(np.array(strengths)[kept].max())


@pytest.mark.slow
def test_the_budget_and_the_limit_on_skips_hold(network, model):
    space = network.space
    low, high = (model.upper_ms(row)[0] for row in (space.smallest(), space.largest()))
    mixtures = random_mixtures(network)
    mixtures[:, 1] = 10.0  # skip connections win everywhere
    free, _ = derive(network, mixtures, Problem(model))
    assert space.num_skips(free) == 4
    for share in (0.1, 0.5, 0.9):
        budget = Budget(latency_ms=float(low + share * (high - low)))
        for limit in (None, 2, 0):
            row, _ = derive(network, mixtures, Problem(model, budget), limit)
            assert model.upper_ms(row[None])[0] <= budget.latency_ms
            assert limit is None or space.num_skips(row) <= limit
    with pytest.raises(InfeasibleBudgetError, match="max_skips"):
        cells_decision(network, list(mixtures), Problem(model, Budget(latency_ms=float(low) / 2)))


def batch(n=16):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 1, 8, 8, generator=generator)
    return x, torch.randint(10, (n,), generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gate", "rate", "smoothing"),
    [("softmax", 0.05, 0.0), ("softmax", 0.01, 0.3), ("sigmoid", 0.05, 0.3)],
)
def test_the_second_order_is_the_derivative_of_the_unrolled_loss(
    space, model, gate, rate, smoothing, monkeypatch
):
    """Against finite differences of L_val(w - rate dL_train/dw), section 2.3 equation 6."""
    torch.manual_seed(1)
    monkeypatch.setattr(darts, "STEP_SHARE", 1e-6)  # between the kinks of ReLU, in double
    network = MixedCells(space).double()
    x, labels = (t.double() if t.is_floating_point() else t for t in batch())
    x_train, labels_train = x.flip(0) * 0.7, labels.flip(0)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.Linear):
                part.weight.normal_(0.0, 0.3)
    recipe = DartsOptions(order="second", gate=gate, zero_one=0.0)
    optimizer = DartsOptimizer(network, [], recipe)

    def train_loss(logits):
        return nn.functional.cross_entropy(logits, labels_train, label_smoothing=smoothing)

    _, found = optimizer.unrolled(x, labels, WeightStep(x_train, train_loss, rate))

    def unrolled_loss():
        mixtures = network.mixtures(gate)
        loss = train_loss(network.forward_mixed(x_train, mixtures))
        gradients = torch.autograd.grad(loss, network.weights, allow_unused=True)
        before = [w.detach().clone() for w in network.weights]
        with torch.no_grad():
            for weight, gradient in zip(network.weights, gradients, strict=True):
                if gradient is not None:
                    weight -= rate * gradient
            out = network.forward_mixed(x, network.mixtures(gate))
            value = float(nn.functional.cross_entropy(out, labels))
            for weight, old in zip(network.weights, before, strict=True):
                weight.copy_(old)
        return value

    checked = 0
    for edge, option in ((0, 1), (1, 3), (4, 2), (6, 3)):
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                network.alphas[edge][option] += step
            ends.append(unrolled_loss())
            with torch.no_grad():
                network.alphas[edge][option] -= step
        difference = (ends[0] - ends[1]) / 2e-5
        assert float(found[edge][option]) == pytest.approx(difference, rel=2e-2, abs=1e-6)
        checked += abs(difference) > 1e-5
    assert checked >= 2


@pytest.mark.slow
def test_the_second_order_unrolls_the_very_step_that_follows(space, digits, model, monkeypatch):
    """Its images, its loss with the labels smoothed, its learning rate at that point.

    Mixtures that stay where they are, for the step comes after they have moved.
    """
    recipe = DartsRecipe(
        epochs=0.4, weights_only=0.0, label_smoothing=0.2, weight_decay=0.0,
        architecture=DartsOptions(order="second", rate=0.0),
    )  # fmt: skip
    torch.manual_seed(0)
    network = MixedCells(space)
    unrolled, rates = [], []

    class Plain(torch.optim.SGD):
        """Without momentum: a step is that of its gradient."""

        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            for mine, own in zip(unrolled.pop(), network.weights, strict=True):
                step = 0 if own.grad is None else rates[-1] * own.grad
                torch.testing.assert_close(mine, own.detach() - step, rtol=1e-4, atol=1e-6)
            super().step()

    def plain(module, weights, recipe):
        return Plain([{"params": weights, "share": 1.0}], recipe.learning_rate)

    monkeypatch.setattr(loop, "optimizer_of", plain)
    loss = DartsOptimizer.held_out_loss

    def at_unrolled_weights(self, x, labels):
        unrolled.append([w.detach().clone() for w in network.weights])
        return loss(self, x, labels)

    monkeypatch.setattr(DartsOptimizer, "held_out_loss", at_unrolled_weights)
    budget = Budget(latency_ms=float(np.median(model.upper_ms(space.uniform()))))
    learner = MixturesLearner(space, recipe)
    learner.network = network
    learner.learn(digits, Problem(model, budget))
    assert len(rates) > 2
    assert rates[0] == recipe.learning_rate
    assert rates[-1] < rates[0] / 3


def test_expected_latency_of_one_architecture_and_its_gradient(network, model):
    """Where every edge of a node is as likely, E is the mean over the node's pairs of edges."""
    budget = Budget(latency_ms=float(model.upper_ms(network.space.uniform()).mean()))
    expected = expectations(network, Problem(model, budget))
    optimizer = DartsOptimizer(network, expected, DartsOptions())
    space = network.space
    option = 2  # the same operation everywhere
    rows = []
    for pairs in itertools.product(*(range(len(p)) for p in space.pairs * 2)):
        rows.append([0] + [v for pair in pairs for v in (pair, option, option)])
    terms = [model.terms_of(ms) for ms in model.predict_ms(np.array(rows, np.uint8))]
    mixtures = torch.zeros(len(network.alphas), 1 + len(space.table.operations))
    mixtures[:, 1 + option] = 1.0
    (expectation,) = optimizer.expected_costs
    assert float(expectation.of(mixtures)) == pytest.approx(np.mean(terms), rel=1e-5)
    network.zero_grad()
    expectation.of(network.mixtures("softmax")).backward()
    assert all(alpha.grad.abs().max() > 0 for alpha in network.alphas)


@pytest.fixture(scope="module")
def chain(digits):
    """A chain of a few blocks, of which one may be left out."""
    table = replace(
        spaces.space("proxyless-small").table,
        stages=(Stage(8, 2, "relu", False, (1,)), Stage(12, 2, "h_swish", True, (1, 2))),
        head_width=16,
        head_features=0,
    )
    return CandidateSpace(
        "chain", table, num_classes=digits.num_classes, in_channels=digits.channels,
        resolutions=[8],
    )  # fmt: skip


@torch.no_grad()
def test_a_mixture_of_one_operation_a_block_is_the_architecture(chain):
    torch.manual_seed(0)
    network = MixedBlocks(chain)
    x = torch.randn(4, 1, 8, 8)
    for arch in chain.sample(6, np.random.default_rng(0)):
        mixtures = torch.zeros(network.present.shape)
        for row, option in enumerate(network.options(arch)):
            mixtures[row, option] = 1.0
        mixed = network.forward_mixed(x, mixtures)
        torch.testing.assert_close(mixed, network(x, arch), rtol=1e-4, atol=1e-5)
    lengths = [len(alpha) for alpha in network.alphas]
    assert len(set(lengths)) == 2  # of zero and without
    assert network.present.sum(1).tolist() == lengths
    for gate in ("softmax", "sigmoid"):
        assert (network.mixtures(gate)[~network.present] == 0).all()
    network.prune(2, network.mixtures("softmax"))
    assert network.present.sum(1).tolist() == [2] * len(lengths)


def test_expected_costs_of_blocks_are_those_of_the_likeliest(chain, board_profile):
    model = LatencyModel(chain, board_profile(chain))
    network = MixedBlocks(chain)
    (arch,) = chain.canonical(chain.sample(1, np.random.default_rng(1)))
    budget = Budget(
        latency_ms=float(model.upper_ms(chain.uniform()).mean()),
        macs=float(chain.macs(chain.uniform()).mean()),
    )
    mixtures = torch.zeros(network.present.shape)
    for row, option in enumerate(network.options(arch)):
        mixtures[row, option] = 1.0
    found = {
        e.name: e.unit(float(e.of(mixtures)))
        for e in expectations(network, Problem(model, budget))
    }
    assert found == {
        "latency_ms": pytest.approx(float(model.predict_ms(arch[None])[0]), rel=1e-5),
        "macs": pytest.approx(int(chain.macs(arch[None])[0])),
    }


def test_several_limits_on_cells_are_all_expected(network, model):
    space = network.space
    budget = Budget(macs=1e9, params=1e9, latency_ms=1e9)
    arch = space.sample(1, np.random.default_rng(2))[0]
    found = {e.name: e for e in expectations(network, Problem(model, budget))}
    mixtures = one_hot(network, arch)
    # one edge of every node that it keeps two of, at its share: the chosen ones alone
    for name, e in found.items():
        own = (mixtures[:, 1:] * e.costs[:, 1:]).sum()
        total = {
            "latency_ms": lambda: model.terms_of(float(model.predict_ms(arch[None])[0])),
            "macs": lambda: float(space.macs(arch[None])[0]),
            "params": lambda: float(space.params(arch[None])[0]),
        }[name]()
        assert e.constant + float(own) == pytest.approx(total, rel=1e-5)


def test_pruning_leaves_the_strongest(network, model):
    optimizer = DartsOptimizer(network, [], DartsOptions(prune=0.6))
    with torch.no_grad():
        for alpha in network.alphas:
            alpha.copy_(torch.tensor([3.0, 0.0, 1.0, 2.0]))
    for share, left in ((0.0, 3), (0.34, 2), (0.67, 1), (0.99, 1)):
        optimizer.prune_at(share)
        assert network.present[:, 1:].sum(1).tolist() == [left] * len(network.alphas)
    assert network.present[:, 3].all()
    assert (network.mixtures("softmax")[:, 1:3] == 0).all()


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.long
@pytest.mark.parametrize("changes", [{}, {"gate": "sigmoid", "prune": 0.5, "order": "second"}])
def test_resume_equals_uninterrupted(space, digits, model, changes, tmp_path, monkeypatch):
    recipe = DartsRecipe(epochs=1.5, architecture=DartsOptions(**changes))
    budget = Budget(latency_ms=float(np.median(model.upper_ms(space.uniform()))))

    def run(checkpoint=None, kill_at=None):
        torch.manual_seed(0)
        learner = MixturesLearner(space, recipe)

        def watch(state):
            if state.step == kill_at:
                raise Killed

        problem = Problem(model, budget)
        found = learner.learn(digits, problem, checkpoint=checkpoint, on_progress=watch)
        return found, learner.network

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    whole, one = run()
    path = tmp_path / "checkpoint"
    with pytest.raises(Killed):
        run(path, kill_at=9)
    assert path.exists()
    resumed, other = run(path)
    for a, b in zip(whole.probabilities, resumed.probabilities, strict=True):
        np.testing.assert_array_equal(a, b)
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert (whole.decision.arch == resumed.decision.arch).all()
    moved = np.stack(whole.probabilities)
    assert np.ptp(moved[moved > 0]) > 0


@pytest.mark.slow
def test_a_search_ends_in_files_and_says_when_it_collapsed(
    space, digits, model, board_profile, tmp_path
):
    path = tmp_path / "board.json"
    board_profile(space).write(path)
    budget = Budget(latency_ms=float(np.median(model.upper_ms(space.uniform()))))
    notes = []
    recipe = DartsRecipe(epochs=0.5)
    plan = Plan(DARTS, recipe.architecture, 0, Effort(4))
    source = Learning(space, digits, DARTS, recipe)
    tell = Tell(note=notes.append)
    result = search(budget, plan, source, Target(path), tmp_path / "run", tell)
    arch = space.encode([result.best.architecture])
    assert Problem(model, budget).admits(arch).all()
    assert result.strategy == "darts"
    collapsed = space.num_skips(arch[0]) > 2
    assert any("skip connections" in note for note in notes) == collapsed
    for name in ("search.json", "gradient.json", "chosen.safetensors", "probabilities.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    with pytest.raises(InvalidInputError, match="candidate operations or cells"):
        Learning(spaces.space("mobile-small", 10, 1, [8]), digits, DARTS, recipe)
