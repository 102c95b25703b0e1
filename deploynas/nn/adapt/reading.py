"""A trained network read into groups of channels that can be narrowed.

``torch.export`` tells the graph once; the user's own module is what is changed, so that its class
and its forward stay theirs. A group is accepted only where a permutation of its channels leaves
the outputs as they are, and where without some of them they are those of the whole network that
reads nothing of these; what fails is frozen, with the reason.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deploynas.errors import InvalidInputError
from deploynas.nn.adapt.answers import answered, equal, first_line, outputs_of, sifted
from deploynas.nn.adapt.classes import Labels
from deploynas.nn.adapt.cutting import Group, Slot, take, tensor_of
from deploynas.nn.adapt.labels import Product, Use, Walk
from deploynas.nn.adapt.regions import Kernel, Region, kernels, proved, regions

LEAST = 2  # channels that a group has, at least


@dataclass(frozen=True)
class Frozen:
    """Channels that stay, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """A network as what can be chosen in it.

    Attributes:
        module: As it was given, in eval mode.
        example: Its input.
        groups: That can be narrowed.
        frozen: That cannot.
        products: Its layers, see :class:`~deploynas.nn.adapt.labels.Product`, their labels those
            of :attr:`owner`.
        owner: Label -> (index of its group, channel).
        regions: That can be left out.
        kernels: That can be smaller.
        num_outputs: Of its answer to one image, the first where there are several.
    """

    module: nn.Module
    example: Tensor
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    products: tuple[Product, ...] = ()
    owner: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    num_outputs: int = 0

    def cut(self, kept: Mapping[int, Sequence[int]]) -> nn.Module:
        """A copy of the module with some channels alone.

        Args:
            kept: Index of a group -> its channels that stay, in order; a group that is not named
                keeps all of its own.

        Raises:
            InvalidInputError: There is no such group or channel, one stands twice, or none stays.
        """
        for i, channels in kept.items():
            if not 0 <= i < len(self.groups):
                raise InvalidInputError(f"there are {len(self.groups)} groups, and no {i}")
            size = self.groups[i].size
            known = set(channels) & set(range(size))
            if not known or len(known) != len(channels):
                raise InvalidInputError(
                    f"{self.groups[i].name} has the channels 0 to {size - 1}, of which some stay, "
                    f"each once; got {list(channels)}"
                )
        module = copy.deepcopy(self.module)
        take(module, [(self.groups[i], list(channels)) for i, channels in kept.items()])
        return module

    def without(self, patterns: Sequence[str]) -> Reading:
        """The same, where what some patterns name stays as it is.

        Args:
            patterns: Of module names, with ``*`` and ``?``; what lies in a module goes with it.

        Raises:
            InvalidInputError: A pattern names nothing that could be chosen.
        """
        used: set[str] = set()

        def stays(names: Sequence[str]) -> bool:
            found = {p for p in patterns for name in names if _is_named(name, p)}
            used.update(found)
            return bool(found)

        kept = [i for i, group in enumerate(self.groups) if not stays(group.layers)]
        regions = tuple(one for one in self.regions if not stays([one.name]))
        kernels = tuple(one for one in self.kernels if not stays([one.name]))
        if unused := [p for p in patterns if p not in used]:
            raise InvalidInputError(
                f"--keep {unused[0]} names nothing that could be chosen",
                "see what could: deploynas adapt MODEL --explain",
            )
        numbers = {old: new for new, old in enumerate(kept)}
        gone = [one for i, one in enumerate(self.groups) if i not in numbers]
        return replace(
            self, groups=tuple(self.groups[i] for i in kept), regions=regions, kernels=kernels,
            frozen=(*self.frozen, *(Frozen(one.name, "kept on request") for one in gone)),
            owner={k: (numbers[i], c) for k, (i, c) in self.owner.items() if i in numbers},
        )  # fmt: skip

    def macs(self, kept: Mapping[int, Sequence[int]]) -> int:
        """Multiply-adds of convolutions and linear layers with these channels alone."""
        total = 0
        masks = {i: set(channels) for i, channels in kept.items()}

        def left(labels: Labels) -> int:
            count = 0
            for label in labels.tolist():
                place = self.owner.get(label)
                count += place is None or place[0] not in masks or place[1] in masks[place[0]]
            return count

        for one in self.products:
            made, read = left(one.made), left(one.read)
            if one.groups == len(one.read) and one.groups > 1:  # depthwise
                total += made * one.per_pair
            else:
                total += made * read // one.groups * one.per_pair
        return total


