"""Accuracy from an architecture: ridge regression on the gap to a ceiling.

Accuracies saturate, so that the logarithm of what is missing to a ceiling is far closer to a
sum of the blocks' contributions than the accuracy itself. Features of blocks past a stage's
depth are masked: equal networks have equal features.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deploynas.spaces import Archs, StagedSpace

Floats = npt.NDArray[np.float64]
NUM_FREE = 3  # constant, log MACs, log params: never penalised
CEILINGS = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12)  # above the best accuracy seen
PENALTIES = np.geomspace(1e-2, 3e2, 15)


def features(space: StagedSpace, archs: Archs) -> Floats:
    """``(n, num_features)``: size, each stage's width and kernels, each block's options."""
    depths, kernels, ratios = space.unpacked(archs)
    columns = [
        np.ones(len(archs)),
        np.log(space.macs(archs) / 1e8),
        np.log(space.params(archs) / 1e6),
    ]
    start = 0
    for stage in space.table.stages:
        blocks = slice(start, start + stage.depths[-1])
        start = blocks.stop
        columns += [
            np.log(ratios[:, blocks].sum(axis=1)),
            np.log((kernels[:, blocks] ** 2 * ratios[:, blocks]).sum(axis=1)),
        ]
    for stage, depth in zip(space.table.stages, depths.T, strict=True):
        columns += [depth >= option for option in stage.depths[1:]]
    for kernel, ratio in zip(kernels.T, ratios.T, strict=True):
        columns += [kernel >= option for option in space.table.kernel_sizes]
        columns += [ratio >= option for option in space.table.expand_ratios[1:]]
    return np.stack(columns, axis=1).astype(np.float64)


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
