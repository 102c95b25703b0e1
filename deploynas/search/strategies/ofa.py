"""The search of once-for-all: constrained evolution from uniform subnets."""

from __future__ import annotations

import numpy as np

from deploynas.search.drawing import MAX_DRAWS, first_population
from deploynas.search.problem import Problem
from deploynas.search.strategy import Effort, Evaluating, Options, Rounds
from deploynas.spaces import Archs

MAX_FIRST, MAX_PARENTS, GENERATIONS = 500, 100, 200


class OnceForAll(Evaluating):
    """Constrained evolution (Cai et al. 2020, section 3.4; Guo et al. 2020, algorithm 1).

    A fifth of the evaluations, at most :data:`MAX_FIRST`, is a first population: uniform subnets
    within the limits and random ones. Then the best of all so far breed by crossover and mutation,
    two choices a child on average. With few evaluations every child is judged before the next is
    bred; with many there are at most :data:`GENERATIONS` batches. A child outside the limits is
    drawn again, a bounded number of times.
    """

    name = "ofa"
    help = "Evolution from uniform subnets by crossover and mutation, as of once-for-all."

    def rounds(
        self, problem: Problem, options: Options, rng: np.random.Generator, effort: Effort
    ) -> Rounds:
        """A first population, then batches of children."""
        num = effort.num_evaluations
        parents = first_population(effort.first(min(num // 5, MAX_FIRST)), problem, rng)
        seen = {row.tobytes() for row in parents}
        fitness = yield parents
        num_parents = max(2, min(num // 30, MAX_PARENTS))
        num_children = max(effort.at_once, num // GENERATIONS)
        while len(seen) < num:
            order = np.argsort(-fitness, kind="stable")[:num_parents]
            parents, fitness = parents[order], fitness[order]
            size = min(num_children, num - len(seen))
            children = _children(parents, seen, problem, rng, size)
            if not len(children):  # the corner is exhausted
                return
            scores = yield children
            parents = np.concatenate([parents, children])
            fitness = np.concatenate([fitness, scores])


def _children(
    parents: Archs, seen: set[bytes], problem: Problem, rng: np.random.Generator, n: int
) -> Archs:
    """Up to ``n`` new architectures within the limits, bred from ``parents``; ``seen`` grows."""
    space, size = problem.space, max(32, 2 * n)
    found: list[Archs] = []
    for _ in range(MAX_DRAWS):
        first = parents[rng.integers(len(parents), size=size)]
        second = parents[rng.integers(len(parents), size=size)]
        crossed = np.where(rng.random((size, 1)) < 0.5, space.crossover(first, second, rng), first)
        children = space.mutate(crossed, 2 / len(space.choices), rng)
        for child in children[problem.admits(children)]:
            key = child.tobytes()
            if key not in seen:
                seen.add(key)
                found.append(child)
                if len(found) == n:
                    return np.stack(found)
    return np.stack(found) if found else parents[:0]


STRATEGY = OnceForAll()
