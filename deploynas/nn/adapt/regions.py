"""Regions that can be left out, and kernels that can be smaller.

A region is entered only at a value ``b`` and left only at ``add(a, b)`` of equal shape, as the
branch of a residual block is: without it the sum is ``b``. It is left out by putting another
module in the place of one of the user's own, and that this does it is proved by the graph itself,
run with zeros in the place of ``a``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from deploynas.nn.adapt.answers import equal, first_line, outputs_of, sifted
from deploynas.nn.adapt.operators import name_of, shape_of

KEEPS_ZERO = ("relu", "relu_", "relu6", "relu6_", "dropout", "dropout_", "clone", "contiguous")


class Instead(nn.Module):
    """What stands where a part was left out, called as that was.

    Args:
        function: Of the part's first input; what else it is given is passed over.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, *rest: object, **named: object) -> Tensor:
        """Of the first input."""
        return self.function(x)


def _same(x: Tensor) -> Tensor:
    return x


_REPLACEMENTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": _same, "relu": nn.functional.relu, "relu6": nn.functional.relu6,
    "nothing": torch.zeros_like,
}  # fmt: skip


@dataclass(frozen=True)
class Region:
    """A part of a network that can be left out.

    Attributes:
        name: Of the module that is replaced.
        by: What takes its place: ``identity``, ``relu``, ``relu6``, or ``nothing`` where the sum
            is taken outside of it.
        branch: Name of the graph's value that is added.
        tensors: Names of the parameters that go with it.
    """

    name: str
    by: str
    branch: str
    tensors: frozenset[str]

    def leave_out(self, module: nn.Module) -> None:
        """Replace it in a module."""
        module.set_submodule(self.name, Instead(_REPLACEMENTS[self.by]))


@dataclass(frozen=True)
class Kernel:
    """A convolution whose kernel can be cut to its centre.

    Attributes:
        name: Of the module.
        sizes: Kernel sizes, its own first: 7, 5, 3.
    """

    name: str
    sizes: tuple[int, ...]

    def shrink(self, module: nn.Module, size: int) -> None:
        """Cut it in a module: the centre of its weights, and as much less padding."""
        conv: Any = module.get_submodule(self.name)
        less = (conv.kernel_size[0] - size) // 2
        if less:
            weight = conv.weight.detach()[:, :, less:-less, less:-less].clone()
            conv.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
            conv.kernel_size = (size, size)
            if not isinstance(conv.padding, str):
                conv.padding = tuple(
                    side - less * step
                    for side, step in zip(conv.padding, conv.dilation, strict=True)
                )
            both = getattr(conv, "_reversed_padding_repeated_twice", None)
            if both is not None:
                conv._reversed_padding_repeated_twice = [
                    side for side in reversed(_pair(conv.padding)) for _ in range(2)
                ]


