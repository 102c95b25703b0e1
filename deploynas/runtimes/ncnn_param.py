"""ONNX -> ncnn: the text of its layers (``.param``) and their weights (``.bin``)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from deploynas.errors import InvalidInputError
from deploynas.onboard.runtime import Array
from deploynas.runtimes.source import array_of, opset_of, refusing, softmax_axis

MAGIC = "7767517"
INT8 = "ncnn runs int8 networks of its own quantizer alone"
GREATER, LESS = 4, 5  # of two numbers: of BinaryOp
ADD, SUB, MUL, DIV = range(4)
TURNED = {ADD: ADD, SUB: 7, MUL: MUL, DIV: 8}  # with the second operand first


@dataclass
class Layer:
    """A line of a ``.param`` file, and what it has in the ``.bin`` file."""

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    params: dict[int, Any]
    weights: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class Network:
    """The two files of a network."""

    param: str
    weights: bytes


def lacking(operator: str) -> str:
    """Why an ONNX operator is not for ncnn; empty where it is."""
    if operator in WRITERS:
        return ""
    return INT8 if operator.endswith("QuantizeLinear") else "no layer of ncnn is known for it here"


def written(model: Path) -> Network:
    """An ONNX file as ncnn's own.

    A blob has no batch. What pools over the whole image gives a vector, as in ncnn, and a 1 x 1
    convolution of one is an inner product. Activations join the convolution before them.

    Raises:
        InvalidInputError: It is no ONNX file, or has something that ncnn lacks: names the node.
    """
    try:
        whole = onnx.load(model, format="protobuf")
        whole = onnx.shape_inference.infer_shapes(whole, strict_mode=True)
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        raise InvalidInputError("it is no ONNX file, or is damaged") from None
    return _Writer(whole).network()


class _Writer:
    """A network in ncnn's terms, under construction."""

    def __init__(self, model: Any) -> None:
        graph = model.graph
        self.opset = opset_of(model)
        self._inputs, self._outputs = graph.input, [one.name for one in graph.output]
        self._nodes = _needed(graph.node, self._outputs)
        self.constants: dict[str, Array] = {one.name: array_of(one) for one in graph.initializer}
        self.layers: list[Layer] = []
        self._maker: dict[str, Layer] = {}  # blob -> its layer
        self._twins: dict[tuple[object, ...], str] = {}  # kind, what it reads and how -> blob
        self._alias: dict[str, str] = {}  # what is the same blob in ncnn
        self.vectors: set[str] = set()  # blobs of (1, c, 1, 1) that are vectors in ncnn
        self._readers = Counter(name for node in self._nodes for name in node.input)
        self._readers.update(self._outputs)
        self.shapes: dict[str, list[int]] = {
            one.name: [side.dim_value for side in one.type.tensor_type.shape.dim]
            for one in (*graph.input, *graph.value_info, *graph.output)
        }

    def network(self) -> Network:
        """Both files."""
        for one in self._inputs:
            if one.name not in self.constants:
                self._input(one)
        for node in self._nodes:
            known = _Node(node, self)
            if sum(map(bool, node.output)) > 1:
                raise known.refused("ncnn has only the first of its outputs")
            if reason := lacking("" if node.domain not in ("", "ai.onnx") else node.op_type):
                raise known.refused(reason)
            with refusing(known.refused):
                WRITERS[node.op_type](self, known)
        for name in self._outputs:
            if not self.is_made(self.blob(name)):
                raise InvalidInputError(f"output {name}: no node computes it")
        for name in self._outputs:
            self._output(name)
        layers = self._with_splits()
        blobs = sum(len(layer.outputs) for layer in layers)
        lines = [MAGIC, f"{len(layers)} {blobs}", *map(_line, layers)]
        return Network("\n".join(lines) + "\n", b"".join(b"".join(x.weights) for x in layers))

    def _input(self, one: Any) -> None:
        shape, kind = self.shapes[one.name], one.type.tensor_type.elem_type
        if kind != TensorProto.FLOAT:
            raise InvalidInputError(f"input {one.name}: ncnn takes float32 alone")
        if shape[:1] != [1] or not all(shape) or not 2 <= len(shape) <= 4:
            raise InvalidInputError(f"input {one.name}: ncnn takes one image of a fixed size")
        sides = dict(zip((0, 1, 2), reversed(shape[1:])))
        self.add("Input", one.name, [], one.name, sides)

    def _output(self, name: str) -> None:
        """Under its own name, in its own shape, in its order, and read by nothing else."""
        blob = self.blob(name)
        if blob in self.vectors and len(self.shapes[name]) == 4:
            blob = self.cube(blob)
        if blob == name and len(self._outputs) == 1:
            return
        inner = {name: f"{name}.inner"}
        for layer in self.layers:
            layer.inputs = [inner.get(one, one) for one in layer.inputs]
            layer.outputs = [inner.get(one, one) for one in layer.outputs]
        blob = inner.get(blob, blob)
        if name not in self._alias:  # other outputs may be the same blob
            self._alias[name] = inner[name]
            if name in self.vectors:
                self.vectors.add(inner[name])
        self.add("Noop", f"{name}.output", [blob], name, {})

    def blob(self, name: str) -> str:
        """What ncnn calls a value."""
        while name in self._alias:
            name = self._alias[name]
        return name

    def add(
        self, kind: str, name: str, inputs: Sequence[str], output: str,
        params: Mapping[int, Any], weights: Sequence[bytes] = (),
    ) -> None:  # fmt: skip
        """Append a layer that reads blobs, unless there is the same already."""
        layer = Layer(kind, name, list(inputs), [output], dict(params), list(weights))
        twin = self._twins.setdefault((kind, *inputs, str(params)), output)
        if not weights and inputs and kind != "Noop" and twin != output:
            return self.same(output, twin)
        self.layers.append(layer)
        self._maker[output] = layer
        return None

    def same(self, name: str, blob: str) -> None:
        """A value that ncnn has already."""
        self._alias[name] = blob

    def is_made(self, blob: str) -> bool:
        """Whether a layer makes it; constants have none."""
        return blob in self._maker

    def cube(self, blob: str) -> str:
        """A vector as an image of one pixel; anything else as it is."""
        if blob not in self.vectors:
            return blob
        cube = f"{blob}.cube"
        if cube not in self._maker:
            self.add("Reshape", cube, [blob], cube, {0: 1, 1: 1, 2: -1})
        return cube

    def only_read(self, name: str, kinds: Sequence[str]) -> Layer | None:
        """The layer that makes a value which one node alone reads, where it is one of these."""
        blob = self.blob(name)
        layer = self._maker.get(blob)
        if layer is None or layer.kind not in kinds or self._readers[name] != 1:
            return None
        return layer if layer.outputs == [name] else None

    def replace_output(self, layer: Layer, name: str) -> None:
        """Let a layer make ``name``, as what made it has joined it."""
        (before,) = layer.outputs
        layer.outputs = [name]
        self._maker[name] = layer
        if before in self.vectors:
            self.vectors.add(name)

    def _with_splits(self) -> list[Layer]:
        """The layers, with a ``Split`` behind each blob that several read."""
        readers = Counter(blob for layer in self.layers for blob in layer.inputs)
        taken, found = Counter[str](), []
        for layer in self.layers:
            for i, blob in enumerate(layer.inputs):
                if readers[blob] > 1:
                    layer.inputs[i] = f"{blob}.split.{taken[blob]}"
                    taken[blob] += 1
            found.append(layer)
            for blob in layer.outputs:
                if (number := readers[blob]) > 1:
                    copies = [f"{blob}.split.{i}" for i in range(number)]
                    found.append(Layer("Split", f"{blob}.split", [blob], copies, {}))
        return found


