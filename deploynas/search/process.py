"""A Gaussian process over architectures: what it expects of one, and how sure it is.

It sees two architectures in three ways, which every space has: in how many choices they differ,
how often each takes an option among the choices that offer the same ones, and their size. How
much each of these says, and at which distance, is learnt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, cholesky, solve_triangular

from deploynas.spaces import Archs, SearchSpace

Floats = npt.NDArray[np.float64]
Seen = tuple[Floats, Floats, Floats]  # by the three views
WEIGHTS = (  # of the three views
    (1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.2, 0.8, 0.0), (0.5, 0.0, 0.5), (0.2, 0.0, 0.8),
    (0.5, 0.25, 0.25), (0.25, 0.5, 0.25), (0.25, 0.25, 0.5), (0.2, 0.4, 0.4),
)  # fmt: skip
NOISES = (1e-4, 1e-3, 1e-2, 0.05, 0.2)
GAPS = (0.01, 0.02, 0.05, 0.12)  # from the best accuracy to the ceiling
FACTORS = (0.25, 0.5, 2.0, 4.0)  # of a length
SWEEPS, NUM_TURNS = 2, 6  # three lengths, then the rest of a kernel
LEAST_FITTED, MORE = 10, 1.3  # pairs; times as many, for which a kernel is looked for again
MOST_FOR_KERNEL = 300  # pairs that a kernel is chosen by


@dataclass(frozen=True)
class Kernel:
    """What a Gaussian process is made by.

    Attributes:
        lengths: Of each view: the squared distance at which the covariance has fallen to 1 / e.
        weights: Of each view, 1 in all.
        noise: Variance of what no view explains, over that of the rest.
        gap: Accuracies saturate below a ceiling, so far above the best one: the process is one of
            the logarithm of what is missing to it.
    """

    lengths: tuple[float, float, float]
    weights: tuple[float, float, float]
    noise: float
    gap: float


class Views:
    """How a space's architectures are seen.

    Args:
        space: Of the architectures.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space, self.num_choices = space, len(space.choices)
        groups: dict[tuple[int | str, ...], list[int]] = {}
        for column, choice in enumerate(space.choices):
            groups.setdefault(choice.options, []).append(column)
        starts = np.cumsum([0, *space.num_options])
        self._groups = [
            np.stack([np.arange(starts[c], starts[c + 1]) for c in columns])
            for columns in groups.values()
        ]
        self._flat_size, self._starts = int(starts[-1]), starts[:-1]

    def __call__(self, archs: Archs) -> Seen:
        """``(n, num_options)`` one-hot, ``(n, num_counts)``, ``(n, 2)`` logarithms."""
        one_hot = np.zeros((len(archs), self._flat_size))
        np.put_along_axis(one_hot, archs + self._starts, 1.0, axis=1)
        counts = np.concatenate([one_hot[:, g].sum(axis=1) for g in self._groups], axis=1)
        sizes = [np.log1p(self._space.macs(archs)), np.log1p(self._space.params(archs))]
        return one_hot, counts, np.stack(sizes, axis=1)


class GaussianProcess:
    """Fitted to pairs of architecture and accuracy; see the module.

    Args:
        views: Of the architectures' space.
        archs: ``(n, num_choices)``.
        accuracies: ``(n,)`` fractions.
        kernel: To take; the likeliest where None.
        start: From which that one is looked for.

    Attributes:
        kernel: As given, or found.
    """

    def __init__(
        self,
        views: Views,
        archs: Archs,
        accuracies: Floats,
        kernel: Kernel | None = None,
        *,
        start: Kernel | None = None,
    ) -> None:
        self._views = views
        one_hot, counts, sizes = views(archs)
        self._centre, self._scale = sizes.mean(axis=0), sizes.std(axis=0) + 1e-9
        self._x = one_hot, counts, (sizes - self._centre) / self._scale
        distances = self._distances(self._x)
        if kernel is None:
            part = np.random.default_rng(0).permutation(len(archs))[:MOST_FOR_KERNEL]
            few = [distance[np.ix_(part, part)] for distance in distances]
            kernel = _likeliest(few, accuracies[part], start or default_kernel(views))
        self.kernel = kernel
        self._ceiling = float(accuracies.max()) + kernel.gap
        values = -np.log(self._ceiling - accuracies)
        self._mean = float(values.mean())
        values -= self._mean
        self._factor = cholesky(_with_noise(distances, kernel), lower=True)
        self._weights: Floats = cho_solve((self._factor, True), values)
        self._deviation = max(float(values @ self._weights) / len(values), 1e-30) ** 0.5

    def predict(self, archs: Archs) -> Floats:
        """``(n,)`` accuracies."""
        cross = _covariance(self._distances(self._seen(archs)), self.kernel)
        expected: Floats = self._ceiling - np.exp(-(cross @ self._weights + self._mean))
        return expected

    def joint(self, archs: Archs) -> Joint:
        """What is known of some architectures, and of all of them together."""
        x = self._seen(archs)
        cross = _covariance(self._distances(x), self.kernel)
        known: Floats = solve_triangular(self._factor, cross.T, lower=True).T
        mean: Floats = cross @ self._weights + self._mean
        return Joint(mean, self._deviation, known, self, x)

    def covariance(self, x: Seen, y: Seen) -> Floats:
        """``(n, m)`` before anything is known, in shares of the variance."""
        return _covariance([_squared(a, b) for a, b in zip(x, y, strict=True)], self.kernel)

    def alike(self, archs: Archs, weights: tuple[float, float, float]) -> Floats:
        """``(n, n)`` covariance before anything is known, the views weighted otherwise."""
        x = self._seen(archs)
        distances = [_squared(view, view) for view in x]
        return _covariance(distances, replace(self.kernel, weights=weights))

    def _seen(self, archs: Archs) -> Seen:
        one_hot, counts, sizes = self._views(archs)
        return one_hot, counts, (sizes - self._centre) / self._scale

    def _distances(self, x: Seen) -> list[Floats]:
        return [_squared(a, b) for a, b in zip(x, self._x, strict=True)]


