"""DARTS: all candidates at once, weighted, and the weights learned by gradients.

Liu, Simonyan and Yang 2019, "DARTS: differentiable architecture search". Every edge of a cell, or
block of a chain, is a mixture of its operations; a step on images that the weights never see moves
the mixtures, first order or through one unrolled weight step (section 2.3). What is derived are
the cells whose edges, or the blocks whose operations, are strongest under the budget: nodes and
blocks are independent, so that it is a multiple-choice knapsack.

Plain DARTS is known to collapse to skip connections (Zela et al. 2020, "Understanding and
robustifying differentiable architecture search"). Against that stand gates that do not compete
(Chu et al. 2020, "Fair DARTS"), candidates that are pruned on the way, and a limit on the normal
cell's skips (Chen et al. 2019, "Progressive differentiable architecture search", section 3.3).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from deploynas.errors import InvalidInputError
from deploynas.nn import mixture_of
from deploynas.nn.mixtures import MixedBlocks, MixedCells, Mixture
from deploynas.search.cells import COLLAPSED, cells_decision
from deploynas.search.discretise import Decision, discretise
from deploynas.search.gates import Floats, restore_adam
from deploynas.search.gradient import Architecture, GradientRecipe, Learner, Part, WeightStep
from deploynas.search.problem import Problem
from deploynas.search.strategies.darts import DartsOptions
from deploynas.spaces import Archs, SearchSpace
from deploynas.train.distributed import averages, mean_over_processes, share_of_mean
from deploynas.train.loop import DivergedError, Positive, Share, StepImages
from deploynas.train.task import CLASSIFICATION

STEP_SHARE = 0.01  # of the weights' norm: the finite difference of section 2.3


class DartsRecipe(GradientRecipe):
    """How to search by gradients through mixtures.

    Attributes:
        architecture: How the mixtures move.
    """

    learning_rate: Positive = 0.05
    weights_only: Share = 0.2
    held_out: Part = 0.5
    architecture: DartsOptions = DartsOptions()


@dataclass(frozen=True)
class Expectation:
    """E of a limited sum under mixtures.

    Attributes:
        name, limit, unit: As in :class:`AdditiveCost`.
        constant: Of what is in every network.
        costs: ``(num_rows, most_candidates)``; 0 where there is none.
        shares: ``(num_rows, 1)`` how often a row is in a network.
        first: Index of the first candidate that is an operation.
    """

    name: str
    limit: float
    constant: float
    costs: Tensor
    shares: Tensor
    first: int
    unit: Callable[[float], float]

    def of(self, mixtures: Tensor) -> Tensor:
        """A scalar."""
        own = mixtures[:, self.first :].cpu()
        p = own / own.sum(1, keepdim=True).clamp_min(1e-9)
        return self.constant + (self.shares * p * self.costs[:, self.first :]).sum()


class DartsOptimizer:
    """Moves the mixtures, one held-out batch a step.

    Args:
        network: Whose mixtures.
        expectations: Of the costs that are limited.
        recipe: How.

    Attributes:
        num_steps: Taken so far.
        multiplier: Of what the expected cost exceeds its limit by; 0 where it does not.
        temperature: Always 1; other gradient searches have one.
        expected_costs: Of what is limited.
    """

    def __init__(
        self,
        network: MixedCells | MixedBlocks,
        expectations: Sequence[Expectation],
        recipe: DartsOptions,
    ) -> None:
        self.network, self.recipe = network, recipe
        self.num_steps, self.multiplier, self.temperature = 0, 0.0, 1.0
        alphas = list(network.rows) or [nn.Parameter(torch.zeros(0))]
        self._adam = torch.optim.Adam(
            alphas, recipe.rate, betas=(0.5, 0.999), weight_decay=recipe.weight_decay
        )
        self.expected_costs = list(expectations)

    def held_out_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Of a held-out batch, with what drives the mixtures beside it."""
        recipe = self.recipe
        mixtures = self.network.mixtures(recipe.gate)
        loss = CLASSIFICATION.loss(self.network.forward_mixed(x, mixtures), labels)
        loss = loss * share_of_mean(len(labels))
        if recipe.gate == "sigmoid":
            loss = loss - recipe.zero_one * (mixtures - 0.5).square().mean()
        if self.expected_costs:
            ratios = [e.of(mixtures) / e.limit for e in self.expected_costs]
            excess = (torch.stack(ratios).max() - 1).clamp_min(0.0)
            self.multiplier = recipe.latency_weight if float(excess.detach()) > 0 else 0.0
            loss = loss + recipe.latency_weight * excess.to(loss.device)
        return loss

    def step(
        self,
        x: Tensor,
        labels: Tensor,
        rng: np.random.Generator,
        share: float,
        weight_step: WeightStep | None = None,
    ) -> float:
        """One step on a batch that the weights never see.

        Args:
            x: ``(n, c, r, r)``.
            labels: ``(n,)``.
            rng: Not needed: nothing is drawn.
            share: Of the architecture steps that are done, for the pruning.
            weight_step: The one to come, which the second order unrolls.

        Returns:
            The loss on the batch, with what drives the mixtures beside it.
        """
        self.num_steps += 1
        alphas = list(self.network.rows)
        if not alphas:
            return 0.0
        if self.recipe.order == "second":
            assert weight_step is not None
            loss, gradients = self.unrolled(x, labels, weight_step)
        else:
            out = self.held_out_loss(x, labels)
            loss, gradients = float(out.detach()), list(torch.autograd.grad(out, alphas))
        for alpha, gradient in zip(alphas, averages(gradients), strict=True):
            alpha.grad = gradient.contiguous()
            if not bool(alpha.grad.isfinite().all()):
                raise DivergedError(
                    f"the search diverged at architecture step {self.num_steps}",
                    "try another --seed",
                )
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self.prune_at(share)
        return mean_over_processes(loss)

    def unrolled(
        self, x: Tensor, labels: Tensor, weight_step: WeightStep
    ) -> tuple[float, list[Tensor]]:
        """Gradients at the weights that one step would reach (section 2.3, equations 6 to 8).

        The step is that of its loss alone, without momentum and weight decay.
        """
        network, rate, weights = self.network, weight_step.rate, self.network.weights
        alphas = list(network.rows)

        def train_loss() -> Tensor:
            mixtures = network.mixtures(self.recipe.gate)
            return weight_step.loss(network.forward_mixed(weight_step.x, mixtures))

        def moved(by: Sequence[Tensor], scale: float) -> None:
            with torch.no_grad():
                for weight, direction in zip(weights, by, strict=True):
                    weight.add_(direction, alpha=scale)

        before = [weight.detach().clone() for weight in weights]
        step_by = torch.autograd.grad(train_loss(), weights, materialize_grads=True)
        moved(averages(step_by), -rate)
        out = self.held_out_loss(x, labels)
        found = torch.autograd.grad(out, [*alphas, *weights], materialize_grads=True)
        direct, by_weights = found[: len(alphas)], averages(found[len(alphas) :])
        moved_back = list(zip(weights, before, strict=True))

        def restore() -> None:
            with torch.no_grad():
                for weight, old in moved_back:
                    weight.copy_(old)

        restore()
        norm = torch.stack([g.norm() for g in by_weights]).norm()
        step = STEP_SHARE / max(float(norm), 1e-12)
        moved(by_weights, step)
        above = torch.autograd.grad(train_loss(), alphas)
        moved(by_weights, -2 * step)
        below = torch.autograd.grad(train_loss(), alphas)
        restore()
        gradients = [
            d - rate * (a - b) / (2 * step) for d, a, b in zip(direct, above, below, strict=True)
        ]
        return float(out.detach()), gradients

    def prune_at(self, share: float) -> None:
        """After each third of the steps the weakest candidates go, down to the recipe's share.

        The larger half of them after the first: what is decided early is not yet overfitted.
        """
        network = self.network
        num = network.present.shape[1] - network.first
        last = max(1, round(num * (1 - self.recipe.prune)))
        keep = num - math.ceil((num - last) * min(1.0, int(3 * share + 1e-9) / 2))
        if keep < int(network.present[:, network.first :].sum(1).max()):
            network.prune(keep, network.mixtures(self.recipe.gate))

    def probabilities(self) -> list[Floats]:
        """``(num_candidates,)`` a row; of an edge ``none`` first."""
        mixtures = self.network.mixtures(self.recipe.gate).detach().cpu().double().numpy()
        return [m[: len(a)] for m, a in zip(mixtures, self.network.rows, strict=True)]

    def expected(self) -> dict[str, float]:
        """E[cost] of every limited cost, in the budget's units."""
        mixtures = self.network.mixtures(self.recipe.gate).detach()
        return {e.name: e.unit(float(e.of(mixtures))) for e in self.expected_costs}

    def entropy(self) -> float:
        """Mean over the edges of the entropy as a share of its maximum."""
        shares = []
        for mixture in self.probabilities():
            p = mixture / mixture.sum()
            shares.append(float(-(p * np.log(p + 1e-300)).sum() / np.log(len(p))))
        return float(np.mean(shares)) if shares else 0.0

    def state(self) -> dict[str, Tensor]:
        """All that resuming needs beside the network's own state."""
        numbers = torch.tensor([self.num_steps, self.multiplier], dtype=torch.float64)
        found = {"numbers": numbers}
        for index, state in self._adam.state_dict()["state"].items():
            found |= {f"adam.{index}.{key}": torch.as_tensor(v) for key, v in state.items()}
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what :meth:`state` gave."""
        steps, self.multiplier = state["numbers"].tolist()
        self.num_steps = int(steps)
        restore_adam(self._adam, state)


class MixturesLearner(Learner):
    """All candidates at once.

    Args:
        space: One that names a mixture, at one resolution.
        recipe: How.

    Raises:
        InvalidInputError: The space has none, or no skips that could be limited.
    """

    recipe: DartsRecipe
    network: MixedBlocks | MixedCells

    def __init__(self, space: SearchSpace, recipe: DartsRecipe) -> None:
        self.space, self.recipe = space, recipe
        self.network = mixture_of(space)
        if recipe.architecture.max_skips is not None and not self.network.has_skips:
            raise InvalidInputError(f"max_skips is of cells, and {space.name} has none")

    @property
    def weights(self) -> Sequence[nn.Parameter]:
        """All but the mixtures."""
        return self.network.weights

    @property
    def blocks(self) -> list[tuple[str, tuple[str, ...]]]:
        """Those that have a choice, or the edges."""
        return self.network.row_names

    def architecture(self, problem: Problem) -> DartsOptimizer:
        """First order, or second."""
        expected = expectations(self.network, problem)
        return DartsOptimizer(self.network, expected, self.recipe.architecture)

    def logits(self, x: Tensor, images: StepImages, architecture: Architecture) -> Tensor:
        """Of all candidates, weighted."""
        mixtures = self.network.mixtures(self.recipe.architecture.gate).detach()
        return self.network.forward_mixed(x, mixtures)

    def decide(
        self, probabilities: Sequence[Floats], problem: Problem, num_evaluations: int = 20_000
    ) -> Decision:
        """The strongest network: see :func:`decision`."""
        return decision(self.network, probabilities, problem, self.recipe, num_evaluations)

    def short(self, found: Decision) -> str:
        """The network's own words."""
        return self.network.in_words(found.arch)

    def notes(self, best: Archs) -> list[str]:
        """A collapse."""
        skips = self.network.num_skips(best)
        if skips <= COLLAPSED:
            return []
        return [
            f"the normal cell has {skips} skip connections: DARTS is known to collapse like that; "
            "--set gate=sigmoid, --set prune=0.5 or --set max_skips=2 counter it"
        ]