def read(module: nn.Module, example: Tensor) -> Reading:
    """Read a network.

    Args:
        module: Trained; it is put in eval mode and not changed.
        example: ``(1, channels, height, width)``, or whatever its forward takes.

    Raises:
        InvalidInputError: It cannot be exported, answers differently each time, or is of another
            kind than float32 on a processor.
    """
    module = module.eval()
    _require_plain(module)
    shaken = _shaken(module)
    with torch.no_grad():
        expected = answered(shaken, example)
        if not equal(answered(shaken, example), expected):
            raise InvalidInputError("the network answers differently each time, in eval mode too")
    program = _exported(module, example)
    walk = Walk(program, _tensors(program))
    groups, frozen, owner = _groups(walk)
    accepted, refused = _proved(shaken, example, expected, groups)
    numbers = {id(group): i for i, group in enumerate(accepted)}
    places = {
        label: (numbers[id(groups[number])], channel)
        for label, (number, channel) in owner.items()
        if id(groups[number]) in numbers
    }
    labelled = {
        label: places[root]
        for one in walk.products
        for label in {*one.made.tolist(), *one.read.tolist()}
        if (root := walk.classes.root(label)) in places
    }
    left, stuck = proved(program, shaken, example, [*regions(program, module, walk.tensors)])
    kept = [Frozen(region.name, reason) for region, reason in stuck]
    return Reading(
        module, example, tuple(accepted), (*frozen, *refused, *kept), tuple(walk.products),
        labelled, tuple(left), tuple(kernels(module)), int(expected[0].shape[-1]),
    )  # fmt: skip


