"""Whatever is a sum over layers, exactly, from what a space's choices leave free.

The least and the most that any network costs, how many networks keep a limit, networks drawn
uniformly from those, and one that keeps several limits.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deploynas.spaces.tree import All, Leaf, One, Tree, columns_of

if TYPE_CHECKING:
    from deploynas.spaces.base import Slot

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
BINS = 1_024  # of what a limit leaves above the cheapest network, where networks are counted
MAX_MEMBERS = 4_000  # of a set of undominated partial networks
ROUNDING = 1e-12  # of a sum of floats


class Sums:
    """Sums over the layers of every network of a tree, one or several at once.

    Args:
        tree: Whose networks.
        slots: Of their space: each slot's undecided columns stand in one leaf.
        values: ``(num_layers, num_sums)`` what a layer adds.
        num_columns: Of an architecture.
    """

    def __init__(
        self,
        tree: Tree,
        slots: Sequence[Slot],
        values: npt.NDArray[np.generic],
        num_columns: int,
    ) -> None:
        table = np.asarray(values, np.float64)
        table = table.reshape(len(table), -1)
        padded = np.concatenate([table, np.zeros((1, table.shape[1]))])  # index -1: no layer
        self._num_columns, self._counted_to = num_columns, math.nan
        self._root = _priced(tree, list(slots), {}, padded)

    def least(self, which: int = 0) -> tuple[float, Ints]:
        """The least of one sum, and ``(num_columns,)`` a network that has it."""
        return self._extreme(which, 1.0)

    def most(self, which: int = 0) -> tuple[float, Ints]:
        """The most of one sum, and ``(num_columns,)`` a network that has it."""
        value, row = self._extreme(which, -1.0)
        return -value, row

    def _extreme(self, which: int, sign: float) -> tuple[float, Ints]:
        row = np.zeros(self._num_columns, np.int64)
        return self._root.least(which, sign, row), row

    def sample(self, n: int, limit: float, rng: np.random.Generator) -> Ints:
        """``(m, num_columns)`` of ``n`` draws from all networks whose first sum is in ``limit``.

        All networks within it are as likely. Sums are counted in :data:`BINS` steps, rounded
        down, so that some draws beyond the limit come out: those are left out, and m is less
        than n.
        """
        left = self._count(limit)
        if left < 0:
            return np.zeros((0, self._num_columns), np.int64)
        counts = self._root.counts
        out = np.zeros((n, self._num_columns), np.int64)
        sums = rng.choice(len(counts), n, p=counts / counts.sum())
        costs = self._root.draw(sums, out, rng)
        return out[costs <= left]

    def log_count(self, limit: float) -> float:
        """Logarithm of how many networks have their first sum in ``limit``, rounded as there."""
        if self._count(limit) < 0:
            return -math.inf
        return self._root.log_scale + math.log(float(self._root.counts.sum()))

    def _count(self, limit: float) -> float:
        """Count the networks up to a limit; returns what it leaves above the cheapest."""
        low, _ = self.least()
        rounding = ROUNDING * max(1.0, abs(limit), abs(low))
        left = limit - low + rounding
        if left >= 0 and limit != self._counted_to:
            self._root.count(max(left, rounding) / BINS)
            self._counted_to = limit
        return left

    def within(self, limits: Sequence[float]) -> Ints | None:
        """``(num_columns,)`` a network that keeps the limits on all sums; None where none does.

        Undominated partial networks are combined part by part; those that cannot be completed
        within the limits go. Beyond :data:`MAX_MEMBERS` the ones nearest to a limit go too, so
        that only then None can be wrong.
        """
        limit = np.asarray(limits, np.float64)
        front = self._root.front(limit, np.zeros(len(limit)))
        if not len(front.costs):
            return None
        row: Ints = front.rows(self._num_columns)[0]
        return row


@dataclass
class _Front:
    """Undominated ways to choose some columns.

    Attributes:
        costs: ``(n, num_sums)``.
        columns: Decided ones.
        options: ``(n, len(columns))``.
    """

    costs: Floats
    columns: tuple[int, ...]
    options: Ints

    def rows(self, num_columns: int) -> Ints:  # noqa: D102
        found = np.zeros((len(self.costs), num_columns), np.int64)
        found[:, self.columns] = self.options
        return found

    def take(self, picked: npt.NDArray[np.intp]) -> _Front:
        return _Front(self.costs[picked], self.columns, self.options[picked])


class _Node(abc.ABC):
    """A tree whose leaves know their costs; everything is relative to its own least sum.

    Attributes:
        counts: ``(bins,)`` how many ways have a first sum of so many steps above the least, as
            shares of the most frequent; ``log_scale`` is the logarithm of that one's number.
    """

    counts: Floats
    log_scale: float

    @abc.abstractmethod
    def least(self, which: int, sign: float, row: Ints) -> float:
        """The least of ``sign`` times a sum; what has it is written into ``row``."""

    @abc.abstractmethod
    def lows(self) -> Floats:
        """``(num_sums,)`` the least of each sum."""

    @abc.abstractmethod
    def count(self, step: float) -> None:
        """Fill :attr:`counts`."""

    @abc.abstractmethod
    def draw(self, sums: Ints, out: Ints, rng: np.random.Generator) -> Floats:
        """Write ways of so many steps into ``out``; returns ``(n,)`` sums above the least."""

    @abc.abstractmethod
    def front(self, limit: Floats, rest: Floats) -> _Front:
        """Undominated ways that keep ``limit`` where all else adds ``rest`` or more."""

    def _scaled(self, counts: Floats, log_scale: float) -> None:
        largest = float(counts.max())
        self.counts, self.log_scale = counts / largest, log_scale + math.log(largest)


@dataclass
class _Leaf(_Node):
    leaf: Leaf
    costs: Floats  # (num_rows, num_sums)
    _steps: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def least(self, which: int, sign: float, row: Ints) -> float:
        costs = sign * self.costs[:, which]
        best = int(costs.argmin())
        row[list(self.leaf.columns)] = self.leaf.options[best]
        return float(costs[best])

    def lows(self) -> Floats:
        lows: Floats = self.costs.min(axis=0)
        return lows

    def count(self, step: float) -> None:
        above = self.costs[:, 0] - self.costs[:, 0].min()
        self._steps = np.minimum(above / step, BINS + 1).astype(np.int64)
        counts = np.bincount(self._steps, minlength=BINS + 2)[: BINS + 1]
        self._scaled(counts.astype(np.float64), 0.0)

    def draw(self, sums: Ints, out: Ints, rng: np.random.Generator) -> Floats:
        order = np.argsort(self._steps, kind="stable")
        first = np.searchsorted(self._steps[order], sums, side="left")
        last = np.searchsorted(self._steps[order], sums, side="right")
        picked = order[first + (rng.random(len(sums)) * (last - first)).astype(np.int64)]
        out[:, self.leaf.columns] = self.leaf.options[picked]
        above: Floats = self.costs[picked, 0] - self.costs[:, 0].min()
        return above

    def front(self, limit: Floats, rest: Floats) -> _Front:
        whole = _Front(self.costs, self.leaf.columns, self.leaf.options)
        return _reduced(whole, limit, rest)


@dataclass
class _All(_Node):
    fixed: Leaf
    constant: Floats
    parts: list[_Node]
    _after: list[Floats] = field(default_factory=list)

    def least(self, which: int, sign: float, row: Ints) -> float:
        row[list(self.fixed.columns)] = self.fixed.options[0]
        total = sign * float(self.constant[which])
        return total + sum(part.least(which, sign, row) for part in self.parts)

    def lows(self) -> Floats:
        lows: Floats = self.constant + sum(part.lows() for part in self.parts)
        return lows

    def count(self, step: float) -> None:
        self._after = [_nothing()]
        log_scale = 0.0
        for part in reversed(self.parts):
            part.count(step)
            both = np.convolve(part.counts, self._after[0])[: BINS + 1]
            log_scale += part.log_scale + math.log(float(both.max()))
            self._after.insert(0, both / both.max())
        self.counts, self.log_scale = self._after[0], log_scale

    def draw(self, sums: Ints, out: Ints, rng: np.random.Generator) -> Floats:
        out[:, self.fixed.columns] = self.fixed.options[0]
        left, above = sums.copy(), np.zeros(len(sums))
        for part, after in zip(self.parts, self._after[1:], strict=True):
            own = np.zeros(len(sums), np.int64)
            draws = rng.random(len(sums))
            for value in np.unique(left):
                rows = left == value
                total = np.cumsum(part.counts[: value + 1] * after[value::-1])
                own[rows] = np.searchsorted(total, draws[rows] * total[-1], side="right")
            above += part.draw(own, out, rng)
            left = left - own
        return above

    def front(self, limit: Floats, rest: Floats) -> _Front:
        found = _Front(self.constant[None], self.fixed.columns, self.fixed.options)
        lows = [part.lows() for part in self.parts]
        for number, part in enumerate(self.parts):
            others = rest + sum(lows[number + 1 :], np.zeros(len(limit)))
            before = found.costs.min(axis=0) if len(found.costs) else found.costs.sum(axis=0)
            own = part.front(limit, others + before)
            i, j = np.indices((len(found.costs), len(own.costs))).reshape(2, -1)
            found = _Front(
                found.costs[i] + own.costs[j], found.columns + own.columns,
                np.concatenate([found.options[i], own.options[j]], axis=1),
            )  # fmt: skip
            found = _reduced(found, limit, others)
        return found


@dataclass
class _One(_Node):
    branches: list[_Node]
    _shifts: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    _gaps: Floats = field(default_factory=lambda: np.zeros(0))
    _own: Floats = field(default_factory=lambda: np.zeros((0, 0)))

    def least(self, which: int, sign: float, row: Ints) -> float:
        found = []
        for branch in self.branches:
            own = row.copy()
            found.append((branch.least(which, sign, own), own))
        value, own = min(found, key=lambda pair: pair[0])
        row[:] = own
        return value

    def lows(self) -> Floats:
        lows: Floats = np.min([branch.lows() for branch in self.branches], axis=0)
        return lows

    def count(self, step: float) -> None:
        lows = np.array([branch.lows()[0] for branch in self.branches])
        self._gaps = lows - lows.min()
        self._shifts = np.minimum(self._gaps / step, BINS + 1).astype(np.int64)
        scale = -math.inf
        for branch in self.branches:
            branch.count(step)
            scale = max(scale, branch.log_scale)
        self._own = np.zeros((len(self.branches), BINS + 1))
        for own, branch, shift in zip(self._own, self.branches, self._shifts, strict=True):
            if shift <= BINS:
                share = math.exp(branch.log_scale - scale)
                own[shift:] = share * branch.counts[: BINS + 1 - shift]
        self._scaled(self._own.sum(axis=0), scale)

    def draw(self, sums: Ints, out: Ints, rng: np.random.Generator) -> Floats:
        totals = np.cumsum(self._own[:, sums], axis=0)
        taken = (totals <= rng.random(len(sums)) * totals[-1]).sum(axis=0)
        above = np.zeros(len(sums))
        for number, branch in enumerate(self.branches):
            rows = np.flatnonzero(taken == number)
            if len(rows):
                own = out[rows]
                steps = sums[rows] - self._shifts[number]
                above[rows] = branch.draw(steps, own, rng) + self._gaps[number]
                out[rows] = own
        return above

    def front(self, limit: Floats, rest: Floats) -> _Front:
        fronts = [branch.front(limit, rest) for branch in self.branches]
        columns = tuple(sorted(fronts[0].columns))
        options = [f.options[:, np.argsort(f.columns, kind="stable")] for f in fronts]
        costs = np.concatenate([f.costs for f in fronts])
        return _reduced(_Front(costs, columns, np.concatenate(options)), limit, rest)


def _nothing() -> Floats:
    counts = np.zeros(BINS + 1)
    counts[0] = 1.0
    return counts


def _priced(tree: Tree, slots: list[Slot], known: Mapping[int, int], padded: Floats) -> _Node:
    """A tree with the costs of ``slots``, whose columns outside of it are ``known``."""
    if isinstance(tree, Leaf):
        costs = np.zeros((tree.size, padded.shape[1]))
        place = {column: i for i, column in enumerate(tree.columns)}
        for slot in slots:
            if any(c in place for c in slot.columns):
                where = tuple(
                    tree.options[:, place[c]] if c in place else np.full(tree.size, known[c])
                    for c in slot.columns
                )
                costs += padded[slot.layer_ids[where]]
        return _Leaf(tree, costs)
    if isinstance(tree, One):
        return _One([_priced(branch, slots, known, padded) for branch in tree.branches])
    assert isinstance(tree, All)
    settled = {
        column: int(option)
        for part in tree.parts
        if isinstance(part, Leaf) and part.size == 1
        for column, option in zip(part.columns, part.options[0], strict=True)
    }
    known = {**known, **settled}
    constant = np.zeros(padded.shape[1])
    open_slots = []
    for slot in slots:
        if all(column in known for column in slot.columns):
            index = slot.layer_ids[tuple(known[column] for column in slot.columns)]
            constant = constant + padded[index]
        else:
            open_slots.append(slot)
    parts = [part for part in tree.parts if not (isinstance(part, Leaf) and part.size == 1)]
    mine = [_of_part(open_slots, part) for part in parts]
    return _All(
        Leaf.fixed(settled), constant,
        [_priced(part, own, known, padded) for part, own in zip(parts, mine, strict=True)],
    )  # fmt: skip


def _of_part(slots: Sequence[Slot], part: Tree) -> list[Slot]:
    columns = set(columns_of(part))
    return [slot for slot in slots if columns & set(slot.columns)]


def _reduced(front: _Front, limit: Floats, rest: Floats) -> _Front:
    """Without what cannot be completed within the limits, and what others beat in every sum.

    Of more than :data:`MAX_MEMBERS` those stay that are furthest from their tightest limit.
    """
    kept = np.flatnonzero((front.costs + rest <= limit).all(axis=1))
    costs = front.costs[kept]
    excess = (costs + rest - limit) / np.maximum(np.abs(limit), 1e-12)
    order = np.lexsort((*costs.T[::-1], excess.max(axis=1)))
    kept, costs = kept[order], costs[order]
    if costs.shape[1] == 1:
        return front.take(kept[:1])
    if costs.shape[1] == 2:
        order = np.lexsort(costs.T[::-1])
        second = costs[order, 1]  # the first rises: what lowers the second is undominated
        is_lower = second < np.concatenate([[np.inf], np.minimum.accumulate(second)[:-1]])
        return front.take(kept[np.sort(order[is_lower])[:MAX_MEMBERS]])
    found: list[np.intp] = []
    while len(kept) and len(found) < MAX_MEMBERS:
        found.append(kept[0])
        alive = ~(costs >= costs[0]).all(axis=1)
        kept, costs = kept[alive], costs[alive]
    return front.take(np.array(found, np.intp))
