"""Accuracy predictors fitted to what a search has measured so far.

Four kinds are compared on held-out pairs and the best is used: ridge regression on the gap to a
ceiling (:mod:`deploynas.search.accuracy_model`), a small MLP, gradient-boosted trees, and a
Gaussian process that knows nothing but in how many choices two networks differ. Features are
masked: a block past its stage's depth has no say. Of cells there is a fifth, which sees their
graphs (:mod:`deploynas.search.graph_predictor`).
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
from deploynas.spaces import Archs, SearchSpace

Model = Callable[[Floats], Floats]
NUM_FOLDS = 5
LEAST_FITTED = 10  # pairs, below which nothing is predicted


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


def _features(space: SearchSpace, kind: str, archs: Archs) -> Floats:
    """What a kind of predictor sees of architectures: ``(n, num_features)``."""
    if kind in ("process", "graph"):
        return archs.astype(np.float64)
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


@dataclass(frozen=True)
class GaussianProcess:
    """Covariance falls exponentially with the number of choices that differ.

    Attributes:
        length, noise: The covariance's; noise in shares of its variance.
    """

    length: float
    noise: float
    _x: Floats
    _mean: float
    _spread: float
    _scale: float
    _inverse: Floats
    _weights: Floats

    @classmethod
    def fit(
        cls, x: Floats, accuracies: Floats, kernel: tuple[float, float] | None = None
    ) -> GaussianProcess:
        """To pairs.

        Args:
            x: ``(n, num_choices)``.
            accuracies: ``(n,)``.
            kernel: Length and noise; those of the largest marginal likelihood where None.
        """
        mean, spread = float(accuracies.mean()), float(accuracies.std()) + 1e-9
        y, differ = (accuracies - mean) / spread, _differing(x, x)
        length, noise = kernel or _likeliest_kernel(differ, y)
        covariance = np.exp(-differ / length) + noise * np.eye(len(x))
        inverse = np.linalg.inv(covariance).astype(np.float64, copy=False)
        scale = max(float(y @ inverse @ y) / len(y), 0.0) ** 0.5  # likeliest for this kernel
        return cls(length, noise, x, mean, spread, scale, inverse, inverse @ y)

    def predict(self, new: Floats, deviations: float = 0.0) -> Floats:
        """``(n,)`` expected accuracies, plus so many standard deviations."""
        covariance = np.exp(-_differing(new, self._x) / self.length)
        found: Floats = covariance @ self._weights
        if deviations:
            known = np.einsum("ij,ij->i", covariance @ self._inverse, covariance)
            found = found + deviations * self._scale * np.sqrt(np.maximum(1 - known, 0.0))
        return found * self._spread + self._mean


class Screen:
    """Says which of some children to evaluate.

    By a Gaussian process, which is fitted anew for every network while they are few, later for
    every twentieth part.
    """

    def __init__(self) -> None:
        self._kernel: tuple[float, float] | None = None
        self._chosen_at = self._fitted_to = 0
        self._process: GaussianProcess | None = None

    def best_of(self, children: Archs, archs: Archs, accuracies: Floats) -> int:
        """Index of the most promising."""
        from threadpoolctl import threadpool_limits

        if len(archs) < LEAST_FITTED:
            return 0
        with threadpool_limits(1):  # small matrices wait for threads longer than they compute
            if self._process is None or len(archs) > self._fitted_to * 1.05:
                if len(archs) >= 1.4 * self._chosen_at:
                    self._kernel, self._chosen_at = None, len(archs)
                self._process = GaussianProcess.fit(
                    archs.astype(np.float64), accuracies, self._kernel
                )
                self._kernel = self._process.length, self._process.noise
                self._fitted_to = len(archs)
            return int(self._process.predict(children.astype(np.float64), 1.0).argmax())


LENGTHS, NOISES = (0.5, 0.7, 1.0, 1.5, 2.5, 4.0, 8.0), (1e-4, 1e-2, 0.3)


def _likeliest_kernel(differ: Floats, y: Floats) -> tuple[float, float]:
    """Length and noise of the largest marginal likelihood, each at its own best scale."""
    best: tuple[float, float, float] | None = None
    part = np.random.default_rng(0).permutation(len(y))[:300]  # enough for two numbers
    for length in LENGTHS:
        for noise in NOISES:
            covariance = np.exp(-differ[np.ix_(part, part)] / length) + noise * np.eye(len(part))
            factor = np.linalg.cholesky(covariance)
            whitened = np.linalg.solve(factor, y[part])
            size = max(float(whitened @ whitened), 1e-30)  # 0 where all are equal
            loss = len(part) / 2 * np.log(size) + np.log(np.diag(factor)).sum()
            if best is None or loss < best[0]:
                best = (float(loss), length, noise)
    assert best is not None
    return best[1:]


def _process(x: Floats, accuracies: Floats) -> Model:
    return GaussianProcess.fit(x, accuracies).predict


def _differing(a: Floats, b: Floats) -> Floats:
    """``(len(a), len(b))`` numbers of columns that differ."""
    total = np.zeros((len(a), len(b)), np.float64)
    for one, other in zip(a.T, b.T, strict=True):
        total += one[:, None] != other[None, :]
    return total


KINDS: dict[str, Callable[[Floats, Floats], Model]] = {
    "ridge": _ridge, "mlp": _mlp, "trees": _trees, "process": _process,
}  # fmt: skip


def _kinds(space: SearchSpace) -> dict[str, Callable[[Floats, Floats], Model]]:
    """Those that a space fits, as far as what they need is installed."""
    if space.graphs(space.smallest()) is None or find_spec("torch") is None:
        return KINDS
    from deploynas.search import graph_predictor

    return {**KINDS, "graph": partial(graph_predictor.fit, space)}
