"""Labels of channels, and which of them are one: what must be kept or left out together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
NOTHING = 0  # label of what is no channel: a constant that is the same everywhere


class Classes:
    """Labels, and which of them are one."""

    def __init__(self) -> None:
        self._parents: list[int] = [NOTHING]
        self._frozen: dict[int, str] = {}

    def new(self, count: int) -> Labels:
        """``(count,)`` labels that nothing has."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, label: int) -> int:
        """The label that stands for all that are one with it."""
        parents = self._parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label

    def unite(self, first: Labels, second: Labels) -> None:
        """Make labels one, element by element; :data:`NOTHING` is one with none."""
        pairs = np.stack(np.broadcast_arrays(first, second), -1).reshape(-1, 2)
        for a, b in np.unique(pairs, axis=0):
            if a == NOTHING or b == NOTHING:
                continue
            a, b = self.root(int(a)), self.root(int(b))
            if a != b:
                self._parents[b] = a
                if (reason := self._frozen.pop(b, None)) is not None:
                    self._frozen.setdefault(a, reason)

    def freeze(self, labels: Labels, reason: str) -> None:
        """Say why channels stay; the first reason stands."""
        for label in np.unique(labels):
            if label != NOTHING:
                self._frozen.setdefault(self.root(int(label)), reason)

    def reason(self, label: int) -> str | None:
        """Why a channel stays; None where it need not."""
        return self._frozen.get(self.root(label))
