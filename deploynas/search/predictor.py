"""Accuracy predictors fitted to what a search has measured so far.

Three kinds are compared on held-out pairs and the best is used: ridge regression on the gap to a
ceiling (:mod:`deploynas.search.accuracy_model`), a small MLP, and gradient-boosted trees. Their
features are masked: a block past its stage's depth has no say.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deploynas.profile.latency_model import kendall_tau
from deploynas.search import accuracy_model
from deploynas.search.accuracy_model import Floats
from deploynas.spaces import Archs, StagedSpace

Model = Callable[[Floats], Floats]
NUM_FOLDS = 5


@dataclass(frozen=True)
class HeldOut:
    """Error on pairs that a predictor was not fitted to: RMSE as a fraction, Kendall's tau."""

    rmse: float
    kendall_tau: float


@dataclass(frozen=True)
class AccuracyPredictor:
    """Predicts the accuracies of architectures of one space.

    Attributes:
        kind: The kind that was best on held-out pairs.
        held_out: Every kind's error there.
    """

    space: StagedSpace
    kind: str
    held_out: dict[str, HeldOut]
    _model: Model

    def predict(self, archs: Archs) -> Floats:
        """``(n,)`` accuracies."""
        return self._model(accuracy_model.features(self.space, archs))


def fit_predictor(space: StagedSpace, archs: Archs, accuracies: Floats) -> AccuracyPredictor:
    """Compare the kinds by cross-validation, and fit the best to all pairs.

    Args:
        space: Of the architectures.
        archs: ``(n, num_choices)``, at least 10 of them.
        accuracies: ``(n,)`` fractions.
    """
    x = accuracy_model.features(space, archs)
    folds = np.random.default_rng(0).permutation(len(x)) % NUM_FOLDS
    held_out = {}
    for kind, fit in KINDS.items():
        predicted = np.empty(len(x), np.float64)
        for fold in range(NUM_FOLDS):
            out = folds == fold
            predicted[out] = fit(x[~out], accuracies[~out])(x[out])
        rmse = float(np.sqrt(np.mean((predicted - accuracies) ** 2)))
        held_out[kind] = HeldOut(rmse, kendall_tau(predicted, accuracies))
    best = min(held_out, key=lambda kind: held_out[kind].rmse)
    return AccuracyPredictor(space, best, held_out, KINDS[best](x, accuracies))


def _ridge(x: Floats, accuracies: Floats) -> Model:
    ceiling, weights = accuracy_model.fit(x, accuracies)
    return lambda new: accuracy_model.predict(ceiling, weights, new)


def _mlp(x: Floats, accuracies: Floats) -> Model:
    from sklearn.neural_network import MLPRegressor

    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    centre, spread = accuracies.mean(), accuracies.std() + 1e-9
    network = MLPRegressor(
        hidden_layer_sizes=(32, 32), alpha=0.1, solver="lbfgs", max_iter=500, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that more steps would fit the noise better
        network.fit((x - mean) / scale, (accuracies - centre) / spread)

    def predict(new: Floats) -> Floats:
        predicted: Floats = network.predict((new - mean) / scale) * spread + centre
        return predicted

    return predict


def _trees(x: Floats, accuracies: Floats) -> Model:
    from sklearn.ensemble import GradientBoostingRegressor

    trees = GradientBoostingRegressor(
        n_estimators=150, learning_rate=0.08, max_depth=3, subsample=0.8, random_state=0
    )
    trees.fit(x, accuracies)
    return lambda new: np.asarray(trees.predict(new), np.float64)


KINDS: dict[str, Callable[[Floats, Floats], Model]] = {
    "ridge": _ridge, "mlp": _mlp, "trees": _trees,
}  # fmt: skip