def kernels(module: nn.Module) -> Iterator[Kernel]:
    """Square odd kernels above 3, padded so that places stay where they are."""
    for name, one in module.named_modules():
        if not isinstance(one, nn.Conv2d) or one.dilation != (1, 1):
            continue
        side = one.kernel_size[0]
        padded = one.padding == "same" or one.padding == (side // 2, side // 2)
        if one.kernel_size == (side, side) and side % 2 and side > 3 and padded:
            yield Kernel(name, tuple(range(side, 2, -2)))


def regions(program: Any, module: nn.Module, tensors: Mapping[str, str]) -> Iterator[Region]:
    """Candidates, from an exported program; :func:`proved` tells which of them hold."""
    nodes = [node for node in program.graph_module.graph.nodes if node.op == "call_function"]
    inside: dict[str, set[fx.Node]] = {}
    for node in nodes:
        for path in _modules(node):
            inside.setdefault(path, set()).add(node)
    known = {name for name, _ in module.named_modules()}
    taken: set[str] = set()
    for node in nodes:
        if name_of(node) not in ("add", "add_") or len(node.all_input_nodes) != 2:
            continue
        for a, b in (node.all_input_nodes, node.all_input_nodes[::-1]):
            region = _between(a, b, node, tensors)
            if region is None:
                continue
            own = frozenset(
                tensors[value.name]
                for one in region
                for value in one.all_input_nodes
                if value.name in tensors
            )
            found = _replaced(region, a, node, inside, own)
            if found is not None and found.name in known - taken:
                taken.add(found.name)
                yield found
            break


def proved(
    program: Any, module: nn.Module, example: Tensor, found: Sequence[Region]
) -> tuple[list[Region], list[tuple[Region, str]]]:
    """The regions without which the module answers as the graph does with zeros there; the others.

    These with the reason.
    """
    return sifted(found, lambda some: _fault(program, module, example, some))


def _fault(program: Any, module: nn.Module, example: Tensor, some: Sequence[Region]) -> str | None:
    smaller = copy.deepcopy(module)
    try:
        with torch.no_grad():
            for region in some:
                region.leave_out(smaller)
            graph = Zeroed(program, {region.branch for region in some})
            expected = graph.outputs(module.state_dict(), example)
            if equal(outputs_of(smaller(example)), expected):
                return None
    except Exception as error:  # whatever a forward raises without one of its modules
        return f"the network does not run without it: {first_line(error, 120)}"
    return "without it the network answers otherwise than its graph with zeros there"


class Zeroed(fx.Interpreter):
    """An exported graph, zeros in the place of some values."""

    def __init__(self, program: Any, names: set[str]) -> None:
        super().__init__(program.graph_module)
        self._program, self._names = program, names

    def run_node(self, n: fx.Node) -> Any:
        """See the class."""
        found = super().run_node(n)
        return torch.zeros_like(found) if n.name in self._names else found

    def outputs(self, state: Mapping[str, Tensor], example: Tensor) -> list[Tensor]:
        """What the network of such parameters and buffers answers so."""
        held = {**self._program.state_dict, **self._program.constants, **state}
        args = [
            example if spec.target is None else held[spec.target]
            for spec in self._program.graph_signature.input_specs
        ]
        return outputs_of(self.run(*args))


def _between(
    a: fx.Node, b: fx.Node, add: fx.Node, tensors: Mapping[str, str]
) -> set[fx.Node] | None:
    """The nodes from ``b`` to ``a``; None where they have other entries or exits, or shapes."""
    if shape_of(a) != shape_of(b) or a.op != "call_function" or set(a.users) != {add}:
        return None
    region, waiting = {a}, [a]
    reached = False
    while waiting:
        for value in waiting.pop().all_input_nodes:
            if value is b:
                reached = True
            elif value.op == "placeholder":
                if value.name not in tensors:
                    return None
            elif value not in region:
                region.add(value)
                waiting.append(value)
    if not reached:
        return None
    for one in region - {a}:
        if any(user not in region for user in one.users):
            return None
    return region


def _replaced(
    region: set[fx.Node],
    a: fx.Node,
    add: fx.Node,
    inside: Mapping[str, set[fx.Node]],
    own: frozenset[str],
) -> Region | None:
    """The module that holds a region and its sum, or the region alone."""
    for path in reversed(_modules(add)):
        rest = inside[path] - region - {add}
        if not region <= inside[path] or not path:
            continue
        tail = _tail(add, rest)
        if tail is not None:
            return Region(path, tail, a.name, own)
    candidates = [path for path, nodes in inside.items() if path and nodes == region]
    return Region(max(candidates, key=len), "nothing", a.name, own) if candidates else None


def _tail(add: fx.Node, rest: set[fx.Node]) -> str | None:
    """What is done to the sum before the module returns it, as the name of a replacement."""
    found, node = "identity", add
    while rest:
        following = [user for user in node.users if user in rest]
        if len(following) != 1 or name_of(following[0]) not in KEEPS_ZERO:
            return None
        node = following[0]
        rest = rest - {node}
        name = name_of(node).rstrip("_")
        if name in ("relu", "relu6"):
            if found != "identity":
                return None
            found = name
    return found


def _modules(node: fx.Node) -> list[str]:
    """Paths of the modules in whose forward a node stands, the outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values()]


def _pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
