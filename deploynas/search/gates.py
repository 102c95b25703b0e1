"""How ProxylessNAS learns an architecture: gates, expected cost, multiplier (Cai et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from deploynas.nn.candidates import MixedNetwork
from deploynas.search.problem import Problem
from deploynas.search.strategies.proxyless import ProxylessOptions
from deploynas.train.distributed import average, share_of_mean
from deploynas.train.loop import DivergedError
from deploynas.train.task import CLASSIFICATION

if TYPE_CHECKING:
    from deploynas.search.gradient import WeightStep

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AdditiveCost:
    """A limited cost that is a sum over the blocks.

    Attributes:
        name: The budget's.
        limit: What a network may cost; of a latency, what its prediction may be, so that the
            prediction's upper bound keeps the budget.
        constant: Of what is in every network.
        candidates: ``(num_candidates,)`` a mixed layer.
        unit: What a sum means in the budget's unit: of a latency whose model takes a power of a
            sum, and whose limit here is one on that sum.
    """

    name: str
    limit: float
    constant: float
    candidates: tuple[Floats, ...]
    unit: Callable[[float], float] = float

    def expected(self, probabilities: Sequence[Tensor]) -> Tensor:
        """E[cost] = constant + sum over blocks of p . F (Cai et al. 2019, equation 5)."""
        total = torch.tensor(self.constant, dtype=torch.float64)
        for p, cost in zip(probabilities, self.candidates, strict=True):
            total = total + p.double().cpu() @ torch.from_numpy(cost)
        return total

    def of(self, options: Sequence[int]) -> float:
        """The cost of one option a mixed layer."""
        chosen = (c[o] for c, o in zip(self.candidates, options, strict=True))
        return self.constant + float(sum(chosen))


def additive_costs(network: MixedNetwork, problem: Problem) -> list[AdditiveCost]:
    """The budget's limits that are sums over blocks, and that the dearest network exceeds."""
    found = []
    for name, one in problem.layer_sums().items():
        padded = np.append(one.values, 0.0)  # index -1: the identity
        cost = AdditiveCost(
            name,
            one.limit,
            float(padded[network.fixed_layer_ids].sum()) + one.intercept,
            tuple(padded[layer.layer_ids] for layer in network.mixed),
            one.unit,
        )
        if cost.constant + sum(float(c.max()) for c in cost.candidates) > cost.limit:
            found.append(cost)
    return found


APPROACH = 0.2  # of the distance between E[cost] and its limit, a step
MAX_SHIFT, BISECTIONS = 1.0, 40  # of a logarithm of a ratio of probabilities, a step
BASELINE_MEMORY = 0.95


