"""Strategies: functions of (space, budget, evaluator, rng, limits) -> history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploynas.errors import InfeasibleBudgetError
from deploynas.profile import LatencyModel
from deploynas.search.budget import Budget
from deploynas.spaces import Archs

Floats = npt.NDArray[np.float64]
Evaluate = Callable[[Archs], Floats]  # (n, num_choices) -> (n,) accuracies, fractions
MAX_DRAWS = 200  # batches drawn before a budget counts as unreachable by sampling
MAX_FIRST, MAX_PARENTS, GENERATIONS = 500, 100, 200
PREDICTOR_ROUNDS, PREDICTED = 4, 4_000


@dataclass(frozen=True)
class History:
    """Every distinct architecture that a strategy evaluated, in order.

    Attributes:
        archs: ``(n, num_choices)``.
        accuracies: ``(n,)`` fractions.
    """

    archs: Archs
    accuracies: Floats

    def best(self, k: int) -> list[int]:
        """Indices of the ``k`` most accurate, best first."""
        return [int(i) for i in np.argsort(-self.accuracies, kind="stable")[:k]]

    def front(self, costs: Floats) -> list[int]:
        """Indices of the Pareto front, cheapest first: no other is as cheap and as accurate."""
        order = np.lexsort((-self.accuracies, costs))
        reached = np.maximum.accumulate(self.accuracies[order])
        better = np.append(True, self.accuracies[order][1:] > reached[:-1])
        return [int(i) for i in order[better]]


def admitted_samples(
    n: int, budget: Budget, model: LatencyModel, rng: np.random.Generator
) -> Archs:
    """``n`` random architectures within budget, or as many as a bounded search finds.

    Raises:
        InfeasibleBudgetError: None at all was found.
    """
    space, size = model.space, max(256, n)
    found = np.zeros((0, len(space.choices)), np.uint8)
    seeds = space.uniform()
    seeds = seeds[budget.admits(seeds, model)]
    for _ in range(MAX_DRAWS):
        drawn = np.concatenate([space.sample(size, rng), space.sample_spread(size, rng)])
        if len(seeds):  # a tight budget leaves a small corner: look around its members
            near = seeds[rng.integers(len(seeds), size=size // 4)]
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
    return History(archs, evaluate(archs))


def evolution(
    budget: Budget,
    model: LatencyModel,
    evaluate: Evaluate,
    rng: np.random.Generator,
    num_evaluations: int,
) -> History:
    """Constrained evolution (Cai et al. 2020, section 3.4; Guo et al. 2020, algorithm 1).

    A third of the evaluations, at most :data:`MAX_FIRST`, is a first population: uniform subnets
    within budget and random ones. Then the best of all so far breed by crossover and mutation,
    two choices a child on average. With few evaluations every child is judged before the next
    is bred; with many there are at most :data:`GENERATIONS` batches. A child outside the budget
    is drawn again, a bounded number of times.
    """
    num_first = max(1, min(num_evaluations // 3, MAX_FIRST))
    archs = [_first_population(num_first, budget, model, rng)]
    seen = {row.tobytes() for row in archs[0]}
    accuracies = [evaluate(archs[0])]
    parents, fitness = archs[0], accuracies[0]
    num_parents = max(2, min(num_evaluations // 6, MAX_PARENTS))
    num_children = max(1, num_evaluations // GENERATIONS)
    while len(seen) < num_evaluations:
        order = np.argsort(-fitness, kind="stable")[:num_parents]
        parents, fitness = parents[order], fitness[order]
        children = _children(
            parents, seen, budget, model, rng, min(num_children, num_evaluations - len(seen))
        )
        if not len(children):  # the corner is exhausted
            break
        archs.append(children)
        accuracies.append(evaluate(children))
        parents = np.concatenate([parents, children])
        fitness = np.concatenate([fitness, accuracies[-1]])
    return History(np.concatenate(archs), np.concatenate(accuracies))


def _children(
    parents: Archs,
    seen: set[bytes],
    budget: Budget,
    model: LatencyModel,
    rng: np.random.Generator,
    n: int,
) -> Archs:
    """Up to ``n`` new architectures within budget, bred from ``parents``; ``seen`` grows."""
    space, size = model.space, max(32, 2 * n)
    found: list[Archs] = []
    for _ in range(MAX_DRAWS):
        first = parents[rng.integers(len(parents), size=size)]
        second = parents[rng.integers(len(parents), size=size)]
        crossed = np.where(rng.random((size, 1)) < 0.5, space.crossover(first, second, rng), first)
        children = space.mutate(crossed, 2 / len(space.choices), rng)
        for child in children[budget.admits(children, model)]:
            key = child.tobytes()
            if key not in seen:
                seen.add(key)
                found.append(child)
                if len(found) == n:
                    return np.stack(found)
    return np.stack(found) if found else parents[:0]


def predictor_search(
    budget: Budget,
    model: LatencyModel,
    evaluate: Evaluate,
    rng: np.random.Generator,
    num_evaluations: int,
) -> History:
    """Evaluate a few, predict the rest, evaluate the most promising; again, with what was learnt.

    As the once-for-all search fits a predictor to pairs of architecture and accuracy and evolves
    under it (Cai et al. 2020, section 3.4), but in rounds (Wen et al. 2020, "Neural predictor for
    neural architecture search", section 3, has one). Half of the evaluations are random subnets
    and uniform ones, as in :func:`evolution`.
    """
    from deploynas.search.predictor import fit_predictor

    archs = _first_population(max(1, num_evaluations // 2), budget, model, rng)
    accuracies = evaluate(archs)
    num_round = max(1, (num_evaluations - len(archs)) // PREDICTOR_ROUNDS)
    while 10 <= len(archs) < num_evaluations:
        predictor = fit_predictor(model.space, archs, accuracies)
        known = {row.tobytes() for row in archs}
        found = evolution(budget, model, predictor.predict, rng, PREDICTED)
        order = found.archs[np.argsort(-found.accuracies, kind="stable")]
        num = min(num_round, num_evaluations - len(archs))
        fresh = [arch for arch in order if arch.tobytes() not in known][:num]
        if not fresh:  # the corner is exhausted
            break
        archs = np.concatenate([archs, np.stack(fresh)])
        accuracies = np.concatenate([accuracies, evaluate(np.stack(fresh))])
    return History(archs, accuracies)


def _first_population(
    n: int, budget: Budget, model: LatencyModel, rng: np.random.Generator
) -> Archs:
    """Up to ``n`` different architectures within budget, half of them uniform ones, the dearest.

    Among the uniform subnets those are likeliest to be accurate.
    """
    space = model.space
    uniform = space.uniform()
    uniform = uniform[budget.admits(uniform, model)]
    dearest = uniform[np.argsort(-space.macs(uniform), kind="stable")][: n // 2]
    rest = admitted_samples(n - len(dearest), budget, model, rng)
    return np.unique(np.concatenate([dearest, rest]), axis=0)


STRATEGIES = {"ofa": evolution, "predictor": predictor_search, "random": random_search}
