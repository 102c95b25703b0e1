"""MACs, weights and feature maps of any ONNX file, node by node. No torch, nothing is run.

MACs are the multiply-adds of convolutions, Gemm and matrix products, biases left out, as papers
count. *Weights* are the constants that the file stores: in a file whose batch norms are folded,
each norm of C channels is a bias of C numbers, where :func:`deploynas.spaces.layers.params`
counts its scale and shift, 2 C. The arguments of an operator that holds no weights, such as the
limits of a Clip, are constants too, and counted.

Functions are inlined. A node with bodies is one row: an If costs its dearest branch and stores the
weights of all; a Loop or Scan costs its body as often as it runs, once where that is not said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnx.inliner
from onnx import numpy_helper

from deploynas.errors import InvalidInputError
from deploynas.graph.model_file import ModelFile, attribute_tensors, num_bytes

Shape = tuple[int, ...]
Name = TypeVar("Name")
CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv")
PRODUCTS = ("MatMul", "MatMulInteger", "QLinearMatMul")
STANDARD = ("", "ai.onnx")
# Standard operators that multiply and add but are not counted; so may any of another domain.
UNCOUNTED = frozenset(
    ("Attention", "DeformConv", "Einsum", "GRU", "GroupQueryAttention", "LSTM", "RNN")
)


@dataclass(frozen=True)
class NodeCost:
    """What one node of a graph costs for one run.

    Attributes:
        macs: Multiply-adds of a convolution, a matrix product or a Gemm; 0 for the rest.
        counted: False where the operator may hold multiply-adds that are not in ``macs``.
        num_weights: Constants that feed the node, counted where they are first used.
        weight_bytes: Their bytes.
        input_shape, output_shape: Of the first input and output; None where it is not known.
        output_bytes: Of all outputs; None where one is not known.
    """

    name: str
    kind: str
    macs: int
    counted: bool
    num_weights: int
    weight_bytes: int
    input_shape: Shape | None
    output_shape: Shape | None
    output_bytes: int | None


@dataclass
class Scope:
    """What is known of the values that a graph and its bodies can see.

    Attributes:
        shapes: Of values that are known; empty sides and all.
        bytes: Of the same.
        weights: Constants by name.
        used: Those that were counted by their identity, shared with the bodies.
    """

    shapes: dict[str, Shape]
    bytes: dict[str, int]
    weights: dict[str, onnx.TensorProto]
    used: dict[int, onnx.TensorProto]


def node_costs(path: Path, input_shapes: Sequence[str] = ()) -> tuple[list[NodeCost], int | None]:
    """Every node's cost, in order, and the peak bytes of live feature maps.

    A feature map lives from the node that makes it to the last that reads it, in the order of
    the file; the input of the network counts. The peak is None where one of them is not known.

    Args:
        path: The file.
        input_shapes: Of inputs that are open; see :meth:`ModelFile.shapes`.

    Raises:
        MissingFileError, InvalidInputError: See :class:`ModelFile`; or an input's shape is open.
    """
    graph, scope = read_graph(path, input_shapes)
    costs = _costs(graph, scope)
    constants = set(scope.weights)
    for node in graph.node:
        if node.op_type == "Constant":
            constants.update(node.output)
    steps = [(_reads(node), set(node.output) - constants - {""}) for node in graph.node]
    takes = {info.name for info in graph.input} - constants
    gives = {info.name for info in graph.output}
    if not takes.union(*(made for _, made in steps)) <= scope.bytes.keys():
        return costs, None
    return costs, peak_bytes(steps, scope.bytes, takes, gives)


def read_graph(path: Path, input_shapes: Sequence[str] = ()) -> tuple[onnx.GraphProto, Scope]:
    """A file's graph, functions inlined, and what is known of its values.

    Args:
        path: The file.
        input_shapes: Of inputs that are open; see :meth:`ModelFile.shapes`.

    Raises:
        MissingFileError, InvalidInputError: See :func:`node_costs`.
    """
    file = ModelFile(path)
    _require_valid(file)
    given = file.with_shapes(input_shapes)
    model = onnx.ModelProto()
    model.CopyFrom(given)
    try:
        return graph_scope(file.with_small_weights(model))
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise InvalidInputError(f"{path}: its shapes contradict: {_first_line(error)}") from None


def graph_scope(model: onnx.ModelProto) -> tuple[onnx.GraphProto, Scope]:
    """A model's graph, functions inlined, and what is known of its values.

    Raises:
        onnx.shape_inference.InferenceError, RuntimeError, ValueError: Its shapes contradict.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return graph, _scope(graph, Scope({}, {}, {}, {}))


def _require_valid(file: ModelFile) -> None:
    """Refuse what the checker refuses; it reads a file of any size, and no weights beside it."""
    try:
        onnx.checker.check_model(str(file.path))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise InvalidInputError(
            f"{file.path} is not a valid ONNX model: {_first_line(error)}"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _scope(graph: onnx.GraphProto, outer: Scope) -> Scope:
    """What a graph sees: its own values, and what its surroundings know."""
    scope = Scope(dict(outer.shapes), dict(outer.bytes), dict(outer.weights), outer.used)
    for tensor in graph.initializer:
        scope.weights[tensor.name] = tensor
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                for tensor in attribute_tensors(attribute):
                    scope.weights[node.output[0]] = tensor
    for name, tensor in scope.weights.items():
        scope.shapes[name], scope.bytes[name] = tuple(tensor.dims), num_bytes(tensor)
    for info in [*graph.input, *graph.value_info, *graph.output]:
        tensor_type = info.type.tensor_type
        known = info.type.HasField("tensor_type") and tensor_type.HasField("shape")
        sides = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor_type.shape.dim]
        if info.name in scope.weights or not known or min(sides, default=0) < 0:
            continue
        try:
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)
        except KeyError:  # of no type that there is
            continue
        scope.shapes[info.name] = tuple(sides)
        scope.bytes[info.name] = math.prod(sides) * kind.itemsize
    return scope


