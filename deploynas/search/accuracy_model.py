"""Accuracy from an architecture: ridge regression on the gap to a ceiling.

Accuracies saturate, so that the logarithm of what is missing to a ceiling is far closer to a
sum of the blocks' contributions than the accuracy itself. What is seen of an architecture is its
space's to say: :meth:`deploynas.spaces.SearchSpace.features`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
NUM_FREE = 3  # constant, log MACs, log params: never penalised
CEILINGS = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12)  # above the best accuracy seen
PENALTIES = np.geomspace(1e-2, 3e2, 15)


def fit(x: Floats, accuracies: Floats, num_folds: int = 5) -> tuple[float, Floats]:
    """Ceiling and weights; ceiling and penalty by cross-validation.

    Args:
        x: ``(n, num_features)``.
        accuracies: ``(n,)`` fractions.
        num_folds: Of the cross-validation.
    """
    folds = np.random.default_rng(0).permutation(len(x)) % num_folds
    best = (np.inf, 1.0, 1.0)
    for above in CEILINGS:
        ceiling = min(1.0, float(accuracies.max()) + above)
        gap = np.log(ceiling - accuracies + 1e-9)
        for penalty in PENALTIES:
            held = np.empty(len(x), np.float64)
            for fold in range(num_folds):
                out = folds == fold
                held[out] = predict(ceiling, _ridge(x[~out], gap[~out], penalty), x[out])
            error = float(np.mean((held - accuracies) ** 2))
            best = min(best, (error, ceiling, float(penalty)))
    _, ceiling, penalty = best
    return ceiling, _ridge(x, np.log(ceiling - accuracies + 1e-9), penalty)


def predict(ceiling: float, weights: Floats, x: Floats) -> Floats:
    """``(n,)`` accuracies."""
    accuracies: Floats = ceiling - np.exp(x @ weights)
    return accuracies


def _ridge(x: Floats, y: np.ndarray, penalty: float) -> Floats:
    ridge = np.full(x.shape[1], penalty)
    ridge[:NUM_FREE] = 1e-8
    solved: Floats = np.linalg.solve(x.T @ x + np.diag(ridge), x.T @ y)
    return solved
