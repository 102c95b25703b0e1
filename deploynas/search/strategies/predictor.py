"""Evaluate a few, predict the rest, evaluate the most promising; again, with what was learnt."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from deploynas.search.drawing import first_population
from deploynas.search.problem import Problem
from deploynas.search.strategy import Effort, Evaluating, Options, Rounds

NUM_ROUNDS = 30


class PredictorOptions(Options):
    """Options of the search by a predictor."""

    kind: Annotated[
        Literal["process", "ridge", "mlp", "trees", "graph", "best"],
        Field(
            description="Of predictor: process (Gaussian), ridge, mlp, trees, of cells graph, or "
            "the best of these on held-out networks."
        ),
    ] = "process"


class Predictor(Evaluating):
    """Rounds of predicting and evaluating.

    As the once-for-all search fits a predictor to pairs of architecture and accuracy (Cai et al.
    2020, section 3.4), but in rounds: Bayesian optimisation, where the predictor is a Gaussian
    process (Kandasamy et al. 2018, "Neural architecture search with Bayesian optimisation and
    optimal transport", section 2.2). What is first is a sixth of the evaluations, ten or more:
    random subnets and uniform ones.
    """

    name = "predictor"
    help = "Evaluates a few, predicts thousands, evaluates the most promising, in rounds."
    options = PredictorOptions
    predicts = True

    def rounds(
        self, problem: Problem, options: PredictorOptions, rng: np.random.Generator, effort: Effort
    ) -> Rounds:
        """A first population, then rounds."""
        from deploynas.search.process import LEAST_FITTED
        from deploynas.search.proposals import Proposals

        num = effort.num_evaluations
        archs = first_population(effort.first(max(-(-num // 6), LEAST_FITTED)), problem, rng)
        accuracies = yield archs
        num_round = max(effort.at_once, num // NUM_ROUNDS)
        proposals = Proposals(problem, rng, options.kind)
        while LEAST_FITTED <= len(archs) < num:
            fresh = proposals.next(min(num_round, num - len(archs)), archs, accuracies)
            if not len(fresh):  # the corner is exhausted
                return
            scores = yield fresh
            archs = np.concatenate([archs, fresh])
            accuracies = np.concatenate([accuracies, scores])


STRATEGY = Predictor()
