"""ONNX -> ``.tflite``, LiteRT's file: the operators that networks for images are made of.

A feature map is written channels last, as LiteRT computes; every other tensor as it is. The
inputs and outputs that differ from the ONNX file's by that are named in the file's metadata
(:data:`~deploynas.runtimes.litert.CHANNELS_LAST`), beside the ONNX file's own metadata.

An activation becomes a part of the operator before it where nothing else reads that, and padding
becomes ``SAME`` where LiteRT pads the same ends. The schema is the one in ``ai-edge-litert``.
References: ONNX's pages of operators, and TensorFlow's ``schema.fbs``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import helper

from deploynas.errors import InvalidInputError
from deploynas.runtimes.litert import CHANNELS_LAST
from deploynas.runtimes.source import array_of, opset_of, refusing, softmax_axis

Array = npt.NDArray[Any]
LAST = (0, 2, 3, 1)  # channels last: what a dimension of the file is in ONNX
FIRST = (0, 3, 1, 2)  # and back
ALIGNMENT = 16  # bytes, of constants
FORMAT = 3
TYPES = {
    "float32": "FLOAT32", "float16": "FLOAT16", "float64": "FLOAT64", "int32": "INT32",
    "int64": "INT64", "uint8": "UINT8", "int8": "INT8", "bool": "BOOL",
}  # fmt: skip


def converted(path: Path) -> bytes:
    """The ``.tflite`` file of an ONNX file.

    Raises:
        InvalidInputError: It is none, has a dynamic shape or an operator that is not converted;
            names that and its node.
    """
    try:
        model = onnx.load(path, format="protobuf")
        lacking = next((n for n in model.graph.node if not _is_known(n)), None)
        if lacking is not None:
            refuse(lacking, "is not converted for LiteRT")
        whole = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        raise InvalidInputError("it is not an ONNX file, or is damaged") from None
    if not whole.graph.node:
        raise InvalidInputError("it is not an ONNX file, or is damaged")
    return Writer(whole).content()


def refuse(node: onnx.NodeProto, reason: str) -> NoReturn:
    """Name an operator and its node.

    Raises:
        InvalidInputError: Always.
    """
    name = node.name or node.output[0]
    raise InvalidInputError(f"the operator {node.op_type} of node {name!r} {reason}")


def _is_known(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in OPERATORS


@dataclass(frozen=True)
class Tensor:
    """A tensor of the network.

    Attributes:
        shape: As ONNX has it.
        index: In the file; a constant is written where it is used.
        dtype: As numpy calls it.
        turned: Whether it is written channels last.
        value: Of a constant.
    """

    shape: tuple[int, ...]
    index: int = -1
    dtype: str = "float32"
    turned: bool = False
    value: Array | None = None


class Node:
    """An operator as it is written.

    Attributes:
        proto: Of the ONNX file.
        attributes: Name -> value.
        inputs: Those that it has; None where an optional one is left out.
        output: Name of its first output, or of the activation's that became a part of it.
        activation: That one, as the schema calls it.
    """

    def __init__(
        self, proto: onnx.NodeProto, inputs: list[Tensor | None], output: str, activation: str
    ) -> None:
        self.proto, self.output, self.activation = proto, output, activation
        self.attributes = {one.name: helper.get_attribute_value(one) for one in proto.attribute}
        self._inputs = inputs

    @property
    def x(self) -> Tensor:
        """The first input."""
        first = self._inputs[0]
        assert first is not None
        if first.value is not None:
            refuse(self.proto, "reads constants alone, which is not converted for LiteRT")
        return first

    @property
    def inputs(self) -> list[Tensor]:
        """All of them."""
        return [one for one in self._inputs if one is not None]

    def constant(self, number: int) -> Array | None:
        """The value of an input; None where it is left out."""
        one = self._inputs[number] if number < len(self._inputs) else None
        if one is not None and one.value is None:
            refuse(self.proto, f"computes its input {number}, which is not converted for LiteRT")
        return None if one is None else one.value

    def weight(self, number: int) -> Array:
        """The value of an input that must be there."""
        value = self.constant(number)
        assert value is not None
        return value

    def numbers(self, name: str, number: int) -> list[int] | None:
        """A list of integers: the attribute of that name, or an input."""
        found = self.attributes.get(name)
        if found is None and (value := self.constant(number)) is not None:
            found = value.ravel().tolist()
        return None if found is None else [int(one) for one in found]


class Writer:
    """A file under construction.

    Args:
        model: With its shapes.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self._model, self.opset = model, opset_of(model)
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: dict[tuple[str, int], int] = {}
        self._buffers = [b""]  # the first is that of tensors without a value
        graph = model.graph
        self._known = _constants(graph)
        self._types = {
            one.name: one.type.tensor_type
            for one in (*graph.value_info, *graph.input, *graph.output)
        }
        self._outputs = {one.name for one in graph.output}
        self._readers = Counter(name for node in graph.node for name in node.input)
        self._by_input = {name: node for node in graph.node for name in node.input}

    def content(self) -> bytes:
        """The file."""
        graph = self._model.graph
        inputs = [one.name for one in graph.input if one.name not in self._known]
        for name in inputs:
            shape, dtype = self.shape(name), self._dtype(name)
            turned = len(shape) == 4 and dtype == "float32"
            self._known[name] = self._add(name, shape, turned, dtype)
        for proto in graph.node:
            if proto.output[0] not in self._known:  # no constant, nor merged into another
                with refusing(partial(refuse, proto)):
                    self._operator(proto)
        outputs = [one.name for one in graph.output]
        for name in outputs:
            if name not in self._known or self._known[name].value is not None:
                raise InvalidInputError(f"no node computes the output {name!r}")
        return self._packed(inputs, outputs)

    # what operators are written with

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a computed tensor, as ONNX has it."""
        if name not in self._types:
            raise InvalidInputError(f"the shape of {name!r} is unknown")
        sides = self._types[name].shape.dim
        if not all(side.HasField("dim_value") for side in sides):
            shape = [side.dim_value or side.dim_param or "?" for side in sides]
            raise InvalidInputError(f"{name!r} has the dynamic shape {shape}")
        return tuple(side.dim_value for side in sides)

    def alias(self, node: Node, tensor: Tensor) -> None:
        """The output is a tensor that is there; a copy of it where that is one of the network."""
        self._known[node.output] = tensor
        if node.output in self._outputs:
            written = [tensor.shape[i] for i in LAST] if tensor.turned else tensor.shape
            options = ("ReshapeOptions", {"newShape": list(written)})
            inputs = [tensor.index, self.constant(written, np.int32)]
            self.write(node, "RESHAPE", inputs, tensor.turned, options)

    def write(
        self, node: Node, kind: str, inputs: Sequence[int], turned: bool = False,
        options: tuple[str, Mapping[str, Any]] | None = None, version: int = 1,
    ) -> None:  # fmt: skip
        """The operator that gives the node's output."""
        output = self._add(node.output, self.shape(node.output), turned, self._dtype(node.output))
        self._known[node.output] = output
        self._operate(kind, inputs, output.index, options, version)

    def between(
        self, node: Node, kind: str, inputs: Sequence[int], like: Tensor,
        options: tuple[str, Mapping[str, Any]] | None = None,
    ) -> Tensor:  # fmt: skip
        """An operator before that one; its output has the shape of ``like``."""
        name = f"{node.output}.{len(self._operators)}"
        output = self._add(name, like.shape, like.turned, like.dtype)
        self._operate(kind, inputs, output.index, options, 1)
        return output

    def constant(self, array: Array | Sequence[Any] | float, dtype: Any = np.float32) -> int:
        """Index of a new constant, as it lies in the file."""
        value = np.ascontiguousarray(np.asarray(array, dtype)).reshape(np.shape(array))
        self._buffers.append(value.tobytes())
        return self._tensor(
            f"constant.{len(self._buffers)}", value.shape, value.dtype.name, len(self._buffers) - 1
        )

    def index(self, node: Node, tensor: Tensor, turned: bool, rank: int | None = None) -> int:
        """Where a tensor is, channels last or not; a constant of lower rank is broadcast so."""
        if tensor.value is not None:
            value = tensor.value
            if turned:
                value = value.reshape((1,) * (4 - value.ndim) + value.shape).transpose(LAST)
            return self.constant(value, value.dtype)
        if tensor.turned == turned:
            return tensor.index
        if len(tensor.shape) != 4:
            refuse(node.proto, "mixes tensors of other ranks, which is not converted for LiteRT")
        permutation = self.constant(LAST if turned else FIRST, np.int32)
        moved = replace(tensor, turned=turned)
        return self.between(node, "TRANSPOSE", [tensor.index, permutation], moved).index

    # the parts of a file

    def _dtype(self, name: str) -> str:
        if name not in self._types:
            raise InvalidInputError(f"the type of {name!r} is unknown")
        dtype = helper.tensor_dtype_to_np_dtype(self._types[name].elem_type).name
        if dtype not in TYPES:
            raise InvalidInputError(f"{name!r} is of type {dtype}, which LiteRT lacks")
        return dtype

    def _operator(self, proto: onnx.NodeProto) -> None:
        if any(
            name in self._readers or name in self._outputs for name in proto.output[1:] if name
        ):
            refuse(proto, "has outputs beside its first, which is not converted for LiteRT")
        for name in proto.input:
            if name and name not in self._known:
                refuse(proto, f"reads {name!r}, which nothing gives")
        activation, output = self._activation(proto)
        read = [self._known[name] if name else None for name in proto.input]
        OPERATORS[proto.op_type](self, Node(proto, read, output, activation))

    def _activation(self, proto: onnx.NodeProto) -> tuple[str, str]:
        """What can become a part of a node, and the output of both."""
        (output, *_), nothing = proto.output, ("NONE", proto.output[0])
        if proto.op_type not in MERGING or self._readers[output] != 1 or output in self._outputs:
            return nothing
        reader = self._by_input[output]
        if reader.op_type not in ("Relu", "Clip") or reader.input[0] != output:
            return nothing
        bounds = [self._known.get(name) for name in reader.input[1:]]
        if any(
            name and (one is None or one.value is None)
            for name, one in zip(reader.input[1:], bounds)
        ):
            return nothing  # a bound is computed
        name = ACTIVATIONS.get(_limits(Node(reader, [None, *bounds], "", "")))
        return (name, reader.output[0]) if name else nothing

    def _add(self, name: str, shape: tuple[int, ...], turned: bool, dtype: str) -> Tensor:
        written = [shape[i] for i in LAST] if turned else shape
        return Tensor(shape, self._tensor(name, written, dtype), dtype, turned)

    def _tensor(self, name: str, shape: Sequence[int], dtype: str, buffer: int = 0) -> int:
        one = self._schema.TensorT()
        one.name, one.shape, one.buffer = name, list(shape), buffer
        one.type = getattr(self._schema.TensorType, TYPES[dtype])
        self._tensors.append(one)
        return len(self._tensors) - 1

    def _operate(
        self, kind: str, inputs: Sequence[int], output: int,
        options: tuple[str, Mapping[str, Any]] | None, version: int,
    ) -> None:  # fmt: skip
        one = self._schema.OperatorT()
        one.opcodeIndex = self._codes.setdefault((kind, version), len(self._codes))
        one.inputs, one.outputs = list(inputs), [output]
        if options is not None:
            name, fields = options
            one.builtinOptionsType = getattr(self._schema.BuiltinOptions, name)
            one.builtinOptions = getattr(self._schema, f"{name}T")()
            for field, value in fields.items():
                if isinstance(value, str):
                    value = getattr(getattr(self._schema, ENUMS[field]), value)
                setattr(one.builtinOptions, field, value)
        self._operators.append(one)

    def _packed(self, inputs: list[str], outputs: list[str]) -> bytes:
        import flatbuffers

        schema = self._schema
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.name, graph.tensors, graph.operators = "main", self._tensors, self._operators
        ends = {name: self._known[name] for name in (*inputs, *outputs)}
        graph.inputs = [ends[name].index for name in inputs]
        graph.outputs = [ends[name].index for name in outputs]
        turned = [name for name, one in ends.items() if one.turned]
        metadata = {one.key: one.value for one in self._model.metadata_props}
        metadata[CHANNELS_LAST] = json.dumps(turned)
        model.metadata = []
        for name, text in metadata.items():
            entry = schema.MetadataT()
            entry.name, entry.buffer = name, len(self._buffers)
            model.metadata.append(entry)
            self._buffers.append(text.encode())
        model.version, model.description, model.subgraphs = FORMAT, "deploynas", [graph]
        model.operatorCodes = [_code(schema, *key) for key in self._codes]
        model.signatureDefs = [_signature(schema, ends, inputs, outputs)]
        model.buffers = [_buffer(schema, one) for one in self._buffers]
        builder = flatbuffers.Builder(sum(map(len, self._buffers)) + 100_000)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _code(schema: Any, kind: str, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode, code.version = getattr(schema.BuiltinOperator, kind), version
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)  # a byte, for old readers
    return code


