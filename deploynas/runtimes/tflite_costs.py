"""What each operator of a ``.tflite`` file costs, as :mod:`deploynas.graph.costs` counts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from deploynas.errors import InvalidInputError, MissingFileError
from deploynas.graph.costs import NodeCost, Shape, peak_bytes

NO_PRODUCTS = frozenset(
    ("ABS", "ADD", "ARG_MAX", "AVERAGE_POOL_2D", "CAST", "CONCATENATION", "DEPTH_TO_SPACE",
     "DEQUANTIZE", "DIV", "ELU", "EXP", "EXPAND_DIMS", "GATHER", "GELU", "HARD_SWISH",
     "LEAKY_RELU", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MIRROR_PAD", "MUL",
     "NEG", "PACK", "PAD", "PADV2", "POW", "PRELU", "QUANTIZE", "REDUCE_MAX", "RELU", "RELU6",
     "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SHAPE",
     "SLICE", "SOFTMAX", "SPLIT", "SQRT", "SQUARED_DIFFERENCE", "SQUEEZE", "STRIDED_SLICE", "SUB",
     "SUM", "TANH", "TRANSPOSE", "UNPACK")
)  # fmt: skip
BYTES = {"FLOAT32": 4, "FLOAT16": 2, "FLOAT64": 8, "INT32": 4, "INT64": 8, "INT16": 2}


def node_costs(path: Path) -> tuple[list[NodeCost], int]:
    """Every operator's cost, in order, and the peak bytes of live feature maps.

    Shapes are the file's, channels last. Constants count as weights where they are first used.

    Raises:
        MissingFileError, InvalidInputError: It is not there, or no such file.
        ImportError: ``ai-edge-litert`` is not installed.
    """
    from ai_edge_litert import schema_py_generated as schema

    if not path.is_file():
        raise MissingFileError(f"{path} does not exist")
    content = path.read_bytes()
    damaged = InvalidInputError(f"{path} is not a .tflite file, or is damaged")
    if content[4:8] != b"TFL3":
        raise damaged
    try:
        return _costs(schema, schema.ModelT.InitFromPackedBuf(content, 0))
    except Exception:  # of what the reader finds in a file that was cut
        raise damaged from None


def _costs(schema: Any, model: Any) -> tuple[list[NodeCost], int]:
    kinds = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    types = {value: name for name, value in vars(schema.TensorType).items()}
    (graph, *_) = model.subgraphs
    shapes: list[Shape] = [
        () if one.shape is None else tuple(map(int, one.shape)) for one in graph.tensors
    ]
    sizes = {
        i: math.prod(shapes[i]) * BYTES.get(types[one.type], 1)
        for i, one in enumerate(graph.tensors)
    }
    constants = {
        i for i, one in enumerate(graph.tensors) if model.buffers[one.buffer].data is not None
    }
    costs, counted = [], set()
    for one in graph.operators:
        code = model.operatorCodes[one.opcodeIndex]
        kind = kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]
        inputs = [int(i) for i in one.inputs if i >= 0]
        outputs = [int(i) for i in one.outputs]
        own = [i for i in dict.fromkeys(inputs) if i in constants and i not in counted]
        counted.update(own)
        macs = _macs(kind, [shapes[i] for i in inputs], shapes[outputs[0]])
        costs.append(
            NodeCost(
                name=graph.tensors[outputs[0]].name.decode(),
                kind=kind,
                macs=macs,
                counted=macs > 0 or kind in NO_PRODUCTS,
                num_weights=sum(math.prod(shapes[i]) for i in own),
                weight_bytes=sum(sizes[i] for i in own),
                input_shape=shapes[inputs[0]] if inputs else (),
                output_shape=shapes[outputs[0]],
                output_bytes=sum(sizes[i] for i in outputs),
            )
        )
    steps = [(set(map(int, one.inputs)), set(map(int, one.outputs))) for one in graph.operators]
    ends = set(map(int, graph.inputs)), set(map(int, graph.outputs))
    return costs, peak_bytes(steps, sizes, *ends)


def _macs(kind: str, inputs: list[Shape], output: Shape) -> int:
    if kind == "CONV_2D":
        return math.prod(output) * math.prod(inputs[1][1:])
    if kind == "DEPTHWISE_CONV_2D":
        return math.prod(output) * math.prod(inputs[1][1:3])
    if kind == "FULLY_CONNECTED":
        return math.prod(output) * inputs[1][1]
    return 0
