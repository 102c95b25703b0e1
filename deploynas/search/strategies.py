"""Strategies: functions of (space, budget, evaluator, rng, limits) -> history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deploynas.errors import InfeasibleBudgetError
from deploynas.profile import LatencyModel
from deploynas.search.budget import Budget
from deploynas.spaces import Archs

Evaluate = Callable[[Archs], float]
MAX_DRAWS = 200  # batches drawn before a budget counts as unreachable by sampling


@dataclass(frozen=True)
class History:
    """Every distinct architecture that a strategy evaluated, in order.

    Attributes:
        archs: ``(n, num_choices)``.
        accuracies: ``(n,)`` fractions.
    """

    archs: Archs
    accuracies: np.ndarray

    def best(self, k: int) -> list[int]:
        """Indices of the ``k`` most accurate, best first."""
        return [int(i) for i in np.argsort(-self.accuracies, kind="stable")[:k]]


def admitted_samples(
    n: int, budget: Budget, model: LatencyModel, rng: np.random.Generator
) -> Archs:
    """``n`` random architectures within budget, or as many as a bounded search finds.

    Raises:
        InfeasibleBudgetError: None at all was found.
    """
    space = model.space
    found = np.zeros((0, len(space.choices)), np.uint8)
    seeds = space.uniform()
    seeds = seeds[budget.admits(seeds, model)]
    for _ in range(MAX_DRAWS):
        drawn = np.concatenate([space.sample(256, rng), space.sample_spread(256, rng)])
        if len(seeds):  # a tight budget leaves a small corner: look around its members
            near = seeds[rng.integers(len(seeds), size=64)]
            drawn = np.concatenate([drawn, space.mutate(near, 0.15, rng)])
        found = np.concatenate([found, drawn[budget.admits(drawn, model)]])
        found = found[np.sort(np.unique(found, axis=0, return_index=True)[1])]
        if len(found) >= n:
            break
    if not len(found):
        raise InfeasibleBudgetError("no architecture within the budget was found")
    return found[rng.permutation(len(found))[:n]]


def random_search(
    budget: Budget,
    model: LatencyModel,
    evaluate: Evaluate,
    rng: np.random.Generator,
    num_evaluations: int,
) -> History:
    """Evaluate random architectures within budget: what every strategy must beat."""
    archs = admitted_samples(num_evaluations, budget, model, rng)
    return History(archs, np.array([evaluate(arch) for arch in archs]))


def evolution(
    budget: Budget,
    model: LatencyModel,
    evaluate: Evaluate,
    rng: np.random.Generator,
    num_evaluations: int,
    *,
    mutation: float = 0.1,
) -> History:
    """Constrained evolution (Cai et al. 2020, section 3.4; Guo et al. 2020, algorithm 1).

    A third of the evaluations is a first population: uniform subnets within budget and random
    ones. Then the best parents breed by mutation and crossover; a child outside the budget is
    drawn again, a bounded number of times.
    """
    space = model.space
    uniform = space.uniform()
    uniform = uniform[budget.admits(uniform, model)]
    num_first = max(1, num_evaluations // 3)
    # among the uniform subnets, the dearest are likeliest to be accurate
    dearest = uniform[np.argsort(-space.macs(uniform), kind="stable")][: num_first // 2]
    rest = admitted_samples(num_first - len(dearest), budget, model, rng)
    archs = list(np.concatenate([dearest, rest]))
    seen = {row.tobytes() for row in archs}
    accuracies = [evaluate(arch) for arch in archs]
    while len(archs) < num_evaluations:
        order = np.argsort(-np.array(accuracies), kind="stable")[: max(2, num_evaluations // 6)]
        parents = np.array(archs)[order]
        child = _child(parents, seen, budget, model, rng, mutation)
        if child is None:  # the corner is exhausted
            break
        seen.add(child.tobytes())
        archs.append(child)
        accuracies.append(evaluate(child))
    return History(np.array(archs), np.array(accuracies))


def _child(
    parents: Archs,
    seen: set[bytes],
    budget: Budget,
    model: LatencyModel,
    rng: np.random.Generator,
    mutation: float,
) -> Archs | None:
    """A new architecture within budget, bred from ``parents``."""
    space = model.space
    for _ in range(MAX_DRAWS):
        first = parents[rng.integers(len(parents), size=32)]
        second = parents[rng.integers(len(parents), size=32)]
        crossed = np.where(rng.random((32, 1)) < 0.5, space.crossover(first, second, rng), first)
        children = space.mutate(crossed, mutation, rng)
        for child in children[budget.admits(children, model)]:
            if child.tobytes() not in seen:
                new: Archs = child
                return new
    return None


STRATEGIES = {"ofa": evolution, "random": random_search}
