"""Evaluate a few, predict the rest, evaluate the most promising; again, with what was learnt."""

from __future__ import annotations

import numpy as np

from deploynas.search.drawing import first_population
from deploynas.search.problem import Problem
from deploynas.search.strategies import ofa
from deploynas.search.strategy import Effort, Evaluating, Options, Rounds, best_of

NUM_ROUNDS, PREDICTED = 12, 3_000


class Predictor(Evaluating):
    """Evolution under a predictor that is fitted anew every round.

    As the once-for-all search fits a predictor to pairs of architecture and accuracy and evolves
    under it (Cai et al. 2020, section 3.4), but in rounds (Wen et al. 2020, "Neural predictor for
    neural architecture search", section 3, has one). A third of the evaluations, ten or more,
    are random subnets and uniform ones.
    """

    name = "predictor"
    help = "Evaluates a few, predicts thousands, evaluates the most promising, in rounds."
    predicts = True

    def rounds(
        self, problem: Problem, options: Options, rng: np.random.Generator, effort: Effort
    ) -> Rounds:
        """A first population, then rounds."""
        from deploynas.search.predictor import LEAST_FITTED, fit_predictor

        num = effort.num_evaluations
        archs = first_population(max(-(-num // 3), min(num, LEAST_FITTED)), problem, rng)
        accuracies = yield archs
        num_round = max(effort.at_once, (num - len(archs)) // NUM_ROUNDS)
        kind, chosen_at = None, 0
        while LEAST_FITTED <= len(archs) < num:
            if len(archs) >= 1.4 * chosen_at:  # comparing the kinds takes longer than fitting one
                kind, chosen_at = None, len(archs)
            predictor = fit_predictor(problem.space, archs, accuracies, kind)
            kind = predictor.kind
            known = {row.tobytes() for row in archs}
            rounds = ofa.STRATEGY.rounds(problem, options, rng, Effort(PREDICTED))
            order = best_of(rounds, predictor.predict)
            size = min(num_round, num - len(archs))
            fresh = [arch for arch in order if arch.tobytes() not in known][:size]
            if not fresh:  # the corner is exhausted
                return
            scores = yield np.stack(fresh)
            archs = np.concatenate([archs, np.stack(fresh)])
            accuracies = np.concatenate([accuracies, scores])


STRATEGY = Predictor()