def _needed(nodes: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
    """The nodes that outputs depend on, in their order."""
    wanted, found = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            found.append(node)
    return found[::-1]


class _Node:
    """An ONNX node, as the functions below ask about it."""

    def __init__(self, node: Any, writer: _Writer) -> None:
        self.operator, self.inputs = str(node.op_type), list(node.input)
        self.output = str(node.output[0])
        self.name = str(node.name) or self.output
        self.attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        self._writer, self._constants, self._shapes = writer, writer.constants, writer.shapes

    def refused(self, reason: str) -> InvalidInputError:
        """What is said of a node that ncnn lacks."""
        return InvalidInputError(f"{self.operator} ({self.name}): {reason}")

    def get(self, name: str, default: Any) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def blob(self, place: int = 0) -> str:
        """What ncnn calls a computed input.

        Raises:
            InvalidInputError: It is a constant.
        """
        blob = self._writer.blob(self.inputs[place])
        if not self._writer.is_made(blob):
            raise self.refused(f"its input {self.inputs[place]} must not be a constant")
        return blob

    def whole_blob(self, place: int = 0) -> str:
        """As :meth:`blob`, with the sides that the input has in ONNX."""
        blob = self.blob(place)
        return self._writer.cube(blob) if len(self.shape(place)) == 4 else blob

    def numbers(self, name: str, place: int) -> list[int] | None:
        """A list of integers: the attribute of that name, or a constant."""
        found = self.get(name, None)
        if found is None and (constant := self.constant(place)) is not None:
            found = constant.ravel().tolist()
        return None if found is None else [int(one) for one in found]

    def constant(self, place: int) -> Array | None:
        """An input that the file holds; None where there is no such input.

        Raises:
            InvalidInputError: It is computed.
        """
        if place >= len(self.inputs) or not self.inputs[place]:
            return None
        if self.inputs[place] not in self._constants:
            raise self.refused(f"its input {self.inputs[place]} must be a constant")
        return self._constants[self.inputs[place]]

    def shape(self, place: int) -> list[int]:
        """Of an input."""
        name = self.inputs[place]
        if name in self._constants:
            return list(self._constants[name].shape)
        shape = self._shapes.get(name, [])
        if not shape or not all(shape):
            raise self.refused(f"the shape of its input {name} is not fixed")
        return shape

    def axis(self, default: int) -> int:
        """Which side of the blob, that has no batch, ``axis`` is."""
        axis = int(self.get("axis", default)) % len(self.shape(0))
        if axis == 0:
            raise self.refused("ncnn's blobs have no batch to work along")
        return axis - 1

    def require(self, **values: Any) -> None:
        """Refuse attributes that are not these, their defaults."""
        for name, value in values.items():
            if self.get(name, value) != value:
                raise self.refused(f"ncnn has no {name}={self.get(name, value)}")


def _line(layer: Layer) -> str:
    params = []
    for key, value in layer.params.items():
        if isinstance(value, list):
            params.append(f"{-23300 - key}={','.join(map(_number, [len(value), *value]))}")
        else:
            params.append(f"{key}={_number(value)}")
    names = ["_".join(name.split()) for name in (layer.name, *layer.inputs, *layer.outputs)]
    sizes = [str(len(layer.inputs)), str(len(layer.outputs))]
    return " ".join([layer.kind, names[0], *sizes, *names[1:], *params])


def _number(value: float) -> str:
    """As short as float32 can be: older versions read 15 characters of a number."""
    if isinstance(value, int):
        return str(value)
    return np.format_float_scientific(np.float32(value), trim="0")


def _floats(array: Array, flagged: bool = False) -> bytes:
    """Numbers of a ``.bin`` file: where it may have another type, four zero bytes say float32."""
    return b"\0\0\0\0" * flagged + np.ascontiguousarray(array, "<f4").tobytes()


def _window(node: _Node, kernel: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Sides (height, width) of kernel, stride, dilation and of what is padded before and after."""
    if len(kernel) != 2:
        raise node.refused("only windows of two sides are known here")
    strides, dilations = node.get("strides", [1, 1]), node.get("dilations", [1, 1])
    pads = list(node.get("pads", [0] * 4))
    auto = node.get("auto_pad", b"NOTSET").decode()
    if auto.startswith("SAME"):
        for i, side in enumerate(node.shape(0)[2:]):
            reach = (kernel[i] - 1) * dilations[i] + 1
            total = max(0, (math.ceil(side / strides[i]) - 1) * strides[i] + reach - side)
            first = total // 2 if auto == "SAME_UPPER" else total - total // 2
            pads[i], pads[i + 2] = first, total - first
    pairs = {
        "kernel": kernel, "stride": strides, "dilation": dilations,
        "before": pads[:2], "after": pads[2:],
    }  # fmt: skip
    return {name: (int(pair[0]), int(pair[1])) for name, pair in pairs.items()}


def _conv(writer: _Writer, node: _Node) -> None:
    weight, bias = node.constant(1), node.constant(2)
    assert weight is not None
    groups, outputs = int(node.get("group", 1)), len(weight)
    window = _window(node, weight.shape[2:])
    weights = [_floats(weight, flagged=True)] + ([] if bias is None else [_floats(bias)])
    blob, is_padded = node.blob(), any(window["before"] + window["after"])
    if blob in writer.vectors and window["kernel"] == (1, 1) and groups == 1 and not is_padded:
        params = {0: outputs, 1: int(bias is not None), 2: weight.size}
        writer.add("InnerProduct", node.name, [blob], node.output, params, weights)
        writer.vectors.add(node.output)
        return
    params = {0: outputs}
    for key, name in {1: "kernel", 2: "dilation", 3: "stride", 4: "before"}.items():
        params |= {key: window[name][1], key + 10: window[name][0]}
    params |= {15: window["after"][1], 16: window["after"][0]}
    params |= {5: int(bias is not None), 6: weight.size}
    if groups > 1:
        params[7] = groups
    kind = "Convolution" if groups == 1 else "ConvolutionDepthWise"
    writer.add(kind, node.name, [writer.cube(blob)], node.output, params, weights)


def _linear(writer: _Writer, node: _Node) -> None:
    node.require(alpha=1.0, beta=1.0, transA=0)
    weight, bias = node.constant(1), node.constant(2)
    assert weight is not None
    if weight.ndim != 2 or len(node.shape(0)) != 2:
        raise node.refused("only the product of a vector and a matrix is known here")
    weight = weight if node.get("transB", 0) else weight.T
    weights = [_floats(weight, flagged=True)]
    if bias is not None:
        weights.append(_floats(np.broadcast_to(bias, (1, len(weight)))))
    params = {0: len(weight), 1: int(bias is not None), 2: weight.size}
    writer.add("InnerProduct", node.name, [node.blob()], node.output, params, weights)


def _activation(
    kind: str, fused: int, *names: str, defaults: Sequence[float] = ()
) -> Callable[[_Writer, _Node], None]:
    """A function of every number.

    Args:
        kind: Of ncnn's layer.
        fused: Its number inside a convolution; 0 where a convolution has it not.
        names: Attributes, in the order of ncnn's parameters.
        defaults: Their values where a node does not say.
    """

    def write(writer: _Writer, node: _Node) -> None:
        values = [float(node.get(name, value)) for name, value in zip(names, defaults)]
        _activate(writer, node, kind, fused, values)

    return write


def _activate(
    writer: _Writer, node: _Node, kind: str, fused: int, values: Sequence[float]
) -> None:
    maker = writer.only_read(node.inputs[0], FUSING) if fused else None
    if maker is not None and 9 not in maker.params:
        maker.params[9] = fused
        if values:
            maker.params[10] = list(values)
        writer.replace_output(maker, node.output)
        return
    blob = node.blob()
    writer.add(kind, node.name, [blob], node.output, dict(enumerate(values)))
    if blob in writer.vectors:
        writer.vectors.add(node.output)


def _hard_swish(writer: _Writer, node: _Node) -> None:
    _activate(writer, node, "HardSwish", 6, [1 / 6, 0.5])


def _clip(writer: _Writer, node: _Node) -> None:
    low, high = node.get("min", None), node.get("max", None)
    if (constant := node.constant(1)) is not None:
        low = float(constant)
    if (constant := node.constant(2)) is not None:
        high = float(constant)
    if low is not None and high is not None:
        return _activate(writer, node, "Clip", 3, [low, high])
    if low is None and high is None:
        return _same(writer, node)
    # the number that stands for no bound is one that not every version reads
    number, bound = (GREATER, low) if high is None else (LESS, high)
    return _activate(writer, node, "BinaryOp", 0, [number, 1, bound])


def _binary(number: int) -> Callable[[_Writer, _Node], None]:
    """An operator of two values, by its number in ncnn."""

    def write(writer: _Writer, node: _Node) -> None:
        if _scaled(writer, node) or _with_number(writer, node, number):
            return
        computed = [i for i, name in enumerate(node.inputs) if name not in writer.constants]
        if len({len(node.shape(i)) for i in computed}) > 1:
            raise node.refused("ncnn has no sides for values of different ranks")
        blobs = [node.blob(i) if i in computed else _memory(writer, node, i) for i in (0, 1)]
        if all(blob in writer.vectors for blob in blobs):
            writer.vectors.add(node.output)
        elif len(node.shape(computed[0])) == 4:
            channels = {([1] * 3 + node.shape(i))[-3] for i in (0, 1)}
            if len(channels) > 1:  # otherwise ncnn takes a vector for channels
                blobs = [writer.cube(blob) for blob in blobs]
        writer.add("BinaryOp", node.name, blobs, node.output, {0: number})

    return write


def _with_number(writer: _Writer, node: _Node, number: int) -> bool:
    """A constant of one number, which is a part of the layer."""
    for place, name in enumerate(node.inputs):
        constant = writer.constants.get(name)
        if constant is None or constant.size != 1 or constant.ndim > len(node.shape(1 - place)):
            continue
        blob = node.blob(1 - place)
        params = {0: number if place else TURNED[number], 1: 1, 2: float(constant.item())}
        writer.add("BinaryOp", node.name, [blob], node.output, params)
        if blob in writer.vectors:
            writer.vectors.add(node.output)
        return True
    return False


def _scaled(writer: _Writer, node: _Node) -> bool:
    """A constant a channel that is multiplied, and then added: one layer of ncnn's."""
    places = [i for i, name in enumerate(node.inputs) if name in writer.constants]
    if len(places) != 1 or node.operator not in ("Mul", "Add"):
        return False
    constant, name = writer.constants[node.inputs[places[0]]], node.inputs[1 - places[0]]
    shape = node.shape(1 - places[0])
    if len(shape) != 4 or constant.shape not in ((shape[1], 1, 1), (1, shape[1], 1, 1)):
        return False
    if node.operator == "Add":
        maker = writer.only_read(name, ("Scale",))
        if maker is None or maker.params[1]:
            return False
        maker.params[1] = 1
        maker.weights.append(_floats(constant))
        writer.replace_output(maker, node.output)
        return True
    blob = node.whole_blob(1 - places[0])
    params = {0: shape[1], 1: 0}
    writer.add("Scale", node.name, [blob], node.output, params, [_floats(constant)])
    return True


def _memory(writer: _Writer, node: _Node, place: int) -> str:
    """A constant as a blob."""
    constant = writer.constants[node.inputs[place]]
    sides = [side for i, side in enumerate(constant.shape) if side != 1 or i]
    other = len(node.shape(1 - place)) - 1
    if constant.ndim == other + 1 and constant.shape[0] == 1:
        sides = list(constant.shape[1:])
    else:
        sides = list(constant.shape)
    if len(sides) > other:
        raise node.refused("its constant has a batch")
    sides = [1] * (other - len(sides)) + sides
    name = f"{node.name}.constant.{place}"
    params = dict(zip((0, 1, 2), reversed(sides)))
    writer.add("MemoryData", name, [], name, params, [_floats(constant)])
    return name


def _pool(kind: int) -> Callable[[_Writer, _Node], None]:
    """A pooling of windows: 0 the greatest, 1 the mean."""

    def write(writer: _Writer, node: _Node) -> None:
        node.require(ceil_mode=0, dilations=[1, 1], storage_order=0)
        window = _window(node, node.get("kernel_shape", []))
        params = {0: kind}
        for key, name in {1: "kernel", 2: "stride", 3: "before"}.items():
            params |= {key: window[name][1], key + 10: window[name][0]}
        params |= {14: window["after"][1], 15: window["after"][0], 5: 1}
        if kind:
            params[6] = int(node.get("count_include_pad", 0))
        blob = node.whole_blob()
        writer.add("Pooling", node.name, [blob], node.output, params)

    return write


def _global_pool(kind: int) -> Callable[[_Writer, _Node], None]:
    """A pooling of whole channels: 0 the greatest, 1 the mean."""

    def write(writer: _Writer, node: _Node) -> None:
        rank, axes = len(node.shape(0)), [2, 3]
        if node.operator == "ReduceMean":
            axes = node.numbers("axes", 1) or []
        if rank != 4 or sorted(axis % rank for axis in axes) != [2, 3]:
            raise node.refused("ncnn pools whole channels alone")
        blob = node.blob()
        if blob in writer.vectors:
            return writer.same(node.output, blob)
        writer.add("Pooling", node.name, [blob], node.output, {0: kind, 4: 1})
        writer.vectors.add(node.output)
        return None

    return write


def _concat(writer: _Writer, node: _Node) -> None:
    blobs = [node.whole_blob(place) for place in range(len(node.inputs))]
    writer.add("Concat", node.name, blobs, node.output, {0: node.axis(1)})


def _slice(writer: _Writer, node: _Node) -> None:
    shape = node.shape(0)
    starts, ends = node.numbers("starts", 1), node.numbers("ends", 2)
    if starts is None or ends is None:
        raise node.refused("it says not where to cut")
    axes, steps = node.numbers("axes", 3), node.numbers("steps", 4)
    axes = [axis % len(shape) for axis in (range(len(starts)) if axes is None else axes)]
    if 0 in axes or set(steps or [1]) != {1}:
        raise node.refused("ncnn cuts neither batches nor with steps")
    cut = [slice(a, b).indices(shape[axis]) for a, b, axis in zip(starts, ends, axes)]
    if any(end <= first for first, end, _ in cut):
        raise node.refused("it leaves nothing")
    params = {
        9: [first for first, _, _ in cut], 10: [end for _, end, _ in cut],
        11: [axis - 1 for axis in axes],
    }  # fmt: skip
    writer.add("Crop", node.name, [node.whole_blob()], node.output, params)


def _reshape(writer: _Writer, node: _Node) -> None:
    """``Flatten``, ``Reshape``, ``Squeeze``: what keeps the order of numbers, and the batch."""
    blob, shape = node.blob(), writer.shapes.get(node.output, [])
    if shape[:1] != [1] or not 2 <= len(shape) <= 4 or not all(shape):
        raise node.refused(f"the shape {shape} is not one image or vector of a fixed size")
    if len(shape) == 2:
        if blob in writer.vectors or len(node.shape(0)) == 2:
            return writer.same(node.output, blob)
        writer.add("Flatten", node.name, [blob], node.output, {})
    else:
        sides = dict(zip((0, 1, 2), reversed(shape[1:])))
        writer.add("Reshape", node.name, [blob], node.output, sides)
    return None


def _softmax(writer: _Writer, node: _Node) -> None:
    axis = softmax_axis(node.shape(0), node.get("axis", None), writer.opset)
    if not axis:
        raise node.refused("ncnn has it along one axis alone, and not along a batch")
    writer.add("Softmax", node.name, [node.whole_blob()], node.output, {0: axis - 1, 1: 1})


def _same(writer: _Writer, node: _Node) -> None:
    writer.same(node.output, node.blob())


FUSING = ("Convolution", "ConvolutionDepthWise", "InnerProduct")
WRITERS: dict[str, Callable[[_Writer, _Node], None]] = {
    "Add": _binary(ADD),
    "AveragePool": _pool(1),
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _binary(DIV),
    "Dropout": _same,
    "Flatten": _reshape,
    "Gemm": _linear,
    "GlobalAveragePool": _global_pool(1),
    "GlobalMaxPool": _global_pool(0),
    "HardSigmoid": _activation("HardSigmoid", 0, "alpha", "beta", defaults=(0.2, 0.5)),
    "HardSwish": _hard_swish,
    "Identity": _same,
    "LeakyRelu": _activation("ReLU", 2, "alpha", defaults=(0.01,)),
    "MatMul": _linear,
    "MaxPool": _pool(0),
    "Mul": _binary(MUL),
    "ReduceMean": _global_pool(1),
    "Relu": _activation("ReLU", 1),
    "Reshape": _reshape,
    "Sigmoid": _activation("Sigmoid", 4),
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _reshape,
    "Sub": _binary(SUB),
    "Tanh": _activation("TanH", 0),
}