class ArchitectureOptimizer:
    """Moves a mixed network's architecture parameters, one held-out batch a step.

    Args:
        network: Whose architecture parameters move.
        costs: Limits on sums over blocks.
        recipe: How.
        objective: Of ``reinforce``: a path's loss on the batch and its options -> what is to be
            small; any number will do, measured ones too. The loss with the path's own cost, in
            the recipe's form, where None.

    Attributes:
        network: Whose ``alphas`` move.
        costs: The limits; the one that the expectation exceeds most, or keeps most narrowly, is
            steered by.
        multiplier: Of E[cost]/limit in the last step of the adaptive form; negative where the
            expectation had to rise.
        num_steps: Taken so far.
        baseline: Of ``reinforce``: what is usual; None before the first step.
    """

    def __init__(
        self,
        network: MixedNetwork,
        costs: Sequence[AdditiveCost],
        recipe: ProxylessOptions,
        objective: Callable[[float, Sequence[int]], float] | None = None,
    ) -> None:
        self._objective = objective or self.with_cost
        self.network, self.costs, self.recipe = network, costs, recipe
        self.temperature = recipe.temperature
        self.num_steps = 0
        self.multiplier = 0.0
        self.baseline: float | None = None
        alphas = network.alphas or [nn.Parameter(torch.zeros(0))]  # one candidate everywhere
        self._adam = torch.optim.Adam(alphas, recipe.rate, betas=(0.0, 0.999))

    def probabilities(self) -> list[Floats]:
        """``(num_candidates,)`` a mixed layer, at the present temperature."""
        return [p.detach().cpu().double().numpy() for p in self.softmax_of_all()]

    def softmax_of_all(self) -> list[Tensor]:
        """The same with a gradient, float64."""
        return [(alpha.double() / self.temperature).softmax(0) for alpha in self.network.alphas]

    def sample(self, rng: np.random.Generator) -> list[int]:
        """A path: one option a mixed layer."""
        return [int(rng.choice(len(p), p=p / p.sum())) for p in self.probabilities()]

    def entropy(self) -> float:
        """Mean over the mixed layers of the entropy as a share of its maximum."""
        shares = [
            float(-(p * np.log(p + 1e-300)).sum() / np.log(len(p))) for p in self.probabilities()
        ]
        return float(np.mean(shares)) if shares else 0.0

    def expected(self) -> dict[str, float]:
        """E[cost] of every limited cost, in the budget's units."""
        return {c.name: c.unit(total) for c, total in self._expected_sums()}

    def _expected_sums(self) -> list[tuple[AdditiveCost, float]]:
        probabilities = self.softmax_of_all()
        return [(c, float(c.expected(probabilities).detach())) for c in self.costs]

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
            rng: Draws the paths.
            share: Of the architecture steps that are done, for the temperature.
            weight_step: Not needed: nothing is unrolled.

        Returns:
            The loss on the batch (with ``reinforce``, the mean over the sampled networks).
        """
        recipe = self.recipe
        start, end = recipe.temperature, recipe.final_temperature
        self.temperature = start + (end - start) * share
        self.num_steps += 1
        if not self.network.alphas:
            return 0.0
        if recipe.update == "two-path":
            loss = self.two_path_step(x, labels, rng)
        else:
            loss = self.reinforce_step(x, labels, rng)
        self._project()
        return loss

    def _binding(self) -> tuple[AdditiveCost, float] | None:
        """The cost nearest to, or furthest over, its limit, and E[cost]/limit."""
        ratios = [(total / c.limit, c) for c, total in self._expected_sums()]
        if not ratios:
            return None
        ratio, cost = max(ratios, key=lambda pair: pair[0])
        return cost, ratio

    def two_path_step(self, x: Tensor, labels: Tensor, rng: np.random.Generator) -> float:
        """Two paths compete, of which one runs (Cai et al. 2019, section 3.2.1); the loss."""
        pairs, active, other = [], [], []
        shares: list[Floats] = []
        for p in self.probabilities():
            pair = draw_pair(p, rng)
            q = p[pair] / p[pair].sum()
            first = 0 if rng.random() < q[0] else 1
            pairs.append(pair)
            shares.append(q)
            active.append(int(pair[first]))
            other.append(int(pair[1 - first]))
        loss, gates = gate_gradients(
            lambda g: self.network.forward_gated(
                x, self.network.row(active), self.network.row(other), g
            ),
            labels, len(pairs),
        )  # fmt: skip
        scale, slope = self.latency_terms(loss)
        binding = self._binding()
        for number, (alpha, pair, q) in enumerate(
            zip(self.network.alphas, pairs, shares, strict=True)
        ):
            gradient = gates[number] if pair[0] == active[number] else gates[number][::-1]
            gradient = gradient * scale
            if binding is not None:
                cost, _ = binding
                gradient = gradient + slope * cost.candidates[number][pair] / cost.limit
            alpha.grad = torch.zeros_like(alpha)
            alpha.grad[pair] = _as(alpha, softmax_gradient(q, gradient) / self.temperature)
        before = [alpha.detach().clone() for alpha in self.network.alphas]
        self._adam_step()
        for alpha, old, pair in zip(self.network.alphas, before, pairs, strict=True):
            keep_the_rest(alpha, old, pair, self.temperature)
        return loss

    def reinforce_step(self, x: Tensor, labels: Tensor, rng: np.random.Generator) -> float:
        """Raises the probability of paths that are better than usual (Williams 1992)."""
        probabilities = self.probabilities()
        total = [np.zeros_like(p) for p in probabilities]
        rewards, losses = [], []
        baseline = self.baseline
        for _ in range(self.recipe.num_samples):
            options = self.sample(rng)
            with torch.no_grad():
                logits = self.network(x, self.network.row(options))
                own = CLASSIFICATION.loss(logits, labels)
                loss = float(average(own * share_of_mean(len(labels))))
            losses.append(loss)
            reward = -self._objective(loss, options)
            rewards.append(reward)
            if baseline is None:
                baseline = reward  # the first reward says nothing about its own path
            for gradient, p, option in zip(total, probabilities, options, strict=True):
                gradient -= (reward - baseline) * score(p, option)
        for alpha, gradient in zip(self.network.alphas, total, strict=True):
            mean = gradient / len(rewards) / self.temperature
            alpha.grad = _as(alpha, mean)
        self._adam_step()
        mean_reward = float(np.mean(rewards))
        old = mean_reward if self.baseline is None else self.baseline
        self.baseline = BASELINE_MEMORY * old + (1 - BASELINE_MEMORY) * mean_reward
        return float(np.mean(losses))

    def with_cost(self, loss: float, options: Sequence[int]) -> float:
        """A path's loss with its own cost, in the recipe's form."""
        if not self.costs:
            return loss
        ratio = max(c.of(options) / c.limit for c in self.costs)
        if self.recipe.latency_loss == "product":
            return float(loss * ratio**self.recipe.weight)
        return float(loss + self._weight * (ratio - 1))

    @property
    def _weight(self) -> float:
        return self.recipe.weight if self.recipe.latency_loss == "sum" else 0.0

    def latency_terms(self, loss: float) -> tuple[float, float]:
        """Factor of the gates' gradients, and d loss / d (E[cost] / limit)."""
        binding = self._binding()
        if binding is None:
            return 1.0, 0.0
        if self.recipe.latency_loss != "product":
            return 1.0, self._weight
        weight, ratio = self.recipe.weight, binding[1]
        return ratio**weight, weight * loss * ratio ** (weight - 1)

    def _project(self) -> None:
        """Bring the expectation nearer to its limit, changing the distribution least.

        Of all distributions with a given E[cost] the nearest to p, by Kullback-Leibler
        divergence, is p exp(-multiplier cost) normalised (Csiszar 1975, "I-divergence geometry",
        theorem 3.1), which keeps blocks independent. One step goes :data:`APPROACH` of the way.
        """
        binding = self._binding()
        if binding is None or self.recipe.latency_loss != "adaptive":
            return
        cost, ratio = binding
        wanted = 1 + (ratio - 1) * (1 - APPROACH)
        logits = [
            alpha.detach().cpu().double().numpy() / self.temperature
            for alpha in self.network.alphas
        ]
        shares = [candidates / cost.limit for candidates in cost.candidates]

        def tilted(multiplier: float) -> float:
            total = cost.constant / cost.limit
            for z, share in zip(logits, shares, strict=True):
                p = np.exp(z - multiplier * share - (z - multiplier * share).max())
                total += float(p @ share / p.sum())
            return total

        most = MAX_SHIFT / max(float(np.ptp(share)) for share in shares)
        low, high = -most, most
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if tilted(middle) > wanted else (low, middle)
        self.multiplier = (low + high) / 2
        with torch.no_grad():
            for alpha, share in zip(self.network.alphas, shares, strict=True):
                alpha.sub_(_as(alpha, self.multiplier * self.temperature * share))

    def _adam_step(self) -> None:
        gradients = torch.cat([a.grad for a in self.network.alphas if a.grad is not None])
        if not bool(gradients.isfinite().all()):
            raise DivergedError(
                f"the search diverged at architecture step {self.num_steps}",
                "try another --seed",
            )
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """All that resuming needs beside the network's own state."""
        numbers = [
            self.num_steps, self.multiplier, self.temperature,
            np.nan if self.baseline is None else self.baseline,
        ]  # fmt: skip
        found = {"numbers": torch.tensor(numbers, dtype=torch.float64)}
        for index, state in self._adam.state_dict()["state"].items():
            found |= {f"adam.{index}.{key}": torch.as_tensor(v) for key, v in state.items()}
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what :meth:`state` gave."""
        steps, self.multiplier, self.temperature, baseline = state["numbers"].tolist()
        self.num_steps = int(steps)
        self.baseline = None if np.isnan(baseline) else baseline
        restore_adam(self._adam, state)


def restore_adam(adam: torch.optim.Adam, state: dict[str, Tensor]) -> None:
    """Take an optimizer's state out of tensors named ``adam.PARAMETER.KEY``."""
    restored: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith("adam."):
            _, index, key = name.split(".")
            restored.setdefault(int(index), {})[key] = tensor
    groups = adam.state_dict()["param_groups"]
    adam.load_state_dict({"state": restored, "param_groups": groups})


