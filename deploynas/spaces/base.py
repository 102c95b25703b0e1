"""Search spaces: choices, architectures as integer rows, and the one shape walk.

An architecture is a row of option indices, ``(num_choices,)``; a batch is
``(n, num_choices)``, and everything on a search's hot path works on whole batches.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from deploynas.errors import InvalidInputError
from deploynas.spaces import layers as layer_costs
from deploynas.spaces.layers import Layer, Node
from deploynas.spaces.resolution import MAX_SIDE, MIN_SIDE, Resolution, ResolutionLike
from deploynas.spaces.sums import Sums
from deploynas.spaces.tree import Tree, independent

Archs = npt.NDArray[np.integer]
ArchDict = Mapping[str, object]
ArchRecord = dict[str, int | str | list[int] | list[str]]  # the dict form in a file
SpaceRecord = dict[str, int | str | list[int | str]]  # a space's ``spec`` in a file
RESOLUTION = "resolution"  # the name of the choice of the input's size, in every family
_CHUNK = 16_384  # rows that keep a slot's working set inside the cache


@dataclass(frozen=True, slots=True)
class Choice:
    """A named, ordered set of options, the cheapest first."""

    name: str
    options: tuple[int | str, ...]

    def index(self, value: object, space: str) -> int:
        """An option's index.

        Raises:
            InvalidInputError: ``value`` is none of the options; ``space`` is whose.
        """
        if value not in self.options:
            raise InvalidInputError(
                f"{self.name} of {space} is one of {list(self.options)}, got {value!r}"
            )
        return self.options.index(value)


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in the network that holds at most one layer.

    Attributes:
        columns: The choices that decide which layer stands here.
        layer_ids: Option indices of ``columns`` -> index into ``SearchSpace.layer_table``,
            or -1 where the slot is empty, and hands on what enters; one axis per column.
        inputs: The slots that feed it, -1 being the network's input: a number, or what an option
            of one choice decides, (column, a slot an option). The slot before where None.
        silent: Shaped as ``layer_ids``: whether the slot hands on nothing, and is not among what
            later slots read. Never where None.
    """

    columns: tuple[int, ...]
    layer_ids: npt.NDArray[np.int64]
    inputs: tuple[int | tuple[int, tuple[int, ...]], ...] | None = None
    silent: npt.NDArray[np.bool_] | None = None

    def sources(self, number: int, arch: Archs) -> list[int]:
        """The slots that feed slot ``number``, this one, in an architecture."""
        if self.inputs is None:
            return [number - 1]
        return [
            source if isinstance(source, int) else source[1][int(arch[source[0]])]
            for source in self.inputs
        ]

    def is_silent(self, arch: Archs) -> bool:
        """Whether it hands on nothing in an architecture."""
        return self.silent is not None and bool(self.silent[tuple(arch[list(self.columns)])])


@dataclass(frozen=True, slots=True)
class Graphs:
    """Architectures as graphs.

    Attributes:
        nodes: ``(n, num_nodes, num_kinds)``, one-hot.
        edges: ``(n, num_nodes, num_nodes)``, 1 from the second node to the first.
        sides: ``(n, num_resolutions)``, one-hot.
    """

    nodes: npt.NDArray[np.float64]
    edges: npt.NDArray[np.float64]
    sides: npt.NDArray[np.float64]