def _costs(graph: onnx.GraphProto, scope: Scope) -> list[NodeCost]:
    return [
        _cost(node, scope, index)
        for index, node in enumerate(graph.node)
        if node.op_type != "Constant"
    ]


def _cost(node: onnx.NodeProto, scope: Scope, index: int) -> NodeCost:
    own = _unused([scope.weights[n] for n in node.input if n in scope.weights], scope)
    attributes = [t for attribute in node.attribute for t in attribute_tensors(attribute)]
    own += _unused(attributes, scope)
    inputs = [scope.shapes.get(n) for n in node.input]
    outputs = [n for n in node.output if n]
    output = scope.shapes.get(outputs[0]) if outputs else None
    macs, counted = _macs(node, inputs, output, scope)
    count = sum(math.prod(tensor.dims) for tensor in own)
    stored = sum(num_bytes(tensor) for tensor in own)
    bodies = [_costs(g, _scope(g, scope)) for a in node.attribute for g in _graphs(a)]
    if bodies:
        sums = [sum(row.macs for row in body) for body in bodies]
        times = _times(node, inputs, scope)
        macs = max(sums) * (times or 1)
        rows = [row for body in bodies for row in body]
        # whether there was something to count, and how often, is known
        counted = all(row.counted for row in rows) and (times is not None or not any(sums))
        count += sum(row.num_weights for row in rows)
        stored += sum(row.weight_bytes for row in rows)
    known = all(n in scope.bytes for n in outputs)
    return NodeCost(
        name=node.name or f"{node.op_type}_{index}",
        kind=node.op_type,
        macs=macs,
        counted=counted,
        num_weights=count,
        weight_bytes=stored,
        input_shape=inputs[0] if inputs else (),
        output_shape=output,
        output_bytes=sum(scope.bytes[n] for n in outputs) if known else None,
    )


def _unused(tensors: Sequence[onnx.TensorProto], scope: Scope) -> list[onnx.TensorProto]:
    """Those that no node before has."""
    found = []
    for tensor in tensors:
        if id(tensor) not in scope.used:
            scope.used[id(tensor)] = tensor
            found.append(tensor)
    return found


def _graphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _times(node: onnx.NodeProto, inputs: Sequence[Shape | None], scope: Scope) -> int | None:
    """How often the bodies of a node run; None where the file does not say."""
    if node.op_type == "Scan":
        (bodies,) = [a.g for a in node.attribute if a.name == "body"]
        (scanned,) = [a.i for a in node.attribute if a.name == "num_scan_inputs"]
        shape = inputs[len(bodies.input) - scanned]
        return shape[0] if shape and not any("axes" in a.name for a in node.attribute) else None
    if node.op_type == "Loop":
        trips = scope.weights.get(node.input[0])
        ends = node.input[1] if len(node.input) > 1 else ""
        value = None if trips is None else _value(trips)
        return value if value is not None and not ends else None
    return 1


def _value(tensor: onnx.TensorProto) -> int | None:
    if math.prod(tensor.dims) != 1 or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    return int(np.ravel(numpy_helper.to_array(tensor))[0])


def _macs(
    node: onnx.NodeProto, inputs: Sequence[Shape | None], output: Shape | None, scope: Scope
) -> tuple[int, bool]:
    """Multiply-adds, biases not counted, as in papers; and whether these are all."""
    if node.domain not in STANDARD or node.op_type in UNCOUNTED:
        return 0, False
    if node.op_type in CONVOLUTIONS:
        weight = inputs[3 if node.op_type == "QLinearConv" else 1]
        factors = [output, weight and weight[1:]]
    elif node.op_type == "ConvTranspose":
        factors = [inputs[0], inputs[1] and inputs[1][1:]]
    elif node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        factors = [output, inputs[0] and inputs[0][0 if transposed else 1 :][:1]]
    elif node.op_type in PRODUCTS:
        factors = [output, inputs[0] and inputs[0][-1:]]
    else:
        return 0, True
    if any(shape is None for shape in factors):
        return 0, False
    macs = math.prod(side for shape in factors for side in shape or ())
    return macs, macs > 0


def node_macs(node: onnx.NodeProto, scope: Scope) -> int:
    """Multiply-adds of a node without bodies; 0 where they are not known."""
    inputs = [scope.shapes.get(name) for name in node.input]
    return _macs(node, inputs, scope.shapes.get(node.output[0]), scope)[0]


def _reads(node: onnx.NodeProto) -> set[str]:
    """What a node takes, and what its bodies take from around it."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in _graphs(attribute):
            for inner in graph.node:
                names |= _reads(inner)
    return names


def peak_bytes(
    steps: Sequence[tuple[set[Name], set[Name]]],
    sizes: Mapping[Name, int],
    inputs: set[Name],
    outputs: set[Name],
) -> int:
    """The most bytes of tensors that are alive at once.

    Args:
        steps: What each operator reads and makes, in order; constants may be among what it reads.
        sizes: Bytes of each tensor.
        inputs: Of the network, alive from the beginning.
        outputs: Of the network, alive until the end.
    """
    last_use = {name: i for i, (read, _) in enumerate(steps) for name in read}
    last_use |= {name: len(steps) for name in outputs}
    live = inputs
    peak = sum(sizes[n] for n in live)
    for i, (_, made) in enumerate(steps):
        live = live | made
        peak = max(peak, sum(sizes[n] for n in live))
        live = {n for n in live if last_use.get(n, -1) > i}
    return peak