def gate_gradients(
    forward: Callable[[Tensor], Tensor], labels: Tensor, num_mixed: int
) -> tuple[float, Floats]:
    """The loss, and d loss / d gate for the active (gate 1) and the other path (gate 0).

    Args:
        forward: ``(num_mixed, 2)`` gates -> logits.
        labels: ``(n,)``.
        num_mixed: Mixed layers.

    Returns:
        The loss and ``(num_mixed, 2)``.
    """
    gates = torch.zeros(num_mixed, 2, device=labels.device)
    gates[:, 0] = 1.0
    gates.requires_grad_()
    loss = CLASSIFICATION.loss(forward(gates), labels) * share_of_mean(len(labels))
    (gradient,) = torch.autograd.grad(loss, gates)
    mean = average(torch.cat([gradient.flatten(), loss.detach()[None]]))
    found = mean.cpu().double().numpy()
    return float(found[-1]), found[:-1].reshape(num_mixed, 2)


def draw_pair(probabilities: Floats, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Two different candidates, drawn by their probabilities."""
    gumbel = rng.gumbel(size=len(probabilities))
    with np.errstate(divide="ignore"):  # a probability of zero is drawn last
        return np.argsort(-(np.log(probabilities) + gumbel), kind="stable")[:2]


def softmax_gradient(probabilities: Floats, gates: Floats) -> Floats:
    """Gradients of the parameters: sum over j of dL/dg_j p_j (delta_ij - p_i).

    Equation 4 of Cai et al. 2019; the probabilities are those of the candidates whose gates are
    given.
    """
    gradient: Floats = probabilities * (gates - probabilities @ gates)
    return gradient


def score(probabilities: Floats, option: int) -> Floats:
    """Gradient of log p_option by the parameters."""
    gradient = -probabilities
    gradient[option] += 1.0
    return gradient


@torch.no_grad()
def keep_the_rest(
    alpha: Tensor, before: Tensor, pair: npt.NDArray[np.intp], temperature: float
) -> None:
    """Shift a pair's parameters so that every other candidate keeps its probability.

    Cai et al. 2019, section 3.2.1: the pair's common mass is what it was.
    """
    both = torch.as_tensor(pair, device=alpha.device)
    old = (before[both].double() / temperature).logsumexp(0)
    new = (alpha[both].double() / temperature).logsumexp(0)
    alpha[both] += ((old - new) * temperature).to(alpha.dtype)


def _as(alpha: Tensor, gradient: Floats) -> Tensor:
    return torch.from_numpy(gradient).to(alpha)