class SearchSpace(abc.ABC):
    """A tuple of choices plus what they build.

    Subclasses fill ``name``, ``choices``, ``layer_table`` and ``slots`` from one shape walk;
    costs, latency, profiles and networks all read those. What else a family may say of itself has
    a default that fits every space.

    Attributes:
        name: As the command line knows it.
        choices: What can be chosen, in the order of an architecture's columns.
        layer_table: Every distinct layer that the space can produce.
        slots: Where they stand, in the order of execution.
        num_classes, in_channels, resolutions: What the space was made for; a space of several
            resolutions has a choice that is named :data:`RESOLUTION`: see
            :meth:`resolution_choice`.

    Of a family:
        network: The class that shares weights between its architectures, one running at a time:
            ``package.module:Class``, called with the space. (This package needs no torch.)
        mixture: The class whose candidates run all at once, weighted, for gradient searches; None
            where there is none.
        schedules: Of :data:`deploynas.train.schedules.SCHEDULES` those that train ``network``,
            the usual one first.
        strategy: The search that the family was made for; None where any will do.
        adds_up: Whether costs are sums over the layers of ``layer_table``. Where not, ``slots``
            is empty, and :meth:`totals`, :meth:`params` and the like count networks themselves.
    """

    network: str = "deploynas.nn.paths:PathNetwork"
    mixture: str | None = None
    schedules: tuple[str, ...] = ("single-path",)
    strategy: str | None = None
    adds_up: bool = True

    name: str
    num_classes: int
    in_channels: int
    resolutions: tuple[Resolution, ...]
    choices: tuple[Choice, ...]
    layer_table: tuple[Layer, ...]
    slots: tuple[Slot, ...]

    def _build_tree(self) -> Tree:
        """What the choices leave free: every canonical row, once.

        By default choices are independent but for those that decide a slot together, and every
        row is canonical.
        """
        return independent(self.slots, [len(choice.options) for choice in self.choices])

    @cached_property
    def tree(self) -> Tree:
        """Every canonical row, once."""
        return self._build_tree()

    @property
    def size(self) -> int:
        """Number of distinct architectures."""
        return self.tree.size

    def canonical(self, archs: Archs) -> Archs:
        """Set every choice without effect to option 0, so that equal networks are equal rows.

        Here every choice has an effect.
        """
        return self._checked(archs).copy()

    def encode(self, dicts: Sequence[ArchDict]) -> Archs:
        """Dict form -> ``(n, num_choices)`` option indices.

        Raises:
            InvalidInputError: A key is missing or a value is not an option of its choice.
        """
        resolution = self.resolution_choice()
        for arch in dicts:
            resolution.index(arch.get(RESOLUTION), self.name)
        rows = [[c.index(arch.get(c.name), self.name) for c in self.choices] for arch in dicts]
        return self.canonical(self.as_rows(rows))

    def decode(self, archs: Archs) -> list[dict[str, object]]:
        """Option indices -> dict form, for files and people: here every choice by its name."""
        return [
            {RESOLUTION: resolution.plain}
            | {c.name: c.options[i] for c, i in zip(self.choices, row, strict=True)}
            for resolution, row in zip(
                self.resolution_of(archs), self._checked(archs), strict=True
            )
        ]

    @abc.abstractmethod
    def with_resolutions(self, resolutions: Sequence[ResolutionLike]) -> Self:
        """The same space at other resolutions.

        Raises:
            InvalidInputError: A resolution is none that a network can have.
        """

    def uniform(self) -> Archs:
        """The networks that a person would draw: one kind of block everywhere.

        ``(n, num_choices)``; the smallest and the largest network are among them. Here every
        choice is as far along its options as any other.
        """
        most = int(self.num_options.max())
        shares = np.linspace(0.0, 1.0, most)[:, None]
        rows = self.as_rows(np.rint(shares * (self.num_options - 1)))
        at_all = [self.with_resolution(rows, one) for one in self.resolutions]
        return np.unique(self.canonical(np.concatenate(at_all)), axis=0)

    def require_possible(self) -> None:
        """Check what the space was made for.

        Raises:
            InvalidInputError: No class, no channel, or a resolution with a side of less than
                8 px or more than 4,096.
        """
        sides = [side for one in self.resolutions for side in one.size]
        fit = MIN_SIDE <= min(sides, default=0) and max(sides, default=0) <= MAX_SIDE
        if min(self.num_classes, self.in_channels) < 1 or not fit:
            raise InvalidInputError(
                f"{self.name} needs at least one class, one channel and resolutions of "
                f"{MIN_SIDE} px or more, at most {MAX_SIDE:,}, got {self.num_classes}, "
                f"{self.in_channels} and {list(self.resolutions)}"
            )

    def resolution_choice(self) -> Choice:
        """The choice of the resolution, its options as files write them."""
        return Choice(RESOLUTION, tuple(one.plain for one in self.resolutions))

    @property
    def is_chain(self) -> bool:
        """Whether every layer reads the one before it, and nothing else."""
        return not any(slot.inputs for slot in self.slots)

    @cached_property
    def resolution_column(self) -> int | None:
        """The choice of the resolution; None where there is nothing to choose."""
        names = [choice.name for choice in self.choices]
        return names.index(RESOLUTION) if RESOLUTION in names else None

    def deciding(self, slot: Slot) -> tuple[int, ...]:
        """The columns beside the resolution that decide what stands in a slot."""
        return tuple(
            column
            for column in slot.columns
            if len(self.choices[column].options) > 1 and column != self.resolution_column
        )

    @property
    def has_candidates(self) -> bool:
        """Whether every choice but the resolution is what stands in one slot of a chain."""
        deciding = [self.deciding(slot) for slot in self.slots]
        taken = [column for columns in deciding for column in columns]
        one_each = len(taken) == len(set(taken)) and max(map(len, deciding)) <= 1
        return one_each and self.is_chain

    def resolution_of(self, archs: Archs) -> npt.NDArray[np.object_]:
        """``(n,)`` :class:`Resolution` of the input image."""
        options, indices = np.array(self.resolutions, np.object_), self.resolution_index(archs)
        found: npt.NDArray[np.object_] = options[indices]
        return found

    def resolution_index(self, archs: Archs) -> npt.NDArray[np.integer]:
        """``(n,)`` indices into ``resolutions``."""
        archs, column = self._checked(archs), self.resolution_column
        return np.zeros(len(archs), np.int64) if column is None else archs[:, column]

    def with_resolution(
        self,
        archs: Archs,
        resolution: ResolutionLike | Sequence[ResolutionLike] | npt.NDArray[np.generic],
    ) -> Archs:
        """Architectures, also those of this space at other resolutions, at one that it has.

        Args:
            archs: ``(n, num_choices)``.
            resolution: Of the input image, one or ``(n,)``.

        Raises:
            InvalidInputError: It is none of ``resolutions``.
        """
        choice, wanted = self.resolution_choice(), np.asarray(resolution, np.object_)
        indices = {one: choice.index(one, self.name) for one in set(wanted.flat)}
        rows = np.array(archs)
        if self.resolution_column is not None:
            rows[:, self.resolution_column] = [indices[one] for one in wanted.flat]
        return rows

    @property
    def keeps_resolutions(self) -> bool:
        """Whether its resolutions are meant, whatever size the images have."""
        return any(not one.is_square for one in self.resolutions)

    @property
    def argument(self) -> str:
        """What names it on the command line."""
        return self.name

    @property
    def key(self) -> str:
        """What names it in a profile: what was measured of another table has another name."""
        return self.name

    @property
    def spec(self) -> dict[str, object]:
        """What rebuilds this space: ``deploynas.space(**spec)``."""
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "resolutions": [one.plain for one in self.resolutions],
        }

    @cached_property
    def num_options(self) -> npt.NDArray[np.int64]:
        """``(num_choices,)`` number of options of each choice."""
        return np.array([len(choice.options) for choice in self.choices])

    @cached_property
    def row_type(self) -> np.dtype[np.unsignedinteger]:
        """The smallest unsigned integers that hold every option's index."""
        return np.min_scalar_type(int(self.num_options.max()) - 1)

    def as_rows(self, values: npt.ArrayLike) -> Archs:
        """``(n, num_choices)`` option indices as architectures of this space, uncanonical."""
        rows = np.asarray(values, self.row_type)
        return rows.reshape(-1, len(self.choices))

    def sample(self, n: int, rng: np.random.Generator) -> Archs:
        """``n`` architectures, every choice drawn uniformly.

        Networks with many choices without effect are likelier than others: see
        :meth:`sample_networks`.
        """
        archs = rng.integers(0, self.num_options, size=(n, len(self.choices)), dtype=np.int64)
        return self.canonical(self.as_rows(archs))

    def sample_networks(self, n: int, rng: np.random.Generator) -> Archs:
        """``n`` architectures drawn uniformly from all distinct ones."""
        rows = np.zeros((n, len(self.choices)), np.int64)
        self.tree.draw(rows, rng)
        return self.as_rows(rows)

    def everything(self) -> Archs:
        """``(size, num_choices)`` every architecture: for small spaces."""
        return self.as_rows(self.tree.rows(len(self.choices)))

    def sums(self, values: npt.NDArray[np.generic]) -> Sums:
        """What follows exactly of sums over layers.

        Args:
            values: ``(len(layer_table),)``, or ``(len(layer_table), num_sums)`` of several sums.
        """
        return Sums(self.tree, self.slots, values, len(self.choices))

    def ends(self, values: npt.NDArray[np.generic]) -> Archs:
        """The networks whose layers' ``values`` sum to the least and to the most.

        Args:
            values: ``(len(layer_table),)``.

        Returns:
            ``(2, num_choices)``.
        """
        sums = self.sums(values)
        return self.as_rows([sums.least()[1], sums.most()[1]])

    def sample_spread(self, n: int, rng: np.random.Generator) -> Archs:
        """``n`` architectures spread from small to large.

        Uniform draws crowd around the middle of the range of costs; here each network has its
        own leaning to low or high options.
        """
        leaning = np.exp(np.linspace(-1.5, 1.5, n))[:, None]
        shares = rng.beta(leaning, 1 / leaning, (n, len(self.choices)))
        options = np.minimum(shares * self.num_options, self.num_options - 1)
        return self.canonical(self.as_rows(options))

    def smallest(self) -> Archs:
        """``(1, num_choices)`` the architecture of the first options."""
        return self.as_rows(np.zeros((1, len(self.choices)), np.int64))

    def largest(self) -> Archs:
        """``(1, num_choices)`` the architecture of the last options."""
        return self.as_rows(self.num_options[None] - 1)

    def mutate(self, archs: Archs, probability: float, rng: np.random.Generator) -> Archs:
        """Redraw each choice with ``probability``."""
        redraw = rng.random(archs.shape) < probability
        fresh = rng.integers(0, self.num_options, size=archs.shape, dtype=np.int64)
        return self.canonical(self.as_rows(np.where(redraw, fresh, archs)))

    def crossover(self, first: Archs, second: Archs, rng: np.random.Generator) -> Archs:
        """Uniform crossover: each choice from one parent or the other."""
        return self.canonical(np.where(rng.random(first.shape) < 0.5, first, second))

    def change_one(self, archs: Archs, rng: np.random.Generator) -> Archs:
        """Each architecture with another option in one choice, where there is another."""
        free = np.flatnonzero(self.num_options > 1)
        if not len(free):
            return archs
        columns = free[rng.integers(len(free), size=len(archs))]
        rows = np.arange(len(archs))
        changed = archs.copy()
        num = self.num_options[columns]
        step = 1 + (rng.random(len(archs)) * (num - 1)).astype(np.int64)
        changed[rows, columns] = (archs[rows, columns] + step) % num
        return self.canonical(changed)

    def sample_open(self, n: int, rng: np.random.Generator, num_open: Mapping[str, int]) -> Archs:
        """``n`` architectures while a progressive training has opened a part of the choices.

        Args:
            n: How many.
            rng: Draws them.
            num_open: Kind of choice -> of how many of its largest options. A family without
                such choices, as here, draws from all.
        """
        return self.sample(n, rng)

    def features(self, archs: Archs) -> npt.NDArray[np.float64]:
        """``(n, num_features)`` what predicts an accuracy: 1, log MACs, log params, then the rest.

        Here every option, one-hot.
        """
        options = [
            archs[:, [column]] == np.arange(num)[None]
            for column, num in enumerate(self.num_options)
        ]
        size = [np.ones(len(archs)), np.log1p(self.macs(archs)), np.log1p(self.params(archs))]
        return np.concatenate([np.stack(size, axis=1), *options], axis=1).astype(np.float64)

    def graphs(self, archs: Archs) -> Graphs | None:
        """Architectures as graphs, for a predictor that sees those; None: a family has none."""
        return None

    @property
    def candidates_at_once(self) -> float:
        """Layers that a mixture of all candidates runs, over those that one network runs."""
        own = self.num_options[[c.name != RESOLUTION for c in self.choices]]
        return float(np.mean(own)) if len(own) else 1.0

    def layers(self, arch: Archs) -> list[Node]:
        """The shape walk: an architecture's nodes, in order of execution."""
        arch = np.asarray(arch).reshape(-1)
        ids = self.layer_ids(arch[None])[0]
        nodes: list[Node] = []
        outputs: list[int | None] = []  # the node whose output each slot hands on
        for number, (slot, i) in enumerate(zip(self.slots, ids, strict=True)):
            fed = (-1 if s < 0 else outputs[s] for s in slot.sources(number, arch))
            sources = [s for s in fed if s is not None]
            if i >= 0:
                nodes.append(Node(self.layer_table[i], tuple(sources)))
                outputs.append(len(nodes) - 1)
            else:
                outputs.append(None if slot.is_silent(arch) else sources[0])
        return nodes

    def layer_ids(self, archs: Archs) -> npt.NDArray[np.int64]:
        """``(n, num_slots)`` indices into ``layer_table``; -1 where a slot is empty."""
        archs = self._checked(archs)
        return np.stack([s.layer_ids.ravel()[_flat(s, archs)] for s in self.slots], axis=1)

    def sum_over_layers(self, archs: Archs, values: npt.NDArray[np.generic]) -> np.ndarray:
        """``(n,)`` sum of a per-layer value, ``values`` being ``(len(layer_table),)``."""
        return self._reduce(archs, values, np.add)

    def max_over_layers(self, archs: Archs, values: npt.NDArray[np.generic]) -> np.ndarray:
        """``(n,)`` maximum of a non-negative per-layer value."""
        return self._reduce(archs, values, np.maximum)

    def totals(self, name: str, archs: Archs) -> npt.NDArray[np.int64]:
        """``(n,)`` of a cost that :meth:`layer_values` knows, exact."""
        return self.sum_over_layers(archs, self.layer_values(name))

    def macs(self, archs: Archs) -> npt.NDArray[np.int64]:
        """``(n,)`` multiply-adds of convolutions and linear layers for one image, exact."""
        return self.totals("macs", archs)

    def params(self, archs: Archs) -> npt.NDArray[np.int64]:
        """``(n,)`` trainable parameters, exact."""
        return self.totals("params", archs)

    def weight_bytes(self, archs: Archs) -> npt.NDArray[np.int64]:
        """``(n,)`` bytes of the deployed float32 weights (batch norms folded)."""
        return self.totals("weight_bytes", archs)

    def peak_memory_bytes(self, archs: Archs) -> npt.NDArray[np.int64]:
        """``(n,)`` weight bytes plus peak bytes of live feature maps.

        The schedule assumed stands at :func:`deploynas.spaces.layers.peak_activation_bytes`.
        """
        if not self.is_chain:
            peaks = [layer_costs.peak_memory_bytes(self.layers(arch)) for arch in archs]
            return np.array(peaks, np.int64)
        activations = self.max_over_layers(archs, self.layer_values("peak_activation_bytes"))
        total: npt.NDArray[np.int64] = self.weight_bytes(archs) + activations
        return total

    def layer_values(self, name: str) -> npt.NDArray[np.int64]:
        """``(len(layer_table),)`` ``macs``, ``params`` or another cost of every layer."""
        return self._layer_costs[name]

    @cached_property
    def _layer_costs(self) -> dict[str, npt.NDArray[np.int64]]:
        functions = (
            layer_costs.macs,
            layer_costs.params,
            layer_costs.weight_bytes,
            layer_costs.peak_activation_bytes,
        )
        return {f.__name__: np.array([f(layer) for layer in self.layer_table]) for f in functions}

    def _reduce(
        self, archs: Archs, values: npt.NDArray[np.generic], ufunc: np.ufunc
    ) -> np.ndarray:
        archs = self._checked(archs)
        padded = np.append(values, np.zeros(1, values.dtype))  # index -1: an empty slot
        tables = [padded[slot.layer_ids.ravel()] for slot in self.slots]
        total = np.zeros(len(archs), values.dtype)
        for start in range(0, len(archs), _CHUNK):
            rows = slice(start, start + _CHUNK)
            columns = np.ascontiguousarray(archs[rows].T).astype(np.intp)
            for slot, table in zip(self.slots, tables, strict=True):
                ufunc(total[rows], table[_flat(slot, columns.T)], out=total[rows])
        return total

    def _checked(self, archs: Archs) -> Archs:
        archs = np.asarray(archs)
        if archs.ndim != 2 or archs.shape[1] != len(self.choices):
            raise InvalidInputError(
                f"architectures of {self.name} are rows of {len(self.choices)} option indices, "
                f"got an array of shape {archs.shape}"
            )
        if archs.dtype.kind not in "iu" or (
            len(archs) and ((archs < 0).any() or (archs.max(axis=0) >= self.num_options).any())
        ):
            raise InvalidInputError(
                f"an architecture of {self.name} holds a value that is not an option's index"
            )
        return archs


def _flat(slot: Slot, archs: Archs) -> npt.NDArray[np.intp]:
    """Flat index into ``slot.layer_ids`` of each architecture."""
    flat = np.zeros(len(archs), np.intp)
    for column, num in zip(slot.columns, slot.layer_ids.shape, strict=True):
        flat *= num
        flat += archs[:, column]
    return flat
