"""A search that spends one budget over a cheap and a dear evaluation.

The cheap one leads to a neighbourhood, and errs there: a short training prefers what learns fast.
The dear one, of the most promising few, says how. What it says of a network is noise too, so that
the best is told by what all evaluations say together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular

from deploynas.costs import Floats
from deploynas.errors import InvalidInputError
from deploynas.search.problem import Problem
from deploynas.search.process import GaussianProcess, Views
from deploynas.search.run import History, explore
from deploynas.search.strategies.predictor import STRATEGY as PREDICTOR
from deploynas.search.strategy import Effort
from deploynas.spaces import Archs

EvaluateAt = Callable[[Archs, int], Floats]  # (n, num_choices), fidelity -> (n,) accuracies
CHEAP_SHARE = 0.63  # of what is spent
CONSIDERED, FIRST, DEVIATIONS = 40, 3, 2.0
SLOPES = (0.1, 0.3, 0.6, 1.0)  # of dear accuracies over cheap ones
SPREADS = (0.002, 0.005, 0.01, 0.02)  # deviations of what the cheap one errs by
NOISE = 0.0025  # deviation of a dear accuracy from one seed to another
ERROR_WEIGHTS = (0.1, 0.3, 0.6)  # of the views by which two networks' errors are alike


@dataclass(frozen=True)
class Spending:
    """What evaluations cost, in any unit, and what all may cost.

    Attributes:
        cheap, dear: Of one network.
        total: Of the search.
    """

    cheap: float
    dear: float
    total: float

    @property
    def num_cheap(self) -> int:
        """Networks that are evaluated cheaply, so that three at least can be dearly."""
        most = (self.total - FIRST * self.dear) / self.cheap
        return int(min(CHEAP_SHARE * self.total / self.cheap, most))

    @property
    def num_dear(self) -> int:
        """Of these networks those that are evaluated dearly as well."""
        left = (self.total - self.num_cheap * self.cheap) / self.dear
        return min(int(left), self.num_cheap)


def predictor_over_fidelities(
    problem: Problem,
    evaluate: EvaluateAt,
    rng: np.random.Generator,
    spending: Spending,
) -> History:
    """The predictor strategy on cheap evaluations, then dear ones of what it leads to.

    A dear accuracy is taken to be a share of the cheap one plus a Gaussian process of its own
    (Kennedy and O'Hagan 2000, "Predicting the output from a complex computer code when fast
    approximations are available", section 2.1). The next network is that of the highest mean, two
    standard deviations added.

    Args:
        problem: Space and limits.
        evaluate: Accuracies, cheap (0) or dear (1).
        rng: Of every draw.
        spending: Costs of both, and what there is to spend.

    Returns:
        What was evaluated dearly, each with the accuracy that all evaluations together say.

    Raises:
        InvalidInputError: There is too little to spend.
    """
    if spending.num_cheap < 1 or spending.num_dear < 1:
        raise InvalidInputError(
            f"{spending.total:g} is too little to spend: {FIRST} dear evaluations and a cheap one "
            f"cost {FIRST * spending.dear + spending.cheap:g}"
        )
    cheap = explore(
        PREDICTOR, PREDICTOR.options(), problem, lambda archs: evaluate(archs, 0), rng,
        Effort(spending.num_cheap),
    )  # fmt: skip
    order = cheap.best(max(CONSIDERED, spending.num_dear))
    archs, scores = cheap.archs[order], cheap.accuracies[order]
    process = GaussianProcess(Views(problem.space), cheap.archs, cheap.accuracies)
    alike = process.alike(archs, ERROR_WEIGHTS)
    num = min(spending.num_dear, len(archs))
    taken = list(range(min(FIRST, num)))
    found = list(evaluate(archs[taken], 1))
    while len(taken) < num:
        mean, deviation = _corrected(scores, alike, taken, found)
        hope = mean + DEVIATIONS * deviation
        hope[taken] = -np.inf
        taken.append(int(hope.argmax()))
        found += list(evaluate(archs[taken[-1:]], 1))
    mean, _ = _corrected(scores, alike, taken, found)
    return History(archs[taken], mean[taken])


def _corrected(
    scores: Floats, alike: Floats, taken: Sequence[int], found: Sequence[float]
) -> tuple[Floats, Floats]:
    """Mean and deviation of every network's dear accuracy.

    Slope and spread are the likeliest, the constant has no prior.

    Args:
        scores: ``(n,)`` cheap accuracies.
        alike: ``(n, n)``.
        taken: Indices of those that were evaluated dearly.
        found: Their dear accuracies.
    """
    rows, one = list(taken), np.ones(len(taken))
    best: tuple[float, Floats, Floats] | None = None
    for slope, spread in itertools.product(SLOPES, SPREADS):
        covariance = spread**2 * alike[np.ix_(rows, rows)]
        factor = cholesky(covariance + NOISE**2 * np.eye(len(rows)), lower=True)
        left = np.array(found) - slope * scores[rows]
        unit = cho_solve((factor, True), one)
        constant = float(unit @ left / unit.sum())
        white = solve_triangular(factor, left - constant, lower=True)
        loss = float(white @ white / 2 + np.log(np.diag(factor)).sum() + np.log(unit.sum()) / 2)
        if best is None or loss < best[0]:
            known = solve_triangular(factor, spread**2 * alike[rows], lower=True)
            mean = slope * scores + constant + known.T @ white
            variance = spread**2 - (known**2).sum(axis=0)
            best = loss, mean, np.sqrt(np.maximum(variance, 0.0))
    assert best is not None
    return best[1:]