def _signature(
    schema: Any, ends: Mapping[str, Tensor], inputs: Sequence[str], outputs: Sequence[str]
) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey = "serving_default"
    for place, names in (("inputs", inputs), ("outputs", outputs)):
        entries = []
        for name in names:
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, ends[name].index
            entries.append(entry)
        setattr(signature, place, entries)
    return signature


def _buffer(schema: Any, content: bytes) -> Any:
    """One that packs its bytes at once, aligned: the schema's own way is a byte at a time."""

    class Buffer(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:  # noqa: N802
            data = None
            if content:
                builder.StartVector(1, len(content), ALIGNMENT)
                builder.head -= len(content)
                builder.Bytes[builder.head : builder.head + len(content)] = content
                data = builder.EndVector()
            schema.BufferStart(builder)
            if data is not None:
                schema.BufferAddData(builder, data)
            return schema.BufferEnd(builder)

    return Buffer()


# operators, one function each; what several share comes first

Operator = Callable[[Writer, Node], None]


def _limits(node: Node) -> tuple[float, float]:
    """What an activation cuts off at."""
    if node.proto.op_type == "Relu":
        return 0.0, np.inf
    low = node.attributes.get("min", node.constant(1))
    high = node.attributes.get("max", node.constant(2))
    return -np.inf if low is None else float(low), np.inf if high is None else float(high)


def _constants(graph: onnx.GraphProto) -> dict[str, Tensor]:
    """Those of the file, under every name that they have."""
    arrays = {one.name: array_of(one) for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            with refusing(partial(refuse, node)):
                arrays[node.output[0]] = _value(node)
        elif node.op_type == "Identity" and node.input[0] in arrays:
            arrays[node.output[0]] = arrays[node.input[0]]
    return {name: Tensor(array.shape, value=array) for name, array in arrays.items()}


def _value(node: onnx.NodeProto) -> Array:
    """Of a Constant."""
    (attribute,) = node.attribute
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return array_of(value)
    types = {"float": np.float32, "int": np.int64}
    kind = attribute.name.removeprefix("value_").rstrip("s")
    if kind not in types:
        refuse(node, f"has a {attribute.name}, which is not converted for LiteRT")
    return np.array(value, types[kind])


@dataclass(frozen=True)
class Windows:
    """How a kernel moves over a feature map, each a pair: height, width.

    Attributes:
        before, after: Rows that it meets beyond the ends; ``after`` is negative where it leaves
            the last rows out.
    """

    sizes: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]

    @classmethod
    def of(cls, writer: Writer, node: Node, kernel: Sequence[int]) -> Windows:
        """Of a convolution or a pooling."""
        attributes = node.attributes
        if len(node.x.shape) != 4:
            refuse(node.proto, "has not two dimensions, which is not converted for LiteRT")
        sizes, out = node.x.shape[2:], writer.shape(node.output)[2:]
        strides = attributes.get("strides", [1, 1])
        dilations = attributes.get("dilations", [1, 1])
        pads = attributes.get("pads", [0] * 4)
        auto = attributes.get("auto_pad", b"NOTSET")
        before, after = [], []
        for i in range(2):
            reach = (out[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1
            missing = max(0, reach - sizes[i])
            first = {b"SAME_UPPER": missing // 2, b"SAME_LOWER": missing - missing // 2}
            before.append(first.get(auto, pads[i]))
            after.append(reach - sizes[i] - before[i])
            if attributes.get("ceil_mode") and (out[i] - 1) * strides[i] >= sizes[i] + before[i]:
                refuse(
                    node.proto, "has a window of padding alone, which is not converted for LiteRT"
                )
        pairs = (sizes, out, kernel, strides, dilations, before, after)
        return cls(*(tuple(pair) for pair in pairs))

    @property
    def padding(self) -> str | None:
        """LiteRT's own name of what is padded; None where it has none."""
        if max(*self.before, *self.after) <= 0:
            return "VALID"
        for i in range(2):
            both = max(0, self.before[i] + self.after[i])
            is_half = self.before[i] == both // 2
            if not is_half or self.out[i] != -(-self.sizes[i] // self.strides[i]):
                return None
        return "SAME"

    @property
    def ends(self) -> list[tuple[int, int]]:
        """Rows to pad before and after, of each dimension of the file."""
        after = (max(0, one) for one in self.after)
        return [(0, 0), *zip(self.before, after), (0, 0)]

    def padded(self, writer: Writer, node: Node) -> tuple[int, str]:
        """The input, with zeros around it where LiteRT would pad otherwise, and the padding."""
        x = writer.index(node, node.x, True)
        if self.padding is not None:
            return x, self.padding
        (top, bottom), (left, right) = self.ends[1:3]
        height, width = self.sizes[0] + top + bottom, self.sizes[1] + left + right
        like = Tensor((*node.x.shape[:2], height, width), turned=True)
        inputs = [x, writer.constant(self.ends, np.int32)]
        return writer.between(node, "PAD", inputs, like, ("PadOptions", {})).index, "VALID"

    def edged(self, writer: Writer, node: Node) -> tuple[int, str]:
        """As :meth:`padded`, with the rows at the ends repeated, which changes no maximum.

        XNNPACK has no padding with another number than zero.
        """
        x = replace(node.x, index=writer.index(node, node.x, True), turned=True)
        if self.padding is not None:
            return x.index, self.padding
        for axis in (1, 2):
            shape = [x.shape[i] for i in LAST]
            row = [*shape[:axis], 1, *shape[axis + 1 :]]
            pieces = [x.index]
            for count, place in zip(self.ends[axis], (0, shape[axis] - 1)):
                if count:
                    begin = [0, 0, 0, 0]
                    begin[axis] = place
                    bounds = [writer.constant(one, np.int32) for one in (begin, row)]
                    like = Tensor(tuple(row[i] for i in FIRST), turned=True)
                    inputs = [x.index, *bounds]
                    end = writer.between(node, "SLICE", inputs, like, ("SliceOptions", {})).index
                    pieces = [*pieces, *[end] * count] if place else [*[end] * count, *pieces]
            shape[axis] += sum(self.ends[axis])
            if len(pieces) > 1:
                like = Tensor(tuple(shape[i] for i in FIRST), turned=True)
                options = ("ConcatenationOptions", {"axis": axis})
                x = writer.between(node, "CONCATENATION", pieces, like, options)
        return x.index, "VALID"

    @property
    def moves(self) -> dict[str, int]:
        """The strides as LiteRT's options."""
        return {"strideH": self.strides[0], "strideW": self.strides[1]}


def _conv(writer: Writer, node: Node) -> None:
    weight, bias, groups = node.weight(1), node.constant(2), node.attributes.get("group", 1)
    if weight.ndim != 4:
        refuse(node.proto, "has not two dimensions, which is not converted for LiteRT")
    out_channels, channels = weight.shape[0], weight.shape[1] * groups
    windows = Windows.of(writer, node, weight.shape[2:])
    x, padding = windows.padded(writer, node)
    options: dict[str, Any] = {
        "padding": padding, **windows.moves,
        "dilationHFactor": windows.dilations[0], "dilationWFactor": windows.dilations[1],
        "fusedActivationFunction": node.activation,
    }  # fmt: skip
    offset = writer.constant(np.zeros(out_channels) if bias is None else bias)
    if groups == channels > 1:
        options["depthMultiplier"] = out_channels // channels
        inputs = [x, writer.constant(weight.transpose(1, 2, 3, 0)), offset]
        writer.write(
            node, "DEPTHWISE_CONV_2D", inputs, True, ("DepthwiseConv2DOptions", options), 2
        )
    else:
        inputs = [x, writer.constant(weight.transpose(LAST)), offset]
        version = 1 if groups == 1 else 6
        writer.write(node, "CONV_2D", inputs, True, ("Conv2DOptions", options), version)


def _linear(writer: Writer, node: Node, weight: Array, bias: Array | None) -> None:
    """A linear map by ``weight``, ``(out, in)``."""
    offset = np.zeros(len(weight)) if bias is None else np.broadcast_to(bias, (len(weight),))
    inputs = [writer.index(node, node.x, False), writer.constant(weight), writer.constant(offset)]
    options = {
        "fusedActivationFunction": node.activation, "keepNumDims": len(node.x.shape) > 2,
    }  # fmt: skip
    writer.write(
        node, "FULLY_CONNECTED", inputs, False, ("FullyConnectedOptions", options),
        5 if len(node.x.shape) > 2 else 1,
    )  # fmt: skip


def _gemm(writer: Writer, node: Node) -> None:
    weight, bias = node.weight(1), node.constant(2)
    if node.attributes.get("transA"):
        refuse(node.proto, "transposes its input, which is not converted for LiteRT")
    if bias is not None and bias.ndim == 2 and len(bias) > 1:
        refuse(node.proto, "has a bias a row, which is not converted for LiteRT")
    weight = weight if node.attributes.get("transB") else weight.T
    alpha, beta = (np.float32(node.attributes.get(one, 1.0)) for one in ("alpha", "beta"))
    _linear(writer, node, alpha * weight, None if bias is None else beta * bias.ravel())


def _matmul(writer: Writer, node: Node) -> None:
    weight = node.weight(1)
    if weight.ndim != 2 or len(node.x.shape) < 2:
        refuse(node.proto, "is not of a matrix of weights, which is not converted for LiteRT")
    _linear(writer, node, weight.T, None)


def _binary(kind: str, options: str | None) -> Operator:
    def write(writer: Writer, node: Node) -> None:
        computed = [one for one in node.inputs if one.value is None]
        if not computed:
            refuse(node.proto, "reads constants alone, which is not converted for LiteRT")
        ranks = [len(one.shape) for one in node.inputs]
        turned = max(ranks) == 4 and any(one.turned for one in computed)
        inputs = [writer.index(node, one, turned) for one in node.inputs]
        merged = {"fusedActivationFunction": node.activation}
        writer.write(node, kind, inputs, turned, (options, merged) if options else None)

    return write


def _unary(kind: str, options: tuple[str, Mapping[str, Any]] | None = None) -> Operator:
    def write(writer: Writer, node: Node) -> None:
        writer.write(node, kind, [node.x.index], node.x.turned, options)

    return write


def _clip(writer: Writer, node: Node) -> None:
    low, high = _limits(node)
    x, turned = node.x.index, node.x.turned
    if (low, high) in ACTIVATIONS:
        return writer.write(node, ACTIVATIONS[low, high], [x], turned)
    if low > -np.inf and high < np.inf:
        x = writer.between(node, "MAXIMUM", [x, writer.constant(low)], node.x).index
    kind, bound = ("MINIMUM", high) if high < np.inf else ("MAXIMUM", low)
    return writer.write(node, kind, [x, writer.constant(bound)], turned)


def _hard_sigmoid(writer: Writer, node: Node) -> None:
    """``clip(alpha x + beta, 0, 1)`` as a sixth of RELU6."""
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    x = node.x
    if abs(6 * alpha - 1) > 1e-6:
        factor = writer.constant(6 * alpha)
        x = writer.between(node, "MUL", [x.index, factor], x, ("MulOptions", {}))
    shifted = ("AddOptions", {"fusedActivationFunction": "RELU6"})
    x = writer.between(node, "ADD", [x.index, writer.constant(6 * beta)], x, shifted)
    writer.write(node, "MUL", [x.index, writer.constant(1 / 6)], x.turned, ("MulOptions", {}))


def _batch_norm(writer: Writer, node: Node) -> None:
    if len(node.x.shape) not in (2, 4):
        refuse(node.proto, "has not two dimensions, which is not converted for LiteRT")
    if node.attributes.get("training_mode"):
        refuse(node.proto, "is for training, which is not converted for LiteRT")
    scale, shift, mean, variance = (node.weight(i).astype(np.float64) for i in range(1, 5))
    factor = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    turned = len(node.x.shape) == 4
    x = replace(node.x, index=writer.index(node, node.x, turned), turned=turned)
    scaled = writer.between(
        node, "MUL", [x.index, writer.constant(factor)], x, ("MulOptions", {})
    )  # fmt: skip
    merged = ("AddOptions", {"fusedActivationFunction": node.activation})
    offset = writer.constant(shift - mean * factor)
    writer.write(node, "ADD", [scaled.index, offset], turned, merged)


def _mean(writer: Writer, node: Node, axes: Sequence[int], keep: bool, kind: str = "MEAN") -> None:
    rank = len(node.x.shape)
    own = sorted(axis % rank for axis in axes)
    over_image = own == [2, 3] and rank == 4
    x = writer.index(node, node.x, over_image)
    options = ("ReducerOptions", {"keepDims": keep})
    places = writer.constant([1, 2] if over_image else own, np.int32)
    writer.write(node, kind, [x, places], over_image and keep, options)


def _reduce_mean(writer: Writer, node: Node) -> None:
    axes = node.numbers("axes", 1) or []
    if not axes and node.attributes.get("noop_with_empty_axes"):
        return writer.alias(node, node.x)
    keep = bool(node.attributes.get("keepdims", 1))
    return _mean(writer, node, axes or range(len(node.x.shape)), keep)


def _global_pool(kind: str) -> Operator:
    """A pooling of whole channels, whatever their dimensions."""
    return lambda writer, node: _mean(writer, node, range(2, len(node.x.shape)), True, kind)


def _average_pool(writer: Writer, node: Node) -> None:
    """LiteRT's mean leaves out what ``SAME`` pads, but not what was padded before."""
    windows = Windows.of(writer, node, node.attributes["kernel_shape"])
    counts_pads = bool(node.attributes.get("count_include_pad", 0))
    if windows.dilations != (1, 1) or (counts_pads and node.attributes.get("ceil_mode", 0)):
        refuse(node.proto, "is dilated or rounds up, which is not converted for LiteRT")
    x, padding = windows.padded(writer, node)
    if counts_pads and padding == "SAME":
        refuse(node.proto, "counts what it pads, which is not converted for LiteRT")
    options = ("Pool2DOptions", _pooling(windows, padding))
    if windows.padding is not None or counts_pads:
        return writer.write(node, "AVERAGE_POOL_2D", [x], True, options)
    like = Tensor(writer.shape(node.output), turned=True)
    pooled = writer.between(node, "AVERAGE_POOL_2D", [x], like, options)
    shares = np.outer(*(_shares(windows, i) for i in range(2)))[None, :, :, None]
    inputs = [pooled.index, writer.constant(1 / shares)]
    return writer.write(node, "MUL", inputs, True, ("MulOptions", {}))


def _shares(windows: Windows, i: int) -> Array:
    """Share of each window along a dimension that lies on the feature map."""
    first = np.arange(windows.out[i]) * windows.strides[i] - windows.before[i]
    last = np.minimum(first + windows.kernel[i], windows.sizes[i])
    share: Array = (last - np.maximum(first, 0)) / windows.kernel[i]
    return share


def _max_pool(writer: Writer, node: Node) -> None:
    windows = Windows.of(writer, node, node.attributes["kernel_shape"])
    if windows.dilations != (1, 1):
        refuse(node.proto, "is dilated, which is not converted for LiteRT")
    x, padding = windows.edged(writer, node)
    options = ("Pool2DOptions", _pooling(windows, padding))
    writer.write(node, "MAX_POOL_2D", [x], True, options)


def _pooling(windows: Windows, padding: str) -> dict[str, Any]:
    height, width = windows.kernel
    return {"padding": padding, **windows.moves, "filterHeight": height, "filterWidth": width}


def _reshape(writer: Writer, node: Node) -> None:
    shape = writer.shape(node.output)
    channels, *sides = node.x.shape[1:] if len(node.x.shape) == 4 else (0,)
    same_order = node.x.turned and (channels == 1 or max(sides) == 1)
    x = node.x.index if same_order else writer.index(node, node.x, False)
    inputs = [x, writer.constant(shape, np.int32)]
    writer.write(node, "RESHAPE", inputs, False, ("ReshapeOptions", {"newShape": list(shape)}))


def _transpose(writer: Writer, node: Node) -> None:
    permutation = tuple(node.attributes.get("perm", range(len(node.x.shape))[::-1]))
    if permutation == (LAST if node.x.turned else FIRST):
        shape = writer.shape(node.output)
        return writer.alias(node, replace(node.x, shape=shape, turned=not node.x.turned))
    inputs = [writer.index(node, node.x, False), writer.constant(permutation, np.int32)]
    return writer.write(node, "TRANSPOSE", inputs)


def _concat(writer: Writer, node: Node) -> None:
    turned = any(one.turned for one in node.inputs)
    axis = node.attributes["axis"] % len(writer.shape(node.output))
    inputs = [writer.index(node, one, turned) for one in node.inputs]
    options = ("ConcatenationOptions", {"axis": LAST.index(axis) if turned else axis})
    writer.write(node, "CONCATENATION", inputs, turned, options)


def _slice(writer: Writer, node: Node) -> None:
    shape, rank = node.x.shape, len(node.x.shape)
    starts, ends = node.numbers("starts", 1), node.numbers("ends", 2)
    assert starts is not None
    assert ends is not None
    axes = node.numbers("axes", 3) or list(range(len(starts)))
    steps = node.numbers("steps", 4) or [1] * len(starts)
    if min(steps) < 1:
        refuse(node.proto, "goes backwards, which is not converted for LiteRT")
    own = [slice(None)] * rank
    for axis, start, end, step in zip(axes, starts, ends, steps):
        own[axis % rank] = slice(start, end, step)
    found = [one.indices(side) for one, side in zip(own, shape)]
    if any(stop <= start for start, stop, _ in found):
        refuse(node.proto, "leaves nothing, which is not converted for LiteRT")
    found = [found[i] for i in LAST] if node.x.turned else found
    begin, end, step = (writer.constant(one, np.int32) for one in zip(*found))
    if max(steps) == 1:
        size = writer.constant([stop - start for start, stop, _ in found], np.int32)
        return writer.write(
            node, "SLICE", [node.x.index, begin, size], node.x.turned, ("SliceOptions", {})
        )
    inputs = [node.x.index, begin, end, step]
    return writer.write(node, "STRIDED_SLICE", inputs, node.x.turned, ("StridedSliceOptions", {}))


def _pad(writer: Writer, node: Node) -> None:
    pads, value = node.numbers("pads", 1), node.attributes.get("value", node.constant(2))
    if node.attributes.get("mode", b"constant") != b"constant" or value or pads is None:
        refuse(node.proto, "pads with more than zeros, which is not converted for LiteRT")
    rank, axes = len(node.x.shape), node.numbers("axes", 3)
    ends = [(0, 0)] * rank
    for axis, *both in zip(range(rank) if axes is None else axes, pads, pads[len(pads) // 2 :]):
        ends[axis % rank] = (both[0], both[1])
    if min(pads) < 0:
        refuse(node.proto, "cuts, which is not converted for LiteRT")
    own = writer.constant([ends[i] for i in LAST] if node.x.turned else ends, np.int32)
    writer.write(node, "PAD", [node.x.index, own], node.x.turned, ("PadOptions", {}))


def _softmax(writer: Writer, node: Node) -> None:
    shape = node.x.shape
    if softmax_axis(shape, node.attributes.get("axis"), writer.opset) != len(shape) - 1:
        refuse(node.proto, "is not over the last axis, which is not converted for LiteRT")
    x = writer.index(node, node.x, False)
    writer.write(node, "SOFTMAX", [x], False, ("SoftmaxOptions", {"beta": 1.0}))


def _leaky_relu(writer: Writer, node: Node) -> None:
    alpha = float(node.attributes.get("alpha", 0.01))
    options = ("LeakyReluOptions", {"alpha": alpha})
    writer.write(node, "LEAKY_RELU", [node.x.index], node.x.turned, options)


ENUMS = {"padding": "Padding", "fusedActivationFunction": "ActivationFunctionType"}
ACTIVATIONS = {(0.0, np.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
MERGING = ("Add", "BatchNormalization", "Conv", "Div", "Gemm", "MatMul", "Mul", "Sub")
OPERATORS: dict[str, Operator] = {
    "Add": _binary("ADD", "AddOptions"),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _unary("CAST"),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": lambda writer, node: None,  # read before
    "Conv": _conv,
    "Div": _binary("DIV", "DivOptions"),
    "Dropout": lambda writer, node: writer.alias(node, node.x),
    "Flatten": _reshape,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool("MEAN"),
    "GlobalMaxPool": _global_pool("REDUCE_MAX"),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary("HARD_SWISH"),
    "Identity": lambda writer, node: writer.alias(node, node.x),
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _binary("MUL", "MulOptions"),
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _clip,
    "Reshape": _reshape,
    "Sigmoid": _unary("LOGISTIC"),
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _reshape,
    "Sub": _binary("SUB", "SubOptions"),
    "Tanh": _unary("TANH"),
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
