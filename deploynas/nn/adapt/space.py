"""What was read in a network as a search space: widths, parts left out, kernels.

Its costs are no sums over layers: a layer depends on all groups of channels that it reads and
makes, behind a concatenation on several, so that it is counted from tables of what each option
leaves of a tensor, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from torch import nn

from deploynas.errors import InfeasibleBudgetError, InvalidInputError
from deploynas.nn.adapt.classes import Labels
from deploynas.nn.adapt.reading import Reading
from deploynas.spaces import Archs, Resolution
from deploynas.spaces.base import Choice, SearchSpace
from deploynas.spaces.resolution import ResolutionLike

MAX_WIDTHS = 9  # of a group: more would only be more to look at
STEP = 8  # channels between two widths of a wide group
FLOAT_BYTES = 4

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """What the layers of networks do, a column a layer.

    Attributes:
        macs: ``(n, num_layers)`` multiply-adds.
        weights: The same, numbers of weights.
        moved: Numbers that enter and leave.
        made, read: Channels.
    """

    macs: Floats
    weights: Floats
    moved: Floats
    made: Floats
    read: Floats


class AdaptedSpace(SearchSpace):
    """The networks that can be cut out of a trained one.

    Args:
        reading: What was found.
        order: Group -> its channels, the most important first; narrower networks keep the first
            ones. Their own order where None.
        source: What names the network, for files.
        step: Channels between two widths of a wide group.

    Attributes:
        reading: As given.

    Raises:
        InvalidInputError: Nothing in it can be chosen.
    """

    adds_up = False

    def __init__(
        self,
        reading: Reading,
        order: Sequence[Sequence[int]] | None = None,
        source: str = "",
        step: int = STEP,
    ) -> None:
        self.reading, self.source, self.step = reading, source, step
        self.order = [list(one) for one in order or [range(g.size) for g in reading.groups]]
        shape = reading.example.shape
        self.name = "adapted"
        self.in_channels = int(shape[1])
        self.resolutions = (Resolution(int(shape[2]), int(shape[3])),)
        self.num_classes = reading.num_outputs
        widths = [
            Choice(f"width {g.name}", tuple(few_widths(g.size, step))) for g in reading.groups
        ]
        depths = [Choice(f"depth {r.name}", (0, 1)) for r in reading.regions]
        kernels = [Choice(f"kernel {k.name}", tuple(sorted(k.sizes))) for k in reading.kernels]
        self.choices = (*widths, *depths, *kernels)
        if not self.choices:
            raise InvalidInputError(
                f"nothing in {type(reading.module).__name__} can be chosen",
                f"see why: deploynas adapt {source or 'MODEL'} --explain",
            )
        self.layer_table, self.slots = (), ()
        self._tables = _Tables(self)

    @property
    def spec(self) -> dict[str, object]:
        """What names it; only its network can rebuild it."""
        return {
            "name": self.name, "network": self.source, "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "resolutions": [one.plain for one in self.resolutions],
        }  # fmt: skip

    def with_resolutions(self, resolutions: Sequence[ResolutionLike]) -> Self:
        """Itself: it was read at one."""
        if [Resolution.of(one) for one in resolutions] != list(self.resolutions):
            raise InvalidInputError(f"the network was read at {self.resolutions[0]} px alone")
        return self

    def kept(self, arch: Archs) -> dict[int, list[int]]:
        """Group -> its channels that stay, in order; see :meth:`Reading.cut`."""
        found = {}
        for i, group in enumerate(self.reading.groups):
            width = int(self.choices[i].options[int(arch[i])])
            if width < group.size:
                found[i] = sorted(self.order[i][:width])
        return found

    def module(self, arch: Archs) -> nn.Module:
        """The network of an architecture, of the user's class, with its share of the weights.

        Args:
            arch: ``(num_choices,)``.
        """
        reading, arch = self.reading, np.asarray(arch).reshape(-1)
        module = reading.cut(self.kept(arch))
        columns = self._columns
        for kernel, column in zip(reading.kernels, columns["kernel"], strict=True):
            kernel.shrink(module, int(self.choices[column].options[int(arch[column])]))
        out = [r for r, c in zip(reading.regions, columns["depth"], strict=True) if not arch[c]]
        for region in sorted(out, key=lambda one: -len(one.name)):  # the inner ones first
            region.leave_out(module)
        return module.eval()

    @property
    def _columns(self) -> dict[str, range]:
        """Kind of choice -> its columns."""
        a = len(self.reading.groups)
        b = a + len(self.reading.regions)
        return {"width": range(a), "depth": range(a, b), "kernel": range(b, len(self.choices))}

    def work(self, archs: Archs) -> Work:
        """What every layer does."""
        return self._tables.work(self._checked(archs))

    def layer_work(self, archs: Archs, block: int = 1) -> tuple[Floats, Floats, Floats]:
        """``(n, num_layers)`` multiply-adds, bytes moved, bytes of weights.

        Args:
            archs: ``(n, num_choices)``.
            block: Multiply-adds are those of whole blocks of so many channels.
        """
        work = self.work(archs)
        padded = work.macs * _padding(work.made, block)
        if block > 1:
            apart = np.array([kind.startswith("depthwise") for kind in self.kinds])
            padded *= np.where(apart, 1.0, _padding(work.read, block))
        return padded, FLOAT_BYTES * work.moved, FLOAT_BYTES * work.weights

    @property
    def kinds(self) -> list[str]:
        """Of every layer, in the order of :meth:`work`."""
        return self._tables.kinds

    def macs(self, archs: Archs) -> Ints:
        """``(n,)`` multiply-adds of convolutions and linear layers for one image, exact."""
        found: Ints = np.rint(self.work(archs).macs.sum(axis=1)).astype(np.int64)
        return found

    def params(self, archs: Archs) -> Ints:
        """``(n,)`` trainable parameters, exact."""
        return self._tables.params(self._checked(archs))

    def weight_bytes(self, archs: Archs) -> Ints:
        """``(n,)`` bytes of the float32 weights, those of batch norms among them."""
        return FLOAT_BYTES * self.params(archs)

    def peak_memory_bytes(self, archs: Archs) -> Ints:
        """``(n,)`` weight bytes plus what the layer holds that reads and makes the most."""
        moved = self.work(archs).moved.max(axis=1, initial=0.0)
        total: Ints = self.weight_bytes(archs) + FLOAT_BYTES * np.rint(moved).astype(np.int64)
        return total

    def totals(self, name: str, archs: Archs) -> Ints:
        """See :meth:`SearchSpace.totals`."""
        known: dict[str, Callable[[Archs], Ints]] = {
            "macs": self.macs, "params": self.params, "weight_bytes": self.weight_bytes,
        }  # fmt: skip
        return known[name](archs)

    def narrowed(self, keeps: Callable[[Archs], npt.NDArray[np.bool_]], steps: int = 400) -> Archs:
        """``(1, num_choices)`` the widest network, all groups narrowed alike, that keeps limits.

        What a person would do: nothing is left out, every group has the same share of its width.

        Raises:
            InfeasibleBudgetError: Not even the narrowest does.
        """
        widths = self._columns["width"]
        rows = np.repeat(self.largest(), steps, axis=0)
        shares = np.linspace(1.0, 0.0, steps)
        for column in widths:
            options = np.array(self.choices[column].options, float)
            wanted = shares * options[-1]
            rows[:, column] = np.abs(options[None] - wanted[:, None]).argmin(axis=1)
        kept = np.flatnonzero(keeps(rows))
        if not len(kept):
            raise InfeasibleBudgetError("no network narrowed uniformly keeps the limits")
        return rows[kept[:1]]


def few_widths(size: int, step: int = STEP) -> list[int]:
    """The widths that a group of so many channels is searched at, spread over :func:`widths`."""
    found = widths(size, step)
    places = np.linspace(0, len(found) - 1, min(len(found), MAX_WIDTHS))
    return [found[i] for i in np.rint(places).astype(int)]


def widths(size: int, step: int = STEP) -> list[int]:
    """The widths of a group of so many channels: from a quarter up, in steps of a device's block.

    Of groups below two steps a quarter of their width. Its own is one.
    """
    step = step if size >= 2 * step else max(1, size // 4)
    least = -(-size // 4)
    return [*range(-(-least // step) * step, size, step), size]


class _Count:
    """How many of some channels architectures leave: a constant, and a table a group."""

    def __init__(self, space: AdaptedSpace, places: dict[int, list[int]], size: int) -> None:
        """``places``: group -> ranks of those of its channels that are counted."""
        self._fixed = size - sum(len(ranks) for ranks in places.values())
        self._tables = {
            group: np.array(
                [
                    sum(rank < int(width) for rank in ranks)
                    for width in space.choices[group].options
                ],
                float,
            )
            for group, ranks in places.items()
        }

    def __call__(self, archs: Archs) -> Floats:
        found = np.full(len(archs), float(self._fixed))
        for group, table in self._tables.items():
            found += table[archs[:, group]]
        return found


class _Tables:
    """What each option leaves of every tensor."""

    def __init__(self, space: AdaptedSpace) -> None:
        reading = space.reading
        self._ranks = [{channel: i for i, channel in enumerate(one)} for one in space.order]
        self._depths = [
            (column, region.tensors)
            for column, region in zip(space._columns["depth"], reading.regions, strict=True)
        ]
        self._kernels = {
            f"{kernel.name}.weight": (column, np.array(space.choices[column].options, float))
            for column, kernel in zip(space._columns["kernel"], reading.kernels, strict=True)
        }
        self._shapes = {n: tuple(p.shape) for n, p in reading.module.named_parameters()}
        slots: dict[tuple[str, int], dict[int, list[int]]] = {}
        for g, group in enumerate(reading.groups):
            for slot in group.slots:
                ranks = [
                    self._ranks[g][channel]
                    for channel, places in enumerate(slot.places)
                    for _ in places
                ]
                slots.setdefault((slot.tensor, slot.dim), {})[g] = ranks
        self._dims: dict[str, list[tuple[int, _Count]]] = {}
        for (tensor, dim), places in slots.items():
            if tensor in self._shapes:
                count = _Count(space, places, self._shapes[tensor][dim])
                self._dims.setdefault(tensor, []).append((dim, count))
        self._products = []
        for one in reading.products:
            full = float(np.prod(self._shapes[one.tensor]))
            depthwise = one.groups == len(one.read) and one.groups > 1
            pairs = len(one.made) if depthwise else len(one.made) * len(one.read) // one.groups
            macs = float(pairs * one.per_pair)
            made, read = (self._labelled(space, labels) for labels in (one.made, one.read))
            kernel = float(np.prod(self._shapes[one.tensor][2:]))
            leaving = one.per_pair / kernel
            self._products.append((one.tensor, macs / full, made, leaving, read, one.entering))
        self.kinds = [
            _kind(one.groups, len(one.read), self._shapes[one.tensor]) for one in reading.products
        ]

    def _labelled(self, space: AdaptedSpace, labels: Labels) -> _Count:
        places: dict[int, list[int]] = {}
        for label in labels.tolist():
            if (owner := space.reading.owner.get(label)) is not None:
                group, channel = owner
                places.setdefault(group, []).append(self._ranks[group][channel])
        return _Count(space, places, len(labels))

    def _alive(self, tensor: str, archs: Archs) -> Floats:
        found = np.ones(len(archs))
        for column, tensors in self._depths:
            if tensor in tensors:
                found *= archs[:, column] > 0
        return found

    def _size(self, tensor: str, archs: Archs) -> Floats:
        """``(n,)`` numbers in a tensor."""
        shape = self._shapes[tensor]
        found = np.full(len(archs), float(np.prod(shape))) * self._alive(tensor, archs)
        for dim, count in self._dims.get(tensor, ()):
            found *= count(archs) / shape[dim]
        if tensor in self._kernels:
            at, sides = self._kernels[tensor]
            found *= (sides[archs[:, at]] / sides[-1]) ** 2
        return found

    def params(self, archs: Archs) -> Ints:
        total = sum((self._size(tensor, archs) for tensor in self._shapes), np.zeros(len(archs)))
        return np.rint(total).astype(np.int64)

    def work(self, archs: Archs) -> Work:
        columns: list[tuple[Floats, ...]] = []
        for tensor, per_weight, made, leaving, read, entering in self._products:
            size, left, entered = self._size(tensor, archs), made(archs), read(archs)
            moved = (left * leaving + entered * entering) * self._alive(tensor, archs)
            columns.append((size * per_weight, size, moved, left, entered))
        if not columns:
            return Work(*(np.zeros((len(archs), 0)) for _ in range(5)))
        return Work(*(np.stack(one, axis=1) for one in zip(*columns, strict=True)))


def _padding(channels: Floats, block: int) -> Floats:
    """What whole blocks of channels are over the channels."""
    found: Floats = np.ceil(channels / block) * block / np.maximum(channels, 1)
    return found


def _kind(groups: int, num_read: int, shape: tuple[int, ...]) -> str:
    if len(shape) < 4:
        return "linear"
    if groups > 1:
        return f"depthwise {shape[2]}" if groups == num_read else "grouped"
    return "pointwise" if shape[2:] == (1, 1) else f"conv {shape[2]}"
