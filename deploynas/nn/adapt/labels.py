"""Which channels of a network must go together: labels that follow its values through the graph.

Every element of a value carries the label of its channel. What moves data (views, permutations,
concatenations, splits, slices) moves labels alike, by the very operator; what combines values
element by element makes their labels one; what mixes channels begins new ones. So a layer after a
flattening, a shuffle of channels, or branches behind a concatenation need no rule of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from deploynas.nn.adapt.classes import NOTHING, Classes, Labels
from deploynas.nn.adapt.operators import (
    BINARY,
    MOVING,
    POINTWISE,
    POOLING,
    REDUCING,
    name_of,
    shape_of,
)


@dataclass(frozen=True)
class Use:
    """Which channels the indices of one dimension of a parameter or buffer are.

    Attributes:
        tensor: Its name in the module.
        dim: Its dimension.
        labels: ``(size,)``.
        begins: Whether the layer makes these channels, instead of reading or scaling them.
        reads: Whether it mixes them into others.
    """

    tensor: str
    dim: int
    labels: Labels
    begins: bool = False
    reads: bool = False


@dataclass(frozen=True)
class Product:
    """A convolution or linear layer, as its MACs are counted.

    Attributes:
        tensor: Name of its weight.
        made, read: ``(outputs,)`` and ``(inputs,)`` labels.
        per_pair: MACs of one output and one input.
        groups: That outputs and inputs are divided into.
        entering: Numbers that enter, a channel.
    """

    tensor: str
    made: Labels
    read: Labels
    per_pair: int
    groups: int
    entering: int


class Walk:
    """Labels of all that a graph computes.

    Args:
        program: Of :func:`torch.export.export`.
        tensors: Name of a placeholder -> name of the parameter or buffer in the module.

    Attributes:
        tensors: As given.
        classes: Which labels are one.
        uses: Of every parameter and buffer that has channels.
        products: The layers that MACs are counted of.
        normalised: Labels of channels that are normalised with others, so that without one the
            others change.
        elements: Parameters that values are combined with -> a label an element.
    """

    def __init__(self, program: Any, tensors: Mapping[str, str]) -> None:
        self.classes = Classes()
        self.uses: list[Use] = []
        self.products: list[Product] = []
        self.normalised: list[Labels] = []
        self.tensors = tensors
        self.elements: dict[str, Labels] = {}
        for node in program.graph_module.graph.nodes:
            self._visit(node)

    # -- what a node's value is labelled with: an array of its shape, or a tuple of such

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            node.meta["labels"] = self._placeholder(node)
        elif node.op == "output":
            for value in node.all_input_nodes:
                for labels in _flat(value.meta.get("labels")):
                    self.classes.freeze(labels, "the network's output")
        elif node.op == "get_attr":
            node.meta["labels"] = _constant(node, NOTHING)
        elif node.op == "call_function":
            node.meta["labels"] = self._called(node)

    def _placeholder(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return None
        if node.name in self.tensors:
            return None  # labelled by what it is used for
        labels = self.classes.new(1)
        self.classes.freeze(labels, "the network's input")
        return np.broadcast_to(labels, tuple(value.shape))

    def _called(self, node: fx.Node) -> Any:
        name = name_of(node)
        rule = _RULES.get(name)
        try:
            if rule is not None:
                return rule(self, node)
            if name in POINTWISE:
                return self.of(node.args[0], node)
            if name in BINARY:
                return self._combined(node)
            if name in MOVING:
                return self._moved(node)
            if name in POOLING:
                return self._spread(node)
            if name in REDUCING:
                return self._reduced(node)
        except Unfollowed as why:
            return self._give_up(node, str(why))
        return self._give_up(node, f"{name} is not followed")

    def _give_up(self, node: fx.Node, reason: str) -> Any:
        """Freeze all that a node reads; what it makes stays as it is."""
        for value in node.all_input_nodes:
            own = self.elements.get(self.tensors.get(value.name, ""))
            for labels in _flat(value.meta.get("labels") if own is None else own):
                self.classes.freeze(labels, reason)
        frozen = self.classes.new(1)
        self.classes.freeze(frozen, reason)
        return _like(node, lambda shape: np.broadcast_to(frozen, shape))

    def of(self, value: Any, node: fx.Node) -> Labels:
        """Labels of an argument; a parameter that is combined with values has one an element."""
        if not isinstance(value, fx.Node):
            return np.zeros((), np.int64)
        if value.name in self.tensors:
            return self._elementwise(value)
        labels = value.meta.get("labels")
        if labels is None:
            return np.zeros(shape_of(value), np.int64)
        if isinstance(labels, tuple):
            raise Unfollowed(f"{name_of(node)} of several values is not followed")
        return np.asarray(labels)

    def _elementwise(self, value: fx.Node) -> Labels:
        """A parameter as a value: a label an element along its longer sides."""
        name, shape = self.tensors[value.name], shape_of(value)
        if name not in self.elements:
            count = int(np.prod(shape))
            if count > 1_000_000:
                raise Unfollowed("a large parameter is combined with values")
            self.elements[name] = self.classes.new(count).reshape(shape)
        return self.elements[name]

    # -- rules

    def vector(self, labels: Labels, dim: int, what: str) -> Labels:
        """``(size,)`` labels along a dimension, along all others the same."""
        moved = np.moveaxis(labels, dim, 0).reshape(labels.shape[dim], -1)
        if (moved != moved[:, :1]).any():
            roots = np.vectorize(self.classes.root)(moved)
            if (roots != roots[:, :1]).any():
                raise Unfollowed(f"{what} mixes channels with places")
        vector: Labels = moved[:, 0].copy()
        return vector

    def tensor(self, value: Any) -> str | None:
        """The name of a parameter or buffer; None where there is none.

        Raises:
            Unfollowed: It is computed.
        """
        if value is None:
            return None
        if not isinstance(value, fx.Node) or value.name not in self.tensors:
            raise Unfollowed("a weight that is computed is not followed")
        return self.tensors[value.name]

    def use(self, value: Any, dim: int, labels: Labels, **how: bool) -> None:
        """Note what a dimension of a parameter is used for."""
        if (name := self.tensor(value)) is not None:
            self.uses.append(Use(name, dim, labels, **how))

    def _combined(self, node: fx.Node) -> Labels:
        """Element by element: labels of both are one."""
        found = [self.of(value, node) for value in node.args[:2]]
        shape = shape_of(node)
        wide = [np.broadcast_to(one, shape) for one in found]
        for one, other in (found, found[::-1]):
            if one.shape != shape and (one != NOTHING).any():
                # what has one channel for all of another's, or one place
                self._require_spread(one, np.broadcast_to(other, shape), shape)
        self.classes.unite(*[_essential(one) for one in _trimmed(wide)])
        return np.where(wide[0] == NOTHING, wide[1], wide[0])

    def _require_spread(self, one: Labels, other: Labels, shape: tuple[int, ...]) -> None:
        """A label that stands for several of another's mixes these."""
        padded = one.reshape((1,) * (len(shape) - one.ndim) + one.shape)
        for dim, side in enumerate(shape):
            if padded.shape[dim] == 1 and side > 1:
                first = np.take(other, [0], axis=dim)
                if (other != first).any():
                    raise Unfollowed("one channel is combined with many")

    def _moved(self, node: fx.Node) -> Any:
        """Labels moved as the values are; see :data:`MOVING`."""
        tie = _TIES.get(name_of(node))
        args = fx.node.map_arg(node.args, lambda value: _tensor(self.of(value, node)))
        kwargs = dict(node.kwargs)
        moved = _function(node)(*args, **kwargs)
        found = tuple(x.numpy() for x in moved) if not isinstance(moved, Tensor) else moved.numpy()
        if tie is not None:
            tie(self, node, found)
        return found

    def _spread(self, node: fx.Node) -> Any:
        """Channels stay, places change: pooling, resizing, padding of places."""
        labels = self.of(node.args[0], node)
        value = node.meta["val"]
        shapes = [tuple(x.shape) for x in value] if isinstance(value, (tuple, list)) else None
        shape = shapes[0] if shapes else tuple(value.shape)
        if labels.ndim != len(shape) or labels.ndim < 3:
            raise Unfollowed(f"{name_of(node)} of such a shape is not followed")
        if labels.shape[1] != shape[1]:
            raise Unfollowed(f"{name_of(node)} changes the number of channels")
        channels = self.vector(labels, 1, name_of(node))
        wide = np.broadcast_to(channels.reshape(1, -1, *[1] * (len(shape) - 2)), shape)
        return tuple(np.broadcast_to(wide, s) for s in shapes) if shapes else wide

    def _reduced(self, node: fx.Node) -> Labels:
        """Over places only: over channels it mixes them."""
        labels = self.of(node.args[0], node)
        given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        dims = (
            range(labels.ndim) if given is None else [given] if isinstance(given, int) else given
        )
        for dim in dims:
            if (labels != np.take(labels, [0], axis=dim)).any():
                raise Unfollowed(f"{name_of(node)} goes over channels")
        kept = labels
        for dim in dims:
            kept = np.take(kept, [0], axis=dim)
        return kept.reshape(shape_of(node))


