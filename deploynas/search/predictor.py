"""Accuracy predictors fitted to what a search has measured so far.

Four kinds can be compared on held-out pairs: ridge regression on the gap to a ceiling
(:mod:`deploynas.search.accuracy_model`), a small MLP, gradient-boosted trees, and a Gaussian
process (:mod:`deploynas.search.process`). Features are masked: a block past its stage's depth has
no say. Of cells there is a fifth, which sees their graphs
(:mod:`deploynas.search.graph_predictor`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numpy as np

from deploynas.profile.latency_model import kendall_tau
from deploynas.search import accuracy_model
from deploynas.search.accuracy_model import Floats
from deploynas.search.process import GaussianProcess, Views
from deploynas.spaces import Archs, SearchSpace

Model = Callable[[np.ndarray], Floats]
Fit = Callable[[np.ndarray, Floats], Model]
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

    space: SearchSpace
    kind: str
    held_out: dict[str, HeldOut]
    _model: Model

    def predict(self, archs: Archs) -> Floats:
        """``(n,)`` accuracies."""
        return self._model(_features(self.space, self.kind, archs))


def fit_predictor(
    space: SearchSpace, archs: Archs, accuracies: Floats, kind: str | None = None
) -> AccuracyPredictor:
    """Compare the kinds by cross-validation, and fit the best to all pairs.

    Args:
        space: Of the architectures.
        archs: ``(n, num_choices)``, at least 10 of them.
        accuracies: ``(n,)`` fractions.
        kind: To fit, where it was chosen before.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # matrices so small wait for threads longer than they compute
        held_out = {} if kind else _compared(space, archs, accuracies)
        best = kind or min(held_out, key=lambda name: held_out[name].rmse)
        model = _kinds(space)[best](_features(space, best, archs), accuracies)
    return AccuracyPredictor(space, best, held_out, model)


def _compared(space: SearchSpace, archs: Archs, accuracies: Floats) -> dict[str, HeldOut]:
    """Every kind's error by cross-validation."""
    folds = np.random.default_rng(0).permutation(len(archs)) % NUM_FOLDS
    held_out = {}
    for name, fit in _kinds(space).items():
        x = _features(space, name, archs)
        predicted = np.empty(len(x), np.float64)
        for fold in range(NUM_FOLDS):
            out = folds == fold
            predicted[out] = fit(x[~out], accuracies[~out])(x[out])
        rmse = float(np.sqrt(np.mean((predicted - accuracies) ** 2)))
        held_out[name] = HeldOut(rmse, kendall_tau(predicted, accuracies))
    return held_out


def _features(space: SearchSpace, kind: str, archs: Archs) -> np.ndarray:
    """What a kind of predictor sees of architectures: ``(n, num_features)``."""
    if kind in ("process", "graph"):
        return archs
    return space.features(archs)


def _ridge(x: Floats, accuracies: Floats) -> Model:
    ceiling, weights = accuracy_model.fit(x, accuracies)
    return lambda new: accuracy_model.predict(ceiling, weights, new)


def _mlp(x: Floats, accuracies: Floats) -> Model:
    from sklearn.neural_network import MLPRegressor

    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    centre, spread = accuracies.mean(), accuracies.std() + 1e-9
    network = MLPRegressor(
        hidden_layer_sizes=(32, 32), alpha=0.1, solver="lbfgs", max_iter=200, random_state=0
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


def _process(space: SearchSpace, archs: Archs, accuracies: Floats) -> Model:
    return GaussianProcess(Views(space), archs, accuracies).predict


KINDS: dict[str, Fit] = {
    "ridge": _ridge, "mlp": _mlp, "trees": _trees,
}  # fmt: skip


def _kinds(space: SearchSpace) -> dict[str, Fit]:
    """Those that a space fits, as far as what they need is installed."""
    kinds: dict[str, Fit] = {**KINDS, "process": partial(_process, space)}
    if space.graphs(space.smallest()) is None or find_spec("torch") is None:
        return kinds
    from deploynas.search import graph_predictor

    return {**kinds, "graph": partial(graph_predictor.fit, space)}