def _is_named(name: str, pattern: str) -> bool:
    """Whether a pattern names a module, or one that it lies in."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:i]), pattern) for i in range(1, len(parts) + 1))


def _shaken(module: nn.Module) -> nn.Module:
    """A copy in which nothing is the same for all channels, as what was never trained is.

    Of a network whose last norms are zero, or whose statistics are those of no data, any pairing
    of channels would look right.
    """
    generator = torch.Generator().manual_seed(0)
    try:
        shaken = copy.deepcopy(module)
    except Exception as error:  # whatever somebody's module holds
        raise InvalidInputError(
            f"{type(module).__name__} cannot be copied: {first_line(error)}"
        ) from None
    for tensor in shaken.state_dict().values():
        first = tensor.flatten()[:1]
        if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == first).all()):
            drawn = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(tensor * (0.5 + drawn) if bool(first) else 0.2 * (drawn - 0.5))
    return shaken


def _require_plain(module: nn.Module) -> None:
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise InvalidInputError(
                f"{name} of the network is packed", "take the network as it is before quantization"
            )
        if tensor.is_quantized or tensor.dtype in (torch.float16, torch.bfloat16):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InvalidInputError(
                f"{name} of the network is {kind}, and float32 is needed",
                "convert it with .float() in the function that returns it",
            )
        if tensor.device.type != "cpu":
            raise InvalidInputError(f"{name} of the network is on {tensor.device}: give it on cpu")


def _exported(module: nn.Module, example: Tensor) -> Any:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(module, (example,), strict=False)
    except Exception as error:  # whatever a forward raises when it is traced
        raise InvalidInputError(
            f"torch.export cannot read {type(module).__name__}: {first_line(error, 300)}"
        ) from None


def _tensors(program: Any) -> dict[str, str]:
    """Name of a placeholder -> name of the parameter or buffer that it is."""
    return {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.target is not None and hasattr(spec.arg, "name")
    }


def _groups(walk: Walk) -> tuple[list[Group], list[Frozen], dict[int, tuple[int, int]]]:
    """Groups of the channels that layers make, those that stay, and label -> (group, channel)."""
    classes = walk.classes
    uses = [*walk.uses, *_of_elements(walk)]
    # a tensor that is used twice has the same channels both times
    seen: dict[tuple[str, int], Use] = {}
    for use in uses:
        key = (use.tensor, use.dim)
        if key in seen:
            classes.unite(seen[key].labels, use.labels)
        else:
            seen[key] = use
    flags: dict[tuple[str, int], tuple[bool, bool]] = {}
    for use in uses:
        begins, reads = flags.get((use.tensor, use.dim), (False, False))
        flags[(use.tensor, use.dim)] = (begins or use.begins, reads or use.reads)
    roots = {key: [classes.root(int(label)) for label in use.labels] for key, use in seen.items()}
    # layers that share a channel are one group
    owner: dict[int, tuple[str, int]] = {}
    parent: dict[tuple[str, int], tuple[str, int]] = {}

    def top(key: tuple[str, int]) -> tuple[str, int]:
        while parent[key] != key:
            key = parent[key]
        return key

    making = [key for key in seen if flags[key][0]]
    for key in making:
        parent[key] = key
        for root in roots[key]:
            if root in owner:
                first, second = top(owner[root]), top(key)
                if first != second:
                    parent[second] = first
            else:
                owner[root] = key
    members: dict[tuple[str, int], list[int]] = {}
    for root, key in owner.items():
        members.setdefault(top(key), []).append(root)
    normalised = {classes.root(int(label)) for labels in walk.normalised for label in labels}
    groups: list[Group] = []
    frozen: list[Frozen] = []
    places: dict[int, tuple[int, int]] = {}
    for key, own in members.items():
        name = key[0].removesuffix(".weight")
        reasons = [reason for root in own if (reason := classes.reason(root)) is not None]
        if reasons:
            frozen.append(Frozen(name, reasons[0]))
            continue
        if len(own) < LEAST:
            frozen.append(Frozen(name, "its channels cannot be told apart"))
            continue
        channel_of = {root: i for i, root in enumerate(own)}
        slots = []
        for other, found in roots.items():
            at: list[list[int]] = [[] for _ in own]
            for index, root in enumerate(found):
                if root in channel_of:
                    at[channel_of[root]].append(index)
            if any(at):
                begins, reads = flags[other]
                slots.append(Slot(*other, tuple(map(tuple, at)), begins, reads))
        places.update((root, (len(groups), i)) for i, root in enumerate(own))
        groups.append(Group(name, tuple(slots), len(own), bool(normalised & set(own))))
    return groups, frozen, places


def _of_elements(walk: Walk) -> Iterator[Use]:
    """Uses of parameters that values are combined with, element by element.

    One that has channels along two of its dimensions freezes these.
    """
    for name, labels in walk.elements.items():
        roots = np.vectorize(walk.classes.root)(labels)
        varying = [
            dim for dim in range(roots.ndim) if (roots != np.take(roots, [0], axis=dim)).any()
        ]
        if len(varying) == 1:
            (dim,) = varying
            yield Use(name, dim, np.moveaxis(roots, dim, 0).reshape(roots.shape[dim], -1)[:, 0])
        elif varying:
            walk.classes.freeze(labels, f"{name} has channels and places in one")


def _proved(
    module: nn.Module, example: Tensor, expected: list[Tensor], groups: Sequence[Group]
) -> tuple[list[Group], list[Frozen]]:
    """The groups that both tests accept, and why the others stay."""
    accepted, others = sifted(groups, lambda some: _fault(module, example, expected, some))
    refused = [Frozen(group.name, reason) for group, reason in others]
    # what holds for parts may fail for the whole, as where two groups meet
    while accepted and (reason := _fault(module, example, expected, accepted)) is not None:
        refused.append(Frozen(accepted.pop().name, reason))
    return accepted, refused


def _fault(
    module: nn.Module, example: Tensor, expected: list[Tensor], groups: Sequence[Group]
) -> str | None:
    """Why groups cannot be cut; None where both tests pass."""
    rng = np.random.default_rng(0)
    permuted = copy.deepcopy(module)
    order = [(g, [int(i) for i in rng.permutation(g.size)]) for g in groups]
    try:
        with torch.no_grad():
            take(permuted, order)
            if not equal(outputs_of(permuted(example)), expected):
                return "a permutation of its channels changes the outputs"
            chosen = [(g, _some(g, rng)) for g in groups]
            small, blind = copy.deepcopy(module), copy.deepcopy(module)
            take(small, chosen)
            found = outputs_of(small(example))
            if any(g.is_normalised for g in groups):
                finite = all(bool(torch.isfinite(x).all()) for x in found)
                return None if finite else "without some of its channels outputs are no numbers"
            for group, kept in chosen:
                _blind(blind, group, kept)
            if not equal(found, outputs_of(blind(example))):
                return "without some of its channels the others answer otherwise"
    except Exception as error:  # whatever a forward raises on sizes that it does not expect
        return f"its forward has fixed sizes: {first_line(error, 120)}"
    return None


def _some(group: Group, rng: np.random.Generator) -> list[int]:
    """About three quarters of a group's channels, in order."""
    gone = max(1, group.size // 4)
    return sorted(int(i) for i in rng.permutation(group.size)[gone:])


def _blind(module: nn.Module, group: Group, kept: Sequence[int]) -> None:
    """Make all layers that read a group's other channels read nothing of them."""
    gone = set(range(group.size)) - set(kept)
    for slot in group.slots:
        if slot.reads:
            places = [place for channel in gone for place in slot.places[channel]]
            tensor_of(module, slot.tensor).index_fill_(slot.dim, torch.tensor(places), 0.0)