class Unfollowed(Exception):
    """Why channels cannot be followed through a node."""


def _convolution(walk: Walk, node: fx.Node) -> Labels:
    """Groups: each output reads its own group's inputs, so that all groups lose alike."""
    x, weight, bias = node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else None
    groups = _groups(node)
    if _is_transposed(node):
        raise Unfollowed("transposed convolutions are not followed")
    read = walk.vector(walk.of(x, node), 1, "a convolution")
    name, shape = walk.tensor(weight), shape_of(weight)
    assert name is not None
    outputs, per_group = shape[0], shape[1]
    made = walk.classes.new(outputs)
    if groups > 1 and per_group == 1:
        walk.classes.unite(made, np.repeat(read, outputs // groups))
    elif groups > 1:
        for labels in (read, made):
            rows = labels.reshape(groups, -1)
            walk.classes.unite(rows[:1], rows)
    depthwise = groups > 1 and per_group == 1
    walk.use(weight, 0, made, begins=not depthwise)
    if not depthwise:
        walk.use(weight, 1, read[:per_group], reads=True)
    walk.use(bias, 0, made)
    places = int(np.prod(shape_of(node)[2:])) * int(np.prod(shape[2:]))
    entering = int(np.prod(shape_of(x)[2:]))
    walk.products.append(Product(name, made, read, places, groups, entering))
    return np.broadcast_to(made.reshape(1, -1, *[1] * (len(shape) - 2)), shape_of(node))


def _linear(walk: Walk, node: fx.Node) -> Labels:
    x, weight, bias = node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else None
    name = walk.tensor(weight)
    assert name is not None
    read = walk.vector(walk.of(x, node), -1, "a linear layer")
    made = walk.classes.new(shape_of(weight)[0])
    walk.use(weight, 0, made, begins=True)
    walk.use(weight, 1, read, reads=True)
    walk.use(bias, 0, made)
    rows = int(np.prod(shape_of(node)[:-1]))
    walk.products.append(Product(name, made, read, rows, 1, rows))
    return np.broadcast_to(made, shape_of(node))


def _batch_norm(walk: Walk, node: fx.Node) -> Labels:
    labels = walk.of(node.args[0], node)
    channels = walk.vector(labels, 1, "a batch norm")
    for value in node.args[1:5]:
        walk.use(value, 0, channels)
    return labels


def _layer_norm(walk: Walk, node: fx.Node) -> Labels:
    labels = walk.of(node.args[0], node)
    normalised: Any = node.args[1]
    if len(normalised) != 1:
        raise Unfollowed("a layer norm over places is not followed")
    channels = walk.vector(labels, -1, "a layer norm")
    for value in node.args[2:4]:
        walk.use(value, 0, channels)
    walk.normalised.append(channels)
    return labels


def _group_norm(walk: Walk, node: fx.Node) -> Labels:
    labels = walk.of(node.args[0], node)
    groups: Any = node.args[1]
    channels = walk.vector(labels, 1, "a group norm")
    rows = channels.reshape(groups, -1)
    walk.classes.unite(rows[:1], rows)
    for value in node.args[2:4]:
        walk.use(value, 0, channels)
    walk.normalised.append(channels)
    return labels


def _prelu(walk: Walk, node: fx.Node) -> Labels:
    labels = walk.of(node.args[0], node)
    if shape_of(node.args[1]) != (1,):
        walk.use(node.args[1], 0, walk.vector(labels, 1, "a PReLU"))
    return labels


def _softmax(walk: Walk, node: fx.Node) -> Labels:
    labels = walk.of(node.args[0], node)
    dim: Any = node.args[1]
    if (labels != np.take(labels, [0], axis=dim)).any():
        raise Unfollowed("a softmax goes over channels")
    return labels


def _getitem(walk: Walk, node: fx.Node) -> Any:
    value, index = node.args
    labels = value.meta.get("labels") if isinstance(value, fx.Node) else None
    if not isinstance(labels, tuple) or not isinstance(index, int):
        raise Unfollowed("an item of such a value is not followed")
    return labels[index]


def _tie_pieces(walk: Walk, node: fx.Node, pieces: Sequence[Labels]) -> None:
    """Pieces of one size stay of one size: what one loses at a place each does."""
    dim = _argument(node, 2, "dim", 0)
    if isinstance(pieces, np.ndarray):
        return
    first = pieces[0]
    if all(
        np.array_equal(np.take(x, [0], axis=dim), np.take(first, [0], axis=dim)) for x in pieces
    ):
        return  # along places
    if any(one.shape != first.shape for one in pieces[:-1]):
        for one in pieces:
            walk.classes.freeze(one, "it is divided into parts of fixed sizes")
        return
    for one in pieces[1:]:
        if one.shape == first.shape:
            walk.classes.unite(_essential(first), _essential(one))
        else:
            walk.classes.freeze(one, "it is divided into unequal parts")


def _tie_view(walk: Walk, node: fx.Node, moved: Labels) -> None:
    """A dimension of channels that is split into ``(groups, channels)``: groups lose alike."""
    value: Any = node.args[0]
    before, after = shape_of(value), moved.shape
    source = walk.of(value, node)
    for dim, side in enumerate(before):
        if (source == np.take(source, [0], axis=dim)).all():
            continue
        ahead, found = int(np.prod(before[:dim])), 1
        for place in range(len(after) - 1):
            groups, channels = after[place], after[place + 1]
            if found == ahead and groups > 1:
                if groups * channels == side:
                    rows = np.moveaxis(moved, place, 0)
                    walk.classes.unite(_essential(rows[:1]), _essential(rows))
                break
            found *= groups


_RULES: dict[str, Callable[[Walk, fx.Node], Any]] = {
    "conv1d": _convolution, "conv2d": _convolution, "convolution": _convolution,
    "linear": _linear, "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm, "layer_norm": _layer_norm,
    "group_norm": _group_norm, "prelu": _prelu, "_prelu_kernel": _prelu, "softmax": _softmax,
    "_softmax": _softmax, "getitem": _getitem,
}  # fmt: skip
_TIES: dict[str, Callable[[Walk, fx.Node, Any], None]] = {
    "split": _tie_pieces, "chunk": _tie_pieces, "split_with_sizes": _tie_pieces,
    "view": _tie_view, "reshape": _tie_view, "_unsafe_view": _tie_view, "unflatten": _tie_view,
}  # fmt: skip


def _function(node: fx.Node) -> Callable[..., Any]:
    target: Any = node.target
    return torch.ops.aten.reshape.default if name_of(node) in ("view", "_unsafe_view") else target


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _groups(node: fx.Node) -> int:
    place = 8 if name_of(node) == "convolution" else 6
    return int(_argument(node, place, "groups", 1))


def _is_transposed(node: fx.Node) -> bool:
    return name_of(node) == "convolution" and bool(_argument(node, 6, "transposed", False))


def _tensor(labels: Labels) -> Tensor:
    return torch.from_numpy(np.array(labels))


def _essential(labels: Labels) -> Labels:
    """Without the repetitions of places, which say nothing new."""
    for dim in range(labels.ndim):
        first = np.take(labels, [0], axis=dim)
        if labels.shape[dim] > 1 and (labels == first).all():
            labels = first
    return labels


def _trimmed(wide: Iterable[Labels]) -> list[Labels]:
    """Both without the sides along which neither changes."""
    arrays = list(wide)
    for dim in range(arrays[0].ndim):
        if all((x == np.take(x, [0], axis=dim)).all() for x in arrays):
            arrays = [np.take(x, [0], axis=dim) for x in arrays]
    return arrays


def _constant(node: fx.Node, label: int) -> Any:
    return _like(node, lambda shape: np.broadcast_to(np.int64(label), shape))


def _like(node: fx.Node, make: Callable[[tuple[int, ...]], Labels]) -> Any:
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return make(tuple(int(side) for side in value.shape))
    if isinstance(value, (tuple, list)):
        return tuple(
            make(tuple(int(side) for side in one.shape)) if isinstance(one, Tensor) else None
            for one in value
        )
    return None


def _flat(labels: Any) -> list[Labels]:
    if labels is None:
        return []
    return [one for one in labels if one is not None] if isinstance(labels, tuple) else [labels]
