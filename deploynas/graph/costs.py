"""MACs, weights and feature maps of any ONNX file, node by node. No torch, nothing is run.

MACs are the multiply-adds of convolutions, Gemm and matrix products, biases left out, as papers
count. *Weights* are the constants that the file stores: in a file whose batch norms are folded,
each norm of C channels is a bias of C numbers, where :func:`deploynas.spaces.layers.params`
counts its scale and shift, 2 C. The arguments of an operator that holds no weights, such as the
limits of a Clip, are constants too, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from deploynas.errors import InvalidInputError, MissingFileError

Shape = tuple[int, ...]
Name = TypeVar("Name")
CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv")
PRODUCTS = ("MatMul", "MatMulInteger", "QLinearMatMul")
# Standard operators that multiply and add but are not counted; so may any of another domain.
UNCOUNTED = frozenset(
    ("Attention", "DeformConv", "Einsum", "GRU", "GroupQueryAttention", "If", "LSTM", "Loop",
     "RNN", "Scan")
)  # fmt: skip


@dataclass(frozen=True)
class NodeCost:
    """What one node of a graph costs for one run.

    Attributes:
        macs: Multiply-adds of a convolution, a matrix product or a Gemm; 0 for the rest.
        counted: False where the operator may hold multiply-adds that are not in ``macs``.
        num_weights: Constants that feed the node, counted where they are first used.
        weight_bytes: Their bytes.
        input_shape, output_shape: Of the first input and output.
        output_bytes: Of all outputs.
    """

    name: str
    kind: str
    macs: int
    counted: bool
    num_weights: int
    weight_bytes: int
    input_shape: Shape
    output_shape: Shape
    output_bytes: int


def read_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        MissingFileError: No such file.
        InvalidInputError: Not an ONNX model, a truncated one, or one without nodes.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise InvalidInputError(f"{path} is not a valid ONNX model: {first}") from None
    if not model.graph.node:
        raise InvalidInputError(f"{path} holds no operators")
    return model


def node_costs(path: Path) -> tuple[list[NodeCost], int]:
    """Every node's cost, in order, and the peak bytes of live feature maps.

    A feature map lives from the node that makes it to the last that reads it, in the order of
    the file; the input of the network counts.

    Raises:
        MissingFileError, InvalidInputError: See :func:`read_model`; or a shape is dynamic or
            cannot be inferred (the first such tensor is named).
    """
    model = onnx.shape_inference.infer_shapes(read_model(path))
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    constants = set(weights)
    for node in graph.node:
        if node.op_type == "Constant":
            constants.add(node.output[0])
            if node.attribute[0].name == "value":
                weights[node.output[0]] = node.attribute[0].t
    sizes: dict[str, tuple[Shape, int]] = {
        name: (tuple(tensor.dims), numpy_helper.to_array(tensor).nbytes)
        for name, tensor in weights.items()
    }
    for info in graph.input:
        if info.name not in sizes:
            sizes[info.name] = _size(path, info, _fixing(path, info))
    for info in [*graph.value_info, *graph.output]:
        if info.name not in sizes:
            sizes[info.name] = _size(path, info)
    counted: set[str] = set()
    costs = []
    for index, node in enumerate(graph.node):
        if node.op_type == "Constant":
            continue
        missing = [n for n in [*node.input, *node.output] if n and n not in sizes]
        if missing:
            raise InvalidInputError(f"{path}: the shape of {missing[0]!r} cannot be inferred")
        own = [n for n in node.input if n in weights and n not in counted]
        counted.update(own)
        inputs = [sizes[n][0] for n in node.input if n]
        costs.append(
            NodeCost(
                name=node.name or f"{node.op_type}_{index}",
                kind=node.op_type,
                macs=_macs(node, inputs, sizes[node.output[0]][0]),
                counted=node.domain in ("", "ai.onnx") and node.op_type not in UNCOUNTED,
                num_weights=sum(math.prod(sizes[n][0]) for n in own),
                weight_bytes=sum(sizes[n][1] for n in own),
                input_shape=inputs[0] if inputs else (),
                output_shape=sizes[node.output[0]][0],
                output_bytes=sum(sizes[n][1] for n in node.output if n),
            )
        )
    steps = [(set(node.input), set(node.output) - constants - {""}) for node in graph.node]
    ends = {info.name for info in graph.input} - constants, {info.name for info in graph.output}
    return costs, peak_bytes(steps, {n: size for n, (_, size) in sizes.items()}, *ends)


def _size(path: Path, info: onnx.ValueInfoProto, hint: str | None = None) -> tuple[Shape, int]:
    if not info.type.HasField("tensor_type"):
        raise InvalidInputError(f"{path}: {info.name!r} is not a tensor, so it has no size")
    tensor = info.type.tensor_type
    if not tensor.HasField("shape") or any(not d.HasField("dim_value") for d in tensor.shape.dim):
        raise InvalidInputError(f"{path}: {info.name!r} has a dynamic shape", hint)
    shape = tuple(d.dim_value for d in tensor.shape.dim)
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return shape, math.prod(shape) * kind.itemsize


def _fixing(path: Path, info: onnx.ValueInfoProto) -> str:
    """The command that fixes an input's shape: one image where the file leaves a side open."""
    usual = (1, 3, 224, 224)
    sides = [
        str(d.dim_value if d.HasField("dim_value") else usual[min(axis, 3)])
        for axis, d in enumerate(info.type.tensor_type.shape.dim)
    ]
    return (
        "fix it: python -m onnxruntime.tools.make_dynamic_shape_fixed "
        f"--input_name {info.name} --input_shape {','.join(sides)} "
        f"{path} {path.with_stem(path.stem + '-fixed')}"
    )


def _macs(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    """Multiply-adds; biases are not counted, as in papers."""
    if node.op_type in CONVOLUTIONS:
        weight = inputs[3] if node.op_type == "QLinearConv" else inputs[1]
        return math.prod(output) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(output) * inputs[0][0 if transposed else 1]
    if node.op_type in PRODUCTS:
        return math.prod(output) * inputs[0][-1]
    return 0


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
