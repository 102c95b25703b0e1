"""Prices of operators, fitted to sums: a first guess by rates, times a smooth correction.

The time of a fragment is the sum of its operators'. What an operator takes is a first guess, by
its kind and its numbers of multiply-adds and bytes, times a correction that is smooth in its
shape: 1 + g, g a Gaussian process (Rasmussen and Williams 2006, chapter 2) that operators of one
kind share the more the more alike they are. Sums of a Gaussian process are one too, so that whole
fragments and whole networks are what it is fitted to; nothing is timed alone. Its own deviation
tells how far from the grid an operator is.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deploynas.graph.operators import BLOCK, CHEAP, Operator

Floats = npt.NDArray[np.float64]
# The process: deviation of corrections, the parts of it that operators of one kind, of one kind
# and variant, and of alike shapes share, and over how many octaves shapes are alike.
DEVIATION = 0.4
OF_KIND, OF_VARIANT, OF_SHAPE, OF_NEAR = 0.1, 0.2, 0.3, 0.4
TOTAL = OF_KIND + OF_VARIANT + OF_SHAPE + OF_NEAR
OCTAVES, NEAR_OCTAVES = 2.5, 0.7
NOISE = 0.02  # what a session's layout of memory adds to a fragment's time
LEAST = 0.2  # of the first guess, whatever the correction
STRANGE = 0.35  # an operator is strange where none measured is correlated with it so much
PASS = 4 * BLOCK  # channels that a convolution makes at once
CACHE_BYTES = 2e6  # what a core keeps to itself: of weights, and of an operator's feature maps
MACS_PER_BYTE = 4.0  # multiply-adds in the time that a byte of weights takes to come
# Milliseconds of each number of :func:`_work` on a core of 50 G multiply-adds a second.
TYPICAL = (2e-3, 1e-8, 1e-7, 1e-5, 1e-4, 3e-8, 3e-8, 5e-8, 3e-8, 3e-8, 5e-8)
SHARED = (0, 7, 9, 10)  # of these: a call, and what no cache holds
RELUCTANCE = 1e-5  # to leave rates that hardly matter
_DENSE = ("conv", "pointwise", "depthwise", "grouped")


# the first guess


def _group(op: Operator) -> str:
    """Operators whose first guess has the same rates."""
    if op.kind in _DENSE:
        return f"{op.kind} {op.variant} {'blocked' if op.blocked else 'plain'}"
    if op.kind == "elementwise":
        name, _, where = op.variant.partition(" ")
        if where == "inside":
            return f"{op.kind} {op.variant}"
        costly = "costly" if name not in _CHEAP else "cheap"
        return f"{op.kind} {costly} {where}"
    return f"{op.kind} {op.variant}" if op.kind in _BY_VARIANT else op.kind


_BY_VARIANT = ("global_pool", "move", "norm", "pool", "reorder")
_CHEAP = frozenset(CHEAP) - {"Sqrt"}  # a root takes longer


class Placed(NamedTuple):
    """An operator in a network.

    Attributes:
        op: The operator.
        cold: Share of its weights that no cache keeps from one run to the next, in tenths.
    """

    op: Operator
    cold: float


def placed(count: Mapping[Operator, int]) -> list[Placed]:
    """The operators of a network, in order."""
    total = sum(num * op.weight_bytes for op, num in count.items())
    cold = round(max(0.0, 1 - CACHE_BYTES / max(total, 1)), 1)
    return [Placed(op, cold if op.weight_bytes else 0.0) for op in count]


def _work(one: Placed) -> tuple[float, ...]:
    """What a first guess is proportional to: a number for each of :data:`TYPICAL`.

    One call; multiply-adds as the device pads channels; how often a number is loaded to be
    multiplied with up to :data:`PASS` channels at once; rows of pixels times blocks of channels,
    each a loop of its own; groups; bytes read, written, that no cache holds meanwhile, of weights,
    of cold weights, of those that nothing is left to be done while they come.
    """
    op, cold = one
    macs, loads, calls, groups = float(op.macs), 0.0, 0.0, 0.0
    if op.kind == "reorder" and op.out_channels % BLOCK:
        loads = op.out_bytes / 4.0
    elif op.kind == "depthwise":
        calls = math.sqrt(op.out_pixels) * math.ceil(op.groups / BLOCK)
        macs *= _padding(op.groups)
    elif op.kind in _DENSE:
        passes, groups = op.groups * math.ceil(op.out_channels / PASS), float(op.groups)
        loads = float(passes * op.in_channels * math.prod(op.kernel) * op.out_pixels)
        calls = math.sqrt(op.out_pixels) * passes * op.kernel[0]
        calls *= math.ceil(op.in_channels / BLOCK)
        if op.blocked:
            macs *= _padding(op.in_channels) * _padding(op.out_channels)
    come = cold * op.weight_bytes
    stalled = max(0.0, come - op.macs / MACS_PER_BYTE)
    spilt = max(0.0, op.in_bytes + op.out_bytes - CACHE_BYTES)
    is_inside = op.variant.endswith(" inside")  # of an operator that reads and writes anyway
    share = 0.1 if is_inside else 1.0
    moved = share * op.in_bytes, share * op.out_bytes, spilt * (not is_inside)
    runs = float(not is_inside)
    return runs, macs, loads, calls, groups, *moved, float(op.weight_bytes), come, stalled


def _padding(channels: int, step: int = BLOCK) -> float:
    return -(-channels // step) * step / channels


@dataclass(frozen=True)
class _Guess:
    """Rates of each group of operators, and of any operator."""

    rates: dict[str, Floats]
    general: Floats

    def __call__(self, parts: Sequence[Placed]) -> Floats:
        """``(n,)`` milliseconds; of groups that were never measured by the general rates."""
        rates = np.array([self.rates.get(_group(one.op), self.general) for one in parts])
        found: Floats = (rates * np.array([_work(one) for one in parts])).sum(axis=1)
        return np.maximum(found, 1e-6)


def _guess(counts: list[Counter[Operator]], times: Floats) -> _Guess:
    """Rates that are not negative, fitted to relative errors.

    Those of a group are drawn to those of any operator, and these to a typical device's, by how
    many times they are these: what hardly matters in any fragment stays as it is.
    """
    names = sorted({_group(op) for count in counts for op in count})
    place = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(counts), len(names), len(TYPICAL)))
    for row, count in zip(table, counts, strict=True):
        for one, num in zip(placed(count), count.values(), strict=True):
            row[place[_group(one.op)]] += num * np.array(_work(one))
    table /= times[:, None, None]
    whole = table.sum(axis=1)
    typical = np.array(TYPICAL) / float(np.median(whole @ np.array(TYPICAL)))
    general = _not_negative(whole, typical, 0.1)
    general = np.maximum(general, 0.1 * typical)
    # what is the device's, whatever runs, is one rate for all
    shared, own = np.array(SHARED), np.setdiff1d(np.arange(len(TYPICAL)), SHARED)
    flat = np.concatenate([whole[:, shared], table[:, :, own].reshape(len(counts), -1)], axis=1)
    prior = np.concatenate([general[shared], np.tile(general[own], len(names))])
    used = np.flatnonzero(flat.any(axis=0))
    found = prior.copy()
    found[used] = _not_negative(flat[:, used], prior[used], RELUCTANCE)
    rates = np.empty((len(names), len(TYPICAL)))
    rates[:, shared] = found[: len(shared)]
    rates[:, own] = found[len(shared) :].reshape(len(names), -1)
    return _Guess(dict(zip(names, rates, strict=True)), general)


def _not_negative(x: Floats, prior: Floats, penalty: float) -> Floats:
    """Weights of columns that add up to 1, none of them negative.

    By block principal pivoting (Portugal, Judice and Vicente 1994): what is held at zero and what
    is free change places, all that are wrong at once, or the last alone where that goes in
    circles.

    Args:
        x: ``(n, m)``.
        prior: ``(m,)`` what weights are drawn to.
        penalty: Of a weight that is twice its prior.
    """
    z = x * prior
    gram, wanted = z.T @ z + penalty * np.eye(len(prior)), z.sum(axis=0) + penalty
    is_free = np.ones(len(prior), bool)
    weights, least, patience = np.ones(len(prior)), len(prior) + 1, 3
    for _ in range(20 * len(prior)):
        weights = np.zeros(len(prior))
        free = np.flatnonzero(is_free)
        weights[free] = np.linalg.solve(gram[np.ix_(free, free)], wanted[free])
        slack = gram @ weights - wanted
        wrong = np.flatnonzero(np.where(is_free, weights < -1e-9, slack < -1e-9))
        if not len(wrong):
            break
        if len(wrong) < least:
            least, patience = len(wrong), 3
        elif patience:
            patience -= 1
        else:
            wrong = wrong[-1:]
        is_free[wrong] = ~is_free[wrong]
    found: Floats = np.maximum(weights, 0) * prior
    return found


# the correction


class _Point(NamedTuple):
    """What a correction depends on: operators of one point have one.

    ``shape`` is in octaves, to the nearest quarter, so that there are fewer.
    """

    kind: str
    variant: str
    shape: tuple[float, ...]


def _point(one: Placed) -> _Point:
    """Where an operator stands among others of its kind."""
    op, cold = one
    high, wide = op.kernel
    narrowed = max(1, op.in_pixels) / max(1, op.out_pixels)
    pads = (_padding(op.in_channels), _padding(op.out_channels), _padding(op.groups))
    shape = (
        math.log2(op.in_channels), math.log2(op.out_channels), math.log2(op.groups),
        math.log2(max(1, op.out_pixels)), 2 * math.log2(narrowed),
        1.5 * math.log2(high * wide), 2 * math.log2(high / wide),
        *(3 * math.log2(pad) if op.blocked or op.kind == "reorder" else 0.0 for pad in pads),
        2 * math.log2(_padding(op.out_channels, PASS)) if op.kind in _DENSE else 0.0,
        2 * cold, math.log2(1 + (op.in_bytes + op.out_bytes) / CACHE_BYTES),
    )  # fmt: skip
    near = tuple(round(4 * number) / 4 for number in shape)
    return _Point(op.kind, f"{op.variant} {op.blocked}", near)


@dataclass(frozen=True)
class _Table:
    """Points as columns, by kind.

    Attributes:
        places: Kind -> ``(n,)`` places in the list they were made of.
        variants: The same keys -> ``(n,)`` checksums of their texts, which compare faster.
        shapes: The same keys -> ``(n, num_numbers)``.
    """

    places: dict[str, npt.NDArray[np.intp]]
    variants: dict[str, npt.NDArray[np.int64]]
    shapes: dict[str, Floats]

    @classmethod
    def of(cls, points: Sequence[_Point]) -> _Table:
        kinds: dict[str, list[int]] = {}
        for i, point in enumerate(points):
            kinds.setdefault(point.kind, []).append(i)
        return cls(
            {kind: np.array(found) for kind, found in kinds.items()},
            {
                kind: np.array([zlib.crc32(points[i].variant.encode()) for i in found])
                for kind, found in kinds.items()
            },
            {kind: np.array([points[i].shape for i in found]) for kind, found in kinds.items()},
        )

    def covariance(self, other: _Table, kind: str) -> Floats:
        """``(n, m)`` of corrections of operators of a kind; of two kinds they have none."""
        a, b = self.shapes[kind], other.shapes[kind]
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        same = self.variants[kind][:, None] == other.variants[kind]
        alike = OF_SHAPE * np.exp(squares * (-0.5 / OCTAVES**2))
        alike += OF_NEAR * np.exp(squares * (-0.5 / NEAR_OCTAVES**2))
        # where variants differ, what shapes tell is half as good
        found: Floats = OF_KIND + same * OF_VARIANT + np.where(same, 1.0, 0.5) * alike
        return DEVIATION**2 * found


@dataclass(frozen=True)
class _Price:
    """Prices of operators, their first guess, and what a deviation is told from.

    Attributes:
        ms, guess: ``(n,)`` milliseconds.
        is_strange: ``(n,)``.
        table: The operators.
        across: Kind -> ``(n, m)`` covariances with what was measured.
    """

    ms: Floats
    guess: Floats
    is_strange: npt.NDArray[np.bool_]
    table: _Table
    across: dict[str, Floats]


class OperatorFit:
    """Fitted to fragments; see the module.

    Args:
        guess: The first guess.
        counts: Operators of each fragment.
        times: ``(n,)`` milliseconds.
        noise: ``(n,)`` relative deviations of them.

    Attributes:
        held_out_deviation: ``(n,)`` of each fragment's time were it not known, relative.
        held_out_error: ``(n,)`` by which the others mistake it, relative to it.
        log_evidence: How likely all are, for the choice of what the process assumes.
    """

    def __init__(
        self, guess: _Guess, counts: list[Counter[Operator]], times: Floats, noise: Floats
    ) -> None:
        self._guess = guess
        found = [placed(count) for count in counts]
        place: dict[_Point, int] = {}
        columns = [[place.setdefault(_point(one), len(place)) for one in row] for row in found]
        shares = np.zeros((len(counts), len(place)))
        for row, parts, own, count in zip(shares, found, columns, counts, strict=True):
            np.add.at(row, own, guess(parts) * np.array(list(count.values())))
        whole = shares.sum(axis=1)
        shares /= whole[:, None]
        self._table, self._shares = _Table.of(list(place)), shares
        known = np.diag(noise**2 + NOISE**2)
        for kind, places in self._table.places.items():
            part = shares[:, places]
            known += part @ self._table.covariance(self._table, kind) @ part.T
        self._inverse = np.linalg.inv(known)
        wanted = times / whole - 1
        solved = self._inverse @ wanted
        self._solved = shares.T @ solved
        self.held_out_deviation: Floats = 1 / np.sqrt(np.diag(self._inverse))
        self.held_out_error: Floats = solved / np.diag(self._inverse) / (times / whole)
        self.log_evidence = float(
            -0.5 * wanted @ solved + 0.5 * np.linalg.slogdet(self._inverse)[1]
        )

    def price(self, parts: Sequence[Placed]) -> _Price:
        """Milliseconds of operators, and what they are told from."""
        table, guess = _Table.of([_point(one) for one in parts]), self._guess(parts)
        correction, nearest = np.zeros(len(parts)), np.zeros(len(parts))
        across = {
            kind: table.covariance(self._table, kind)
            for kind in table.places
            if kind in self._table.places
        }
        for kind, found in across.items():
            correction[table.places[kind]] = found @ self._solved[self._table.places[kind]]
            nearest[table.places[kind]] = found.max(axis=1) / (DEVIATION**2 * TOTAL)
        ms = guess * np.maximum(1 + correction, LEAST)
        return _Price(ms, guess, nearest < STRANGE, table, across)

    def deviation(self, price: _Price, shares: Floats) -> float:
        """Relative deviation of a network's time.

        Args:
            price: Of its operators.
            shares: ``(n,)`` of its time.
        """
        told, left = np.zeros(len(self._shares)), NOISE**2
        for kind, places in price.table.places.items():
            part = shares[places]
            left += float(part @ price.table.covariance(price.table, kind) @ part)
            if kind in price.across:
                theirs = self._shares[:, self._table.places[kind]]
                told += theirs @ (part @ price.across[kind])
        left -= float(told @ self._inverse @ told)
        return math.sqrt(max(left, NOISE**2))


def fit_operators(counts: list[Counter[Operator]], times: Floats, noise: Floats) -> OperatorFit:
    """Fit to fragments.

    Args:
        counts: Operators of each, and how many.
        times: ``(n,)`` milliseconds.
        noise: ``(n,)`` relative deviations of them.
    """
    return OperatorFit(_guess(counts, times), counts, times, noise)


def total_ms(fit: OperatorFit, counts: Sequence[Mapping[Operator, int]]) -> Floats:
    """``(n,)`` milliseconds of networks by their operators; those that they share cost once."""
    found = [placed(count) for count in counts]
    place: dict[Placed, int] = {}
    columns = [[place.setdefault(one, len(place)) for one in row] for row in found]
    ms = fit.price(list(place)).ms
    return np.array(
        [
            ms[own] @ np.array(list(count.values()))
            for own, count in zip(columns, counts, strict=True)
        ]
    )
