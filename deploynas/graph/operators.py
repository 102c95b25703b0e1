"""Operators of any ONNX file as what is priced: what decides the time of a node, and no names.

A runtime does not run a graph as it is written. What is known of that is here, in one place: batch
norms and constants that fold into convolutions, activations and additions that run inside one,
swishes and GELUs that are spelled out, reshapes that cost nothing, and the blocked layout of
feature maps, into and out of which others must be reordered. The rules are those of ONNX Runtime
1.23 (its ``optimized_model_filepath`` shows them); a runtime that does otherwise is measured to
take other times for the same operators.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from deploynas.graph.costs import STANDARD, Scope, Shape, graph_scope, node_macs, read_graph

BLOCK = 16  # channels that lie beside each other in the blocked layout
ALIGNED = 4  # a convolution's channels are a multiple of it, or it runs in the plain layout
FLOAT_BYTES = 4
IN_CONVOLUTION = ("Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh")
FREE = ("Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
POOLS = ("AveragePool", "MaxPool", "LpPool")
GLOBAL_POOLS = ("GlobalAveragePool", "GlobalMaxPool")
MOVES = ("DepthToSpace", "Expand", "Gather", "Pad", "Slice", "SpaceToDepth", "Tile", "Transpose")
NORMS = (
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LRN",
    "LayerNormalization", "LpNormalization", "RMSNormalization",
)  # fmt: skip
CHEAP = ("Abs", "Add", "Clip", "Div", "LeakyRelu", "Max", "Min", "Mul", "Neg", "PRelu", "Relu",
         "Sqrt", "Sub")  # fmt: skip
COSTLY = ("Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Log", "Mish", "Pow",
          "Reciprocal", "Selu", "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh")  # fmt: skip
SHAPES = ("ConstantOfShape", "Range", "Shape", "Size")


@dataclass(frozen=True, slots=True)
class Operator:
    """What decides how long an operator takes.

    Attributes:
        kind: Of its code: ``conv`` (dense, larger than 1x1), ``pointwise``, ``depthwise``,
            ``grouped``, ``linear``, ``matmul``, ``elementwise``, ``pool``, ``reorder`` and so on.
        variant: What else tells its code apart, for example ``Add`` or ``MaxPool``.
        in_channels, out_channels: In a group; of a matrix product what is summed, and columns.
        groups: Of a convolution; of a matrix product how many there are.
        in_pixels, out_pixels: Height times width; of a matrix product its rows.
        kernel: Height and width of a window, dilation left out.
        blocked: Whether it runs in the blocked layout.
        in_bytes, out_bytes: Of feature maps.
        weight_bytes: Of constants.
        macs: Multiply-adds, biases left out.
    """

    kind: str
    variant: str = ""
    in_channels: int = 1
    out_channels: int = 1
    groups: int = 1
    in_pixels: int = 1
    out_pixels: int = 1
    kernel: tuple[int, int] = (1, 1)
    blocked: bool = False
    in_bytes: int = 0
    out_bytes: int = 0
    weight_bytes: int = 0
    macs: int = 0


@dataclass(frozen=True, slots=True)
class Priced:
    """A node and the operators that run for it; none where it runs inside another or folds."""

    name: str
    kind: str
    operators: tuple[Operator, ...]


def operators(path: Path, input_shapes: Sequence[str] = ()) -> list[Priced]:
    """Every node of a file, in order, with what runs for it.

    Args:
        path: The file.
        input_shapes: Of inputs that are open; see :meth:`ModelFile.shapes`.

    Raises:
        MissingFileError, InvalidInputError: See :func:`deploynas.graph.costs.node_costs`.
    """
    return operators_of(*read_graph(path, input_shapes))


def operators_of_model(model: onnx.ModelProto) -> list[Priced]:
    """As :func:`operators`, of a model that is in memory."""
    return operators_of(*graph_scope(model))


def operators_of(graph: onnx.GraphProto, scope: Scope) -> list[Priced]:
    """As :func:`operators`, of a graph whose shapes are known."""
    walk = _Walk(graph, scope)
    rows = [
        Priced(node.name or f"{node.op_type}_{index}", node.op_type, tuple(walk.step(node)))
        for index, node in enumerate(graph.node)
        if node.op_type != "Constant"
    ]
    reads = sum(scope.bytes.get(one.name, 0) for one in graph.input)
    ends = sum(walk.is_blocked(one.name) for one in graph.output)
    gives = sum(scope.bytes.get(one.name, 0) for one in graph.output)
    last = [Operator("call", in_bytes=reads, out_bytes=gives)]
    if ends:
        last += [
            walk.reorder(one.name, "out") for one in graph.output if walk.is_blocked(one.name)
        ]
    return [*rows, Priced("(call)", "", tuple(last))]


@dataclass
class _Walk:
    """What a walk through a graph remembers.

    Attributes:
        constant: Values that are known before the network runs.
        same: Name of a value -> of the value that a runtime has in its place.
        blocked: Values that lie in the blocked layout; ``plain`` those that have been reordered.
        inside: Convolutions that may still take something into them, by their output.
        summed: Outputs of convolutions, which an addition may run inside.
    """

    graph: onnx.GraphProto
    scope: Scope
    constant: set[str] = field(default_factory=set)
    same: dict[str, str] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)
    plain: set[str] = field(default_factory=set)
    inside: set[str] = field(default_factory=set)
    summed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.constant |= self.scope.weights.keys()
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.uses: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.uses.setdefault(name, []).append(node)
        for one in self.graph.output:
            self.uses.setdefault(one.name, []).append(onnx.NodeProto())

    def step(self, node: onnx.NodeProto) -> list[Operator]:
        """What runs for the next node."""
        kind = node.op_type
        inputs = [name for name in node.input if name]
        fed = [self.name(name) for name in inputs if name not in self.constant]
        if (not fed and inputs) or kind in SHAPES:
            self.constant.update(node.output)
            return []
        if node.domain not in STANDARD or any(_bodies(node)) or not self.shape(node.output[0]):
            return [*self.to_plain(fed), self.unknown(node, fed)]
        if kind in FREE:
            return self.free(node, fed)
        if self.folds(node, fed) or self.is_spelled(node):
            self.rename(node, fed[0])
            return []
        return self.price(node, fed)

    def price(self, node: onnx.NodeProto, fed: list[str]) -> list[Operator]:
        """What runs for a node that does not fold away."""
        kind = node.op_type
        if kind in ("Conv", "ConvTranspose"):
            return self.convolution(node, fed)
        if kind in ("Gemm", "MatMul"):
            return [*self.to_plain(fed), self.product(node, fed)]
        if kind == "Erf" or kind in CHEAP or kind in COSTLY:
            return self.elementwise(node, fed)
        if kind in POOLS or kind in GLOBAL_POOLS or self.is_global_mean(node):
            return self.pool(node, fed)
        if kind == "Concat":
            return self.concat(node, fed)
        if kind == "BatchNormalization":
            lies = self.is_blocked(fed[0])
            self.lay(node, lies)
            if len(self.uses.get(node.output[0], ())) == 1:
                self.inside.add(node.output[0])
            if lies:  # it has become a convolution
                self.summed.add(node.output[0])
            return [self.simple(node, "norm", kind, fed, blocked=lies)]
        if kind in ("Resize", "Upsample"):
            lies = self.is_blocked(fed[0])
            self.lay(node, lies)
            mode = _text(node, "mode", "nearest")
            return [self.simple(node, "resize", mode, fed, blocked=lies)]
        known: dict[str, tuple[str, ...]] = {
            "move": (*MOVES, "Split"), "norm": NORMS, "softmax": ("Softmax", "LogSoftmax"),
        }  # fmt: skip
        for name, kinds in known.items():
            if kind in kinds:
                return [*self.to_plain(fed), self.simple(node, name, kind, fed)]
        if kind.startswith("Reduce"):
            return [*self.to_plain(fed), self.simple(node, "reduce", kind, fed)]
        return [*self.to_plain(fed), self.unknown(node, fed)]

    # what folds away

    def folds(self, node: onnx.NodeProto, fed: list[str]) -> bool:
        """Whether a node becomes part of the convolution before or after it."""
        kind = node.op_type
        if kind in ("BatchNormalization", "Add", "Mul", "Sub", "Div") and len(fed) == 1:
            maker = self.makers.get(node.input[0]) or self.makers.get(node.input[-1])
            is_conv = maker is not None and maker.op_type == "Conv" and fed[0] in self.inside
            scalars = [self.shape(name) for name in node.input if name in self.constant]
            channels = (self.shape(node.output[0]) or (1, 1))[1]
            return is_conv and all(
                kind == "BatchNormalization" or _is_by_channel(shape, channels)
                for shape in scalars
            )
        if kind == "Pad" and _text(node, "mode", "constant") == "constant":
            return [one.op_type for one in self.uses.get(node.output[0], ())] == ["Conv"]
        return False

    def is_spelled(self, node: onnx.NodeProto) -> bool:
        """Whether a node is part of a swish or GELU that another node is priced as."""
        if node.op_type in ("Sigmoid", "HardSigmoid"):
            return self.gated_by(node.output[0], node.input[0])
        users = self.uses.get(node.output[0], [])
        if node.op_type == "Div" and [one.op_type for one in users] == ["Erf"]:
            return True
        if node.op_type == "Mul" and [one.op_type for one in users] == ["Erf"]:
            return True
        maker = self.makers.get(node.input[0])
        if node.op_type == "Add" and maker is not None and maker.op_type == "Erf":
            return True
        if node.op_type == "Mul":  # the half, or the product with x, whichever comes first
            return any(self.is_gelu_tail(name) for name in node.input)
        return False

    def is_gelu_tail(self, name: str, depth: int = 2) -> bool:
        """Whether a value is one plus an error function, or that times something."""
        maker = self.makers.get(name)
        if maker is None or not depth:
            return False
        if maker.op_type == "Add":
            return any(
                self.makers[one].op_type == "Erf" for one in maker.input if one in self.makers
            )
        return maker.op_type == "Mul" and any(
            self.is_gelu_tail(one, depth - 1) for one in maker.input
        )

    def gated_by(self, gate: str, source: str) -> bool:
        """Whether a gate is only multiplied with what it is a gate of."""
        users = self.uses.get(gate, [])
        return len(users) == 1 and users[0].op_type == "Mul" and source in users[0].input

    def free(self, node: onnx.NodeProto, fed: list[str]) -> list[Operator]:
        """A node that only says how a value is to be read."""
        before, after = self.shape(node.input[0]), self.shape(node.output[0])
        if before == after and node.op_type != "Cast":
            self.rename(node, fed[0])
            return []
        return [*self.to_plain(fed), Operator("view", in_bytes=0)]

    # what runs

    def convolution(self, node: onnx.NodeProto, fed: list[str]) -> list[Operator]:
        """A convolution, and what reorders its input."""
        source, weight = self.shape(node.input[0]), self.shape(node.input[1])
        output = self.shape(node.output[0])
        if not source or not weight or not output or len(output) != 4:
            return [*self.to_plain(fed), self.unknown(node, fed)]
        groups, cin, cout = _whole(node, "group", 1), source[1], output[1]
        kernel, transposed = (weight[2], weight[3]), node.op_type == "ConvTranspose"
        kind = "pointwise" if kernel == (1, 1) else "conv"
        if groups > 1:
            kind = "depthwise" if groups == cin == cout else "grouped"
        takes_plain = groups == 1 and cin < BLOCK and not transposed
        variant = "transposed" if transposed else "narrow" if takes_plain else _dilated(node)
        lies = not transposed and self.can_block(kind, groups, cin, cout)
        reorders = []
        if lies and not takes_plain:
            reorders = [self.reorder(name, "in") for name in fed[:1] if self.must_block(name)]
        else:
            reorders = self.to_plain(fed[:1])
        self.lay(node, lies)
        one = Operator(
            kind, variant, cin // groups, cout // groups, groups,
            math.prod(source[2:]), math.prod(output[2:]), kernel, lies,
            self.bytes(node.input[0]), self.bytes(node.output[0]),
            FLOAT_BYTES * math.prod(weight), node_macs(node, self.scope),
        )  # fmt: skip
        if len(self.uses.get(node.output[0], ())) == 1:
            self.inside.add(node.output[0])
        self.summed.add(node.output[0])
        return [*reorders, one]

    def can_block(self, kind: str, groups: int, cin: int, cout: int) -> bool:
        """Whether a convolution runs in the blocked layout."""
        if groups == 1:
            return cin < BLOCK or cin % ALIGNED == 0
        if kind == "depthwise":
            return cin % ALIGNED == 0
        return cin // groups % BLOCK == 0 and cout // groups % BLOCK == 0

    def product(self, node: onnx.NodeProto, fed: list[str]) -> Operator:
        """A linear map by constants, or a product of two feature maps."""
        first, output = self.shape(node.input[0]), self.shape(node.output[0])
        is_linear = len(fed) == 1 or self.name(node.input[1]) in self.constant
        if not first or not output:
            return self.unknown(node, fed)
        transposed = node.op_type == "Gemm" and _whole(node, "transA", 0)
        summed = first[0 if transposed else -1]
        rows = math.prod(output[:-1]) if is_linear else (output[-2:-1] or (1,))[0]
        return Operator(
            "linear" if is_linear else "matmul", "",
            summed, output[-1], 1 if is_linear else math.prod(output[:-2]), rows, rows,
            in_bytes=sum(map(self.bytes, fed)), out_bytes=self.bytes(node.output[0]),
            weight_bytes=FLOAT_BYTES * summed * output[-1] if is_linear else 0,
            macs=node_macs(node, self.scope),
        )  # fmt: skip

    def elementwise(self, node: onnx.NodeProto, fed: list[str]) -> list[Operator]:
        """An activation or arithmetic; inside the convolution before it where that can take it."""
        kind, output = node.op_type, self.shape(node.output[0])
        whole = [name for name in fed if self.shape(name) == output]
        if swish := self.swish(node):
            kind, whole, fed = swish, whole[:1], whole[:1]
        elif kind == "Erf":
            kind = "Gelu"
        source = whole[0] if whole else fed[0]
        lies = (
            bool(whole) and all(self.is_blocked(name) for name in fed) and len(whole) == len(fed)
        )
        runs_blocked = kind in (*IN_CONVOLUTION, "Swish", "Add", "Mul", "Sum")
        if kind in IN_CONVOLUTION and source in self.inside:
            lies, where = self.is_blocked(source), "inside"
        elif kind == "Add" and lies and any(name in self.summed for name in whole):
            where = "inside"
        else:
            lies, where = lies and runs_blocked, ""
            if len(whole) < len(fed):
                where = "broadcast"
            elif any(name in self.constant for name in node.input) and kind in CHEAP[:12]:
                where = "constant"
        reorders = [] if lies else self.to_plain(fed)
        one = self.simple(node, "elementwise", f"{kind} {where}".strip(), fed, blocked=lies)
        self.lay(node, lies)
        if where == "inside" and kind == "Add" and len(self.uses.get(node.output[0], ())) == 1:
            self.inside.add(node.output[0])
        return [*reorders, one]

    def swish(self, node: onnx.NodeProto) -> str:
        """What a product of a value with its own gate is; empty where it is none."""
        if node.op_type == "Mul":
            for name in node.input:
                maker = self.makers.get(name)
                if maker is not None and maker.op_type in ("Sigmoid", "HardSigmoid"):
                    if self.gated_by(name, maker.input[0]):
                        return "Swish" if maker.op_type == "Sigmoid" else "HardSwish"
        return ""

    def pool(self, node: onnx.NodeProto, fed: list[str]) -> list[Operator]:
        """A pool in the layout of what it reads."""
        shape, kind = self.shape(node.input[0]) or (), node.op_type
        fits = len(shape) == 4 and shape[1] % BLOCK == 0 and self.is_blocked(fed[0])
        if kind in POOLS:
            window = tuple(_numbers(node, "kernel_shape")) or (1, 1)
            lies, name, variant = fits, "pool", kind
        else:
            window = tuple(shape[2:]) or (1, 1)
            lies = fits and kind in GLOBAL_POOLS and len(self.uses.get(fed[0], ())) == 1
            name, variant = "global_pool", kind
        reorders = [] if lies else self.to_plain(fed)
        self.lay(node, lies)
        kernel = (window[0], window[-1])
        return [*reorders, self.simple(node, name, variant, fed, blocked=lies, kernel=kernel)]

    def is_global_mean(self, node: onnx.NodeProto) -> bool:
        """Whether a mean goes over height and width and nothing else."""
        before, after = self.shape(node.input[0]), self.shape(node.output[0])
        return (
            node.op_type == "ReduceMean" and before is not None and after is not None
            and len(before) == 4 and after[:2] == before[:2] and math.prod(after[2:]) == 1
        )  # fmt: skip

    def concat(self, node: onnx.NodeProto, fed: list[str]) -> list[Operator]:
        """Feature maps side by side; blocked where all of them are, in whole blocks."""
        shapes = [self.shape(name) or () for name in fed]
        lies = all(
            self.is_blocked(name) and len(shape) == 4 and shape[1] % BLOCK == 0
            for name, shape in zip(fed, shapes, strict=True)
        ) and _whole(node, "axis", 0) in (1, -3)
        reorders = [] if lies else self.to_plain(fed)
        self.lay(node, lies)
        return [*reorders, self.simple(node, "move", "Concat", fed, blocked=lies)]

    def simple(
        self, node: onnx.NodeProto, kind: str, variant: str, fed: list[str], *,
        blocked: bool = False, kernel: tuple[int, int] = (1, 1),
    ) -> Operator:  # fmt: skip
        """An operator whose time is decided by what it reads and writes."""
        largest = max(fed, key=self.bytes)
        source, output = self.shape(largest) or (1,), self.shape(node.output[0]) or (1,)
        by_rows = variant in ("LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax")
        (ci, pi), (co, po) = (
            (one[-1], math.prod(one[:-1])) if by_rows else _folded(one) for one in (source, output)
        )
        own = [name for name in node.input if name in self.scope.weights]
        return Operator(
            kind, variant, ci, co, 1, pi, po, kernel, blocked,
            sum(map(self.bytes, fed)), sum(self.bytes(name) for name in node.output if name),
            sum(self.bytes(name) for name in own), 0,
        )  # fmt: skip

    def unknown(self, node: onnx.NodeProto, fed: list[str]) -> Operator:
        """An operator that nothing here knows."""
        return Operator(
            "unknown", node.op_type,
            in_bytes=sum(map(self.bytes, fed)),
            out_bytes=sum(self.bytes(name) for name in node.output if name),
            weight_bytes=sum(self.bytes(n) for n in node.input if n in self.scope.weights),
            macs=node_macs(node, self.scope),
        )  # fmt: skip

    # layouts and names

    def to_plain(self, names: Sequence[str]) -> list[Operator]:
        """What brings values into the plain layout that are not there yet."""
        found = []
        for name in names:
            if self.is_blocked(name) and name not in self.plain:
                self.plain.add(name)
                found.append(self.reorder(name, "out"))
        return found

    def must_block(self, name: str) -> bool:
        """Whether a value is to be reordered into the blocked layout, which happens once."""
        if self.is_blocked(name):
            return False
        self.blocked.add(name)
        self.plain.add(name)
        return True

    def reorder(self, name: str, way: str) -> Operator:
        """A value into the blocked layout, or out of it."""
        channels, pixels = _folded(self.shape(name) or (1,))
        size = self.bytes(name)
        return Operator(
            "reorder", way, channels, channels, 1, pixels, pixels, in_bytes=size, out_bytes=size
        )

    def lay(self, node: onnx.NodeProto, blocked: bool) -> None:
        """Say in which layout a node's output is."""
        if blocked:
            self.blocked.update(node.output)

    def rename(self, node: onnx.NodeProto, source: str) -> None:
        """A node's output is what it read."""
        (output, *_) = node.output
        self.same[output] = source
        if len(self.uses.get(output, ())) != 1:
            self.inside.discard(source)

    def name(self, name: str) -> str:
        """The value that stands for another."""
        while name in self.same:
            name = self.same[name]
        return name

    def is_blocked(self, name: str) -> bool:
        """Whether a value is there in the blocked layout."""
        return self.name(name) in self.blocked

    def shape(self, name: str) -> Shape | None:
        """Sides of a value."""
        return self.scope.shapes.get(name)

    def bytes(self, name: str) -> int:
        """Of a value; 0 where that is not known."""
        return self.scope.bytes.get(name, 0)


def _folded(shape: Sequence[int]) -> tuple[int, int]:
    """Channels and pixels: of a feature map its own, of anything else its last side and the rest.

    Empty sides count as one.
    """
    sides = [max(1, side) for side in shape] or [1]
    if len(sides) == 4:
        return sides[1], sides[0] * sides[2] * sides[3]
    return sides[-1], math.prod(sides[:-1])


def _is_by_channel(shape: Shape | None, channels: int) -> bool:
    """Whether a constant is a number a channel, or one number."""
    if shape is None:
        return False
    size = math.prod(shape)
    return size == 1 or (size == channels and len(shape) > 2 and shape[-3] == channels)


def _bodies(node: onnx.NodeProto) -> Iterator[bool]:
    for attribute in node.attribute:
        yield attribute.HasField("g") or bool(attribute.graphs)


def _dilated(node: onnx.NodeProto) -> str:
    return "dilated" if max(_numbers(node, "dilations"), default=1) > 1 else ""


def _whole(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _numbers(node: onnx.NodeProto, name: str) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == name), [])


def _text(node: onnx.NodeProto, name: str, default: str) -> str:
    return next((a.s.decode() for a in node.attribute if a.name == name), default)
