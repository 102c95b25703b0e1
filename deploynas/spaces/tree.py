"""What a space's choices leave free: a tree of "all of these" and "one of those".

Given a resolution the stages of a network are independent, given a stage's depth so are its
blocks, and the nodes of a cell are from the start. A space says so once; what follows for sums
over layers stands in :mod:`deploynas.spaces.sums`.
"""

from __future__ import annotations

import abc
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from deploynas.spaces.base import Slot

Ints = npt.NDArray[np.int64]


class Tree(abc.ABC):
    """Some columns of an architecture, and what they can be together."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Number of ways."""

    @abc.abstractmethod
    def rows(self, num_columns: int) -> Ints:
        """``(size, num_columns)`` every way; 0 in columns of others."""

    @abc.abstractmethod
    def draw(self, out: Ints, rng: np.random.Generator) -> None:
        """Write one way a row into ``out``, all as likely."""


@dataclass(frozen=True, eq=False)
class Leaf(Tree):
    """Columns that take one of some rows.

    Attributes:
        columns: Of an architecture.
        options: ``(num_rows, len(columns))``, different ones.
    """

    columns: tuple[int, ...]
    options: Ints

    @classmethod
    def fixed(cls, values: Mapping[int, int]) -> Leaf:
        """Columns with nothing to choose: column -> option."""
        return cls(tuple(values), np.array([list(values.values())], np.int64))

    @classmethod
    def free(cls, sizes: Mapping[int, int]) -> Leaf:
        """Columns with every combination of options: column -> number of options."""
        grid = np.indices(tuple(sizes.values())).reshape(len(sizes), -1).T
        return cls(tuple(sizes), grid.astype(np.int64))

    @property
    def size(self) -> int:  # noqa: D102
        return len(self.options)

    def rows(self, num_columns: int) -> Ints:  # noqa: D102
        found = np.zeros((self.size, num_columns), np.int64)
        found[:, self.columns] = self.options
        return found

    def draw(self, out: Ints, rng: np.random.Generator) -> None:  # noqa: D102
        out[:, self.columns] = self.options[rng.integers(self.size, size=len(out))]


@dataclass(frozen=True, eq=False)
class All(Tree):
    """Parts that are chosen independently of each other."""

    parts: tuple[Tree, ...]

    @functools.cached_property
    def size(self) -> int:  # noqa: D102
        return math.prod(part.size for part in self.parts)

    def rows(self, num_columns: int) -> Ints:  # noqa: D102
        found = np.zeros((1, num_columns), np.int64)
        for part in self.parts:
            own = part.rows(num_columns)
            found = (found[:, None] + own[None]).reshape(-1, num_columns)
        return found

    def draw(self, out: Ints, rng: np.random.Generator) -> None:  # noqa: D102
        for part in self.parts:
            part.draw(out, rng)


@dataclass(frozen=True, eq=False)
class One(Tree):
    """Branches of which one is taken; every branch decides the same columns."""

    branches: tuple[Tree, ...]

    @functools.cached_property
    def size(self) -> int:  # noqa: D102
        return sum(branch.size for branch in self.branches)

    def rows(self, num_columns: int) -> Ints:  # noqa: D102
        return np.concatenate([branch.rows(num_columns) for branch in self.branches])

    def draw(self, out: Ints, rng: np.random.Generator) -> None:  # noqa: D102
        shares = np.array([float(branch.size) for branch in self.branches])
        taken = rng.choice(len(shares), len(out), p=shares / shares.sum())
        for number, branch in enumerate(self.branches):
            own = out[taken == number]
            branch.draw(own, rng)
            out[taken == number] = own


def independent(slots: Sequence[Slot], sizes: Sequence[int]) -> All:
    """The tree of a space whose every row is canonical: choices that share a slot are one leaf.

    Args:
        slots: Of the space.
        sizes: Options of every choice.
    """
    groups = [{column} for column in range(len(sizes))]
    for slot in slots:
        touched = [group for group in groups if group & set(slot.columns)]
        groups = [group for group in groups if group not in touched] + [set().union(*touched)]
    return All(tuple(Leaf.free({c: sizes[c] for c in sorted(group)}) for group in groups if group))


def columns_of(tree: Tree) -> tuple[int, ...]:
    """The columns that a tree decides."""
    if isinstance(tree, Leaf):
        return tree.columns
    if isinstance(tree, One):
        return columns_of(tree.branches[0])
    assert isinstance(tree, All)
    return tuple(itertools.chain.from_iterable(map(columns_of, tree.parts)))
