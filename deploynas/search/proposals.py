"""What to evaluate next, by what was evaluated so far."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deploynas.costs import Floats
from deploynas.search.drawing import uniform_samples
from deploynas.search.predictor import fit_predictor
from deploynas.search.problem import Problem
from deploynas.search.process import MORE, Screen
from deploynas.spaces import Archs

POOL, LOOKED_AT = 10_000, 2_000  # drawn once; of those in a round
NUM_BEST, NUM_CHILDREN, CLIMBS = 16, 24, 3
JUDGED = 1_000  # of those the ones whose uncertainty counts too


class Proposals:
    """Proposes the architectures within budget that a predictor finds most promising.

    It looks at uniform draws, then climbs from the best that were evaluated and the best that it
    looked at to what differs from them in one choice, or two.

    Args:
        problem: Space and limits.
        rng: Of every draw.
        kind: ``process`` (a Gaussian process, which also knows how sure it is), another of
            :mod:`deploynas.search.predictor`'s, or ``best``, by cross-validation.
    """

    def __init__(self, problem: Problem, rng: np.random.Generator, kind: str = "process") -> None:
        self._problem, self._rng, self._kind = problem, rng, kind
        self._pool: Archs | None = None  # what was drawn and not evaluated
        self._screen = Screen(problem.space)
        self._chosen: str | None = None
        self._chosen_at = 0

    def next(self, k: int, archs: Archs, accuracies: Floats) -> Archs:
        """Up to ``k`` new architectures, the most promising first.

        Args:
            k: How many.
            archs: ``(n, num_choices)`` what was evaluated, ten or more.
            accuracies: ``(n,)``.
        """
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):  # small matrices wait for threads longer than they compute
            if self._kind == "process":
                process = self._screen.process(archs, accuracies)
                best = self._candidates(process.predict, archs, accuracies)[:JUDGED]
                best = best[process.joint(best).most_promising(k)]
            else:
                best = self._candidates(self._predictor(archs, accuracies), archs, accuracies)[:k]
        return best

    def _predictor(self, archs: Archs, accuracies: Floats) -> Callable[[Archs], Floats]:
        kind = None if self._kind == "best" else self._kind
        if kind is None and len(archs) < MORE * self._chosen_at:
            kind = self._chosen  # comparing the kinds takes longer than fitting one
        predictor = fit_predictor(self._problem.space, archs, accuracies, kind)
        if kind is None:
            self._chosen, self._chosen_at = predictor.kind, len(archs)
        return predictor.predict

    def _candidates(
        self, predict: Callable[[Archs], Floats], archs: Archs, accuracies: Floats
    ) -> Archs:
        """What is worth a look, nothing of it evaluated, in the order of what is predicted."""
        space, rng = self._problem.space, self._rng
        seen = {arch.tobytes() for arch in archs}
        if self._pool is None:
            self._pool = uniform_samples(POOL, self._problem, rng)
        self._pool = _unseen(self._pool, set(seen))
        drawn = rng.choice(len(self._pool), min(len(self._pool), LOOKED_AT), replace=False)
        found = _unseen(self._pool[drawn], seen)
        expected = predict(found)
        parents = archs[np.argsort(-accuracies, kind="stable")[:NUM_BEST]]
        for _ in range(CLIMBS):
            children = space.change_one(np.repeat(parents, NUM_CHILDREN, axis=0), rng)
            twice = rng.random(len(children)) < 0.5
            children[twice] = space.change_one(children[twice], rng)
            children = children[self._problem.admits(children)]
            fresh = _unseen(children, seen)
            found = np.concatenate([found, fresh])
            expected = np.concatenate([expected, predict(fresh)])
            order = np.argsort(-expected, kind="stable")
            parents = found[order[:NUM_BEST]]
        return found[order]


def _unseen(archs: Archs, seen: set[bytes]) -> Archs:
    """Those that are not in ``seen``, each once; ``seen`` grows."""
    kept = []
    for number, arch in enumerate(archs):
        key = arch.tobytes()
        if key not in seen:
            seen.add(key)
            kept.append(number)
    return archs[kept]