def expectations(network: MixedBlocks | MixedCells, problem: Problem) -> list[Expectation]:
    """Of every limit on a sum over layers."""
    found = []
    for name, one in problem.layer_sums().items():
        costs = network.costs_of(one.values)
        found.append(
            Expectation(
                name, one.limit, costs.constant + one.intercept,
                torch.from_numpy(costs.rows).float(), torch.from_numpy(costs.shares).float(),
                network.first, one.unit,
            )
        )  # fmt: skip
    return found


@functools.singledispatch
def decision(
    network: Mixture,
    mixtures: Sequence[Floats],
    problem: Problem,
    recipe: DartsRecipe,
    num_evaluations: int,
) -> Decision:
    """The strongest network that keeps the limits: each mixture registers how.

    Raises:
        InfeasibleBudgetError: None was found; of cells, none of at most ``max_skips``.
    """
    raise InvalidInputError(f"no decision is registered for {type(network).__name__}")


@decision.register(MixedBlocks)
def _of_blocks(
    network: MixedBlocks,
    mixtures: Sequence[Floats],
    problem: Problem,
    recipe: DartsRecipe,
    num_evaluations: int,
) -> Decision:
    rng = np.random.default_rng([recipe.seed, 10])
    return discretise(network, mixtures, problem, rng, num_evaluations)


@decision.register(MixedCells)
def _of_cells(
    network: MixedCells,
    mixtures: Sequence[Floats],
    problem: Problem,
    recipe: DartsRecipe,
    num_evaluations: int,
) -> Decision:
    return cells_decision(network, mixtures, problem, recipe.architecture.max_skips)
