"""Regularised evolution: the oldest dies, not the weakest."""

from __future__ import annotations

from collections import deque
from typing import Annotated

import numpy as np
from pydantic import Field

from deploynas.costs import Floats
from deploynas.search.drawing import MAX_DRAWS, admitted_samples, unseen
from deploynas.search.problem import Problem
from deploynas.search.strategy import Effort, Evaluating, Options, Rounds
from deploynas.spaces import Archs

GENERATIONS = 2_000  # of a search with many evaluations


class EvolutionOptions(Options):
    """Options of regularised evolution.

    Soft limits: fitness = accuracy - soft_latency * max(0, ms / limit - 1) - soft_flops * max(0,
    MACs / limit - 1), in place of refusing what is over a limit: a population may pass through
    networks that are a little too slow. The result keeps every limit.
    """

    population: Annotated[int, Field(ge=2, description="Networks that are alive.")] = 100
    tournament: Annotated[
        int, Field(ge=1, description="Of so many at random the fittest is a parent.")
    ] = 10
    soft_latency: Annotated[
        float | None,
        Field(gt=0, description="Accuracy lost by a latency of twice the limit; else refused."),
    ] = None
    soft_flops: Annotated[
        float | None, Field(gt=0, description="Accuracy lost by twice the MACs; else refused.")
    ] = None

    @property
    def is_soft(self) -> bool:
        """Whether networks outside the limits are evaluated too."""
        return self.soft_latency is not None or self.soft_flops is not None

    def fitness(self, archs: Archs, accuracies: Floats, problem: Problem) -> Floats:
        """``(n,)``."""
        found = accuracies
        for weight, name in ((self.soft_latency, "latency_ms"), (self.soft_flops, "macs")):
            if weight is not None and name in problem.limits:
                ratio = problem.cost(name).upper(archs) / problem.limits[name]
                found = found - weight * np.maximum(0, ratio - 1)
        return found


class Evolution(Evaluating):
    """Regularised evolution (Real et al. 2019, section 3).

    A first population of random networks, at most an eighth of the evaluations; then the fittest
    of a random tournament has a child with one choice changed, which takes the place of the
    oldest. No network is evaluated twice: a child that is known, or outside the limits, is drawn
    again, a bounded number of times.
    """

    name = "evolution"
    help = "Regularised evolution: the oldest dies, not the weakest."
    options = EvolutionOptions

    def rounds(
        self, problem: Problem, options: EvolutionOptions, rng: np.random.Generator, effort: Effort
    ) -> Rounds:
        """A first population, then children."""
        num = effort.num_evaluations
        wanted = min(options.population, -(-num // 8))
        first = admitted_samples(effort.first(wanted), problem, rng)
        seen = {arch.tobytes() for arch in first}
        fitness = options.fitness(first, (yield first), problem)
        alive = deque(zip(first, fitness, strict=True), maxlen=len(first))
        num_children = max(effort.at_once, num // GENERATIONS)
        stuck = 0
        while len(seen) < num and stuck < MAX_DRAWS:
            size = min(num_children, num - len(seen))
            drawn = [
                rng.choice(len(alive), min(options.tournament, len(alive)), replace=False)
                for _ in range(max(4, size))
            ]
            parents = np.stack([alive[max(one, key=lambda i: alive[i][1])][0] for one in drawn])
            children = problem.space.change_one(parents, rng)
            if stuck > MAX_DRAWS // 2:  # what is near is known: go further
                children = problem.space.change_one(children, rng)
            if not options.is_soft:
                children = children[problem.admits(children)]
            fresh = unseen(children, seen, size)
            stuck = 0 if len(fresh) else stuck + 1
            if len(fresh):
                fitness = options.fitness(fresh, (yield fresh), problem)
                alive.extend(zip(fresh, fitness, strict=True))


STRATEGY = Evolution()
