"""How accurate networks are: what judges them, and what was judged so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from deploynas.costs import Floats
from deploynas.search.evaluations import Evaluations
from deploynas.search.result import AccuracyKind
from deploynas.spaces import Archs

Judge = Callable[[Archs], Floats]


class Evaluator(Protocol):
    """Accuracy of architectures.

    Attributes:
        identity: Of what judges: equal ones give equal accuracies, in this process or another;
            None where evaluations need not be kept.
        kind: Whether :meth:`final` measured it.
        num_finalists: Architectures that :meth:`final` ranks.
    """

    @property
    def identity(self) -> str | None:
        """See the class."""

    @property
    def kind(self) -> AccuracyKind:
        """See the class."""

    @property
    def num_finalists(self) -> int:
        """See the class."""

    def quick(self, archs: Archs) -> Iterable[float]:
        """A fraction each, in order, for the search's inner loop, all by the same measure.

        One that comes before the next is made is kept at once.
        """
        ...

    def promising(self, archs: Archs, scores: Floats) -> list[int]:
        """Indices, the most promising first, by their quick scores and what else is known."""
        ...

    def final(self, archs: Archs) -> Floats:
        """``(n,)`` fractions by which finalists are ranked, and which the result states."""
        ...


def by_score(scores: Floats) -> list[int]:
    """Indices, the highest score first, where nothing else is known."""
    return [int(i) for i in np.argsort(-scores, kind="stable")]


class Judged:
    """What was evaluated so far, each network once."""

    def __init__(
        self,
        evaluator: Evaluator,
        kept: Evaluations,
        expected: int,
        on_progress: Callable[[str, float], None],
    ) -> None:
        self._evaluator, self._kept, self._expected = evaluator, kept, expected
        self._on_progress = on_progress
        self._quick: dict[bytes, float] = {}
        self._final: dict[bytes, float] = {}

    def scores(self, archs: Archs) -> Floats:
        """``(n,)`` quick evaluations."""
        new = []
        for arch in archs:
            if arch.tobytes() not in self._quick:
                known = self._kept.get(arch, "quick")
                if known is None:
                    new.append(arch)
                else:
                    self._quick[arch.tobytes()] = known
        found = self._evaluator.quick(np.stack(new)) if new else ()
        for arch, score in zip(new, found, strict=True):
            self._quick[arch.tobytes()] = float(score)
            self._kept.add(arch, "quick", float(score))
            done = min(1.0, len(self._quick) / self._expected)
            self._on_progress("evaluating networks", done)
        return np.array([self._quick[arch.tobytes()] for arch in archs])

    def accuracy(self, arch: Archs) -> float:
        """By which finalists are ranked, of one network."""
        key = arch.tobytes()
        if key not in self._final:
            found = self._kept.get(arch, "final")
            if found is None:
                found = float(self._evaluator.final(arch[None])[0])
                self._kept.add(arch, "final", found)
            self._final[key] = found
        return self._final[key]

    def final(self, archs: Archs) -> Floats:
        """``(n,)``."""
        return np.array([self.accuracy(arch) for arch in archs])

    def settled(self, archs: Archs, judge: Judge) -> Archs:
        """Networks in the order of another judge, whose accuracies stand from now on."""
        scores = judge(archs)
        self._final.update((a.tobytes(), float(s)) for a, s in zip(archs, scores, strict=True))
        ordered: Archs = archs[by_score(scores)]
        return ordered

    def best(self, archs: Archs, num: int) -> Archs:
        """The most promising few, in the order of their final accuracy."""
        picked = archs[self._evaluator.promising(archs, self.scores(archs))[:num]]
        ordered: Archs = picked[by_score(self.final(picked))]
        return ordered

    def ranked(self, parts: Sequence[Archs]) -> Archs:
        """All of several, the most accurate first; the earlier part where they are equal."""
        if not parts:
            return np.zeros((0, 0), np.uint8)
        both = np.concatenate(parts)
        both = both[np.sort(np.unique(both, axis=0, return_index=True)[1])]
        ordered: Archs = both[by_score(self.final(both))]
        return ordered
