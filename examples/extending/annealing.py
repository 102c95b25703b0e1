"""A strategy in one file: simulated annealing (Kirkpatrick, Gelatt and Vecchi 1983)."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from deploynas.search.drawing import uniform_samples
from deploynas.search.problem import Problem
from deploynas.search.strategy import Effort, Evaluating, Options
from deploynas.spaces import Archs

TRIES = 50  # neighbours that are drawn for one that keeps the limits


class AnnealingOptions(Options):
    """``--set NAME=VALUE`` finds these, with their ranges and their help."""

    temperature: Annotated[
        float, Field(gt=0, description="Accuracy that may be lost in a step, at first.")
    ] = 0.02
    cooling: Annotated[
        float, Field(gt=0, lt=1, description="Share of the temperature that is left in the end.")
    ] = 0.01


class Annealing(Evaluating):
    """Describes it; a searcher does the work."""

    name = "annealing"
    help = "Simulated annealing: one choice at a time, losses allowed while it is hot."
    options = AnnealingOptions

    def searcher(
        self, problem: Problem, options: Any, rng: np.random.Generator, effort: Effort
    ) -> Chain:
        """One run."""
        return Chain(problem, options, rng, effort)


class Chain:
    """Asked for a network, told what it is worth, again and again."""

    def __init__(
        self, problem: Problem, options: AnnealingOptions, rng: np.random.Generator, effort: Effort
    ) -> None:
        self.problem, self.options, self.rng, self.effort = problem, options, rng, effort
        self.here = uniform_samples(1, problem, rng)
        self.score: float | None = None
        self.num_told = 0

    def ask(self, n: int) -> Archs:
        """The start, then a neighbour within the limits; none where there is no other."""
        if self.score is None:
            return self.here
        for _ in range(TRIES):
            near = self.problem.space.change_one(self.here, self.rng)
            if self.problem.admits(near)[0]:
                return near
        return self.here[:0]

    def tell(self, archs: Archs, scores: np.ndarray, fidelity: str) -> None:
        """Go there where it is better, or not too much worse for the temperature."""
        done = self.num_told / self.effort.num_evaluations
        heat = self.options.temperature * self.options.cooling**done
        for arch, score in zip(archs, scores, strict=True):
            lost = 0.0 if self.score is None else self.score - score
            if lost <= 0 or self.rng.random() < np.exp(-lost / heat):
                self.here, self.score = arch[None], float(score)
            self.num_told += 1


STRATEGY = Annealing()