class Screen:
    """Gaussian processes fitted to ever more pairs.

    A process is fitted anew for every network while they are few, later for every twentieth part;
    its kernel is looked for again when there are a third more.

    Args:
        space: Of the architectures.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._views = Views(space)
        self._process: GaussianProcess | None = None
        self._kernel: Kernel | None = None
        self._chosen_at = self._fitted_to = 0

    def process(self, archs: Archs, accuracies: Floats) -> GaussianProcess:
        """Fitted to these pairs, or to most of them."""
        if self._process is None or len(archs) > self._fitted_to * 1.05:
            kernel = self._kernel if len(archs) < MORE * self._chosen_at else None
            self._process = GaussianProcess(
                self._views, archs, accuracies, kernel, start=self._kernel
            )
            if kernel is None:
                self._kernel, self._chosen_at = self._process.kernel, len(archs)
            self._fitted_to = len(archs)
        return self._process

    def best_of(self, children: Archs, archs: Archs, accuracies: Floats) -> int:
        """Index of the most promising child."""
        from threadpoolctl import threadpool_limits

        if len(archs) < LEAST_FITTED:
            return 0
        with threadpool_limits(1):  # small matrices wait for threads longer than they compute
            return self.process(archs, accuracies).joint(children).most_promising(1)[0]


@dataclass
class Joint:
    """What a Gaussian process knows of some architectures.

    Attributes:
        mean: ``(n,)`` of the process, which grows with the accuracy.
    """

    mean: Floats
    _deviation: float
    _known: Floats
    _process: GaussianProcess
    _x: Seen

    def most_promising(self, k: int, deviations: float = 1.0) -> list[int]:
        """Indices of the ``k`` that promise most, the best first.

        By the mean and so many standard deviations, which shrink with every one that is taken, as
        if it were evaluated (Desautels, Krause and Burdick 2014, "Parallelizing exploration-
        exploitation tradeoffs in Gaussian process bandit optimization", section 4).
        """
        left = np.maximum(1.0 - (self._known**2).sum(axis=1), 0.0)
        known = self._known
        taken: list[int] = []
        for _ in range(min(k, len(self.mean))):
            score = self.mean + deviations * self._deviation * np.sqrt(left)
            score[taken] = -np.inf
            i = int(score.argmax())
            taken.append(i)
            if len(taken) == k:
                break
            own = tuple(view[[i]] for view in self._x)
            cross = self._process.covariance(self._x, own)[:, 0] - known @ known[i]  # type: ignore[arg-type]
            new = cross / np.sqrt(left[i] + self._process.kernel.noise)
            left = np.maximum(left - new**2, 0.0)
            known = np.concatenate([known, new[:, None]], axis=1)
        return taken


def default_kernel(views: Views) -> Kernel:
    """Where the search for a kernel starts."""
    num = views.num_choices
    return Kernel((1.0 * num, 2.0 * num, 4.0), (0.5, 0.25, 0.25), 1e-3, 0.02)


def _squared(a: Floats, b: Floats) -> Floats:
    """``(len(a), len(b))`` squared Euclidean distances."""
    found: Floats = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.maximum(found, 0.0)


def _covariance(distances: list[Floats], kernel: Kernel) -> Floats:
    total = np.zeros_like(distances[0])
    for distance, length, weight in zip(distances, kernel.lengths, kernel.weights, strict=True):
        if weight:
            total += weight * np.exp(-distance / length)
    return total


def _with_noise(distances: list[Floats], kernel: Kernel) -> Floats:
    found = _covariance(distances, kernel)
    found[np.diag_indices(len(found))] += kernel.noise
    return found


def _likeliest(distances: list[Floats], accuracies: Floats, start: Kernel) -> Kernel:
    """The kernel of the largest marginal likelihood, one number after the other.

    Each at its own best variance, the accuracies' saturation counted in (Snelson, Rasmussen and
    Ghahramani 2004, "Warped Gaussian processes", section 3).
    """

    def loss(kernel: Kernel) -> float:
        values = -np.log(accuracies.max() + kernel.gap - accuracies)
        steepness = float(values.sum())
        values = values - values.mean()
        factor = cholesky(_with_noise(distances, kernel), lower=True)
        white = solve_triangular(factor, values, lower=True)
        variance = max(float(white @ white), 1e-30)  # 0 where all are equal
        volume = float(np.log(np.diag(factor)).sum())
        return len(values) / 2 * float(np.log(variance)) + volume - steepness

    best, least = start, loss(start)
    for turn in range(SWEEPS * NUM_TURNS):
        for kernel in _neighbours(best, turn % NUM_TURNS):
            found = loss(kernel)
            if found < least:
                best, least = kernel, found
    return best


def _neighbours(kernel: Kernel, turn: int) -> list[Kernel]:
    """Kernels that differ in one of their numbers."""
    if turn < len(kernel.lengths):
        a, b, c = kernel.lengths
        scales = [[factor if i == turn else 1.0 for i in range(3)] for factor in FACTORS]
        return [replace(kernel, lengths=(a * x, b * y, c * z)) for x, y, z in scales]
    turn -= len(kernel.lengths)
    if turn == 0:
        return [replace(kernel, weights=weights) for weights in WEIGHTS]
    if turn == 1:
        return [replace(kernel, noise=noise) for noise in NOISES]
    return [replace(kernel, gap=gap) for gap in GAPS]
