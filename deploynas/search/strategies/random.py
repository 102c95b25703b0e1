"""Random search: what every strategy must beat."""

from __future__ import annotations

import numpy as np

from deploynas.search.drawing import uniform_samples
from deploynas.search.problem import Problem
from deploynas.search.strategy import Effort, Evaluating, Options, Rounds


class Random(Evaluating):
    """Architectures drawn uniformly from all within the limits, evaluated all at once."""

    name = "random"
    help = "Networks drawn uniformly from all within the limits: what every other must beat."

    def rounds(
        self, problem: Problem, options: Options, rng: np.random.Generator, effort: Effort
    ) -> Rounds:
        """One."""
        yield uniform_samples(effort.num_evaluations, problem, rng)


STRATEGY = Random()
