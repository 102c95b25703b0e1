"""An ONNX file that somebody made: its graph without its weights, and where these are.

Nobody else opens a model file, or walks over its tensors. No torch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import onnx
from google.protobuf.message import DecodeError
from onnx.checker import ValidationError
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from deploynas.contents import head, require_own
from deploynas.errors import InvalidInputError, MissingFileError
from deploynas.onboard.folders import place
from deploynas.onboard.runtime import Input

MEMORY_PER_BYTE = 2.0  # a runtime holds a model about twice while it opens it
PROTOBUF_BYTES = 2_000_000_000  # what a single file can hold
SMALL_BYTES = 8_192  # of a constant that may be a shape, which shapes are inferred by
MAX_NAME = 255  # bytes, that a file system takes
_TYPES = frozenset(onnx.helper.get_all_tensor_dtypes())
NO_TENSOR = "no tensor"  # type of a sequence, a map or an optional


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies of its nodes, at any depth."""
    yield graph
    yield from _bodies(graph.node)


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes: of the graph, of bodies, and of functions."""
    for graph in graphs_of(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node
        for graph in _bodies(function.node):
            yield from graph.node


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors that a file holds: weights, and attributes of nodes, wherever they are."""
    graphs = [*graphs_of(model.graph)]
    for function in model.functions:
        graphs += _bodies(function.node)
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in nodes_of(model):
        for attribute in node.attribute:
            yield from attribute_tensors(attribute)


def attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    """The tensors of an attribute; its graphs have their own."""
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    single = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for sparse in (*single, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)


def _bodies(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs_of(graph)


def inputs_of(model: onnx.ModelProto) -> list[Input]:
    """What a model takes; a side that is not fixed is a text: its name, or what stands there."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        Input(
            one.name,
            [_side(dim) for dim in one.type.tensor_type.shape.dim],
            _type(one.type.tensor_type.elem_type),
        )
        for one in model.graph.input
        if one.name not in constants
    ]


def _side(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value > 0 else str(dim.dim_value)
    return str(dim.dim_param or "?")


def _type(elem_type: int) -> str:
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(elem_type).name
    except KeyError:
        return NO_TENSOR


def is_model(path: Path) -> bool:
    """Whether a file is, or is meant to be, a model: by its name, or by its first byte."""
    return path.suffix.lower() == ".onnx" or (path.is_file() and head(path)[:1] == b"\x08")


class ModelFile:
    """A model's graph without its weights.

    Args:
        path: The file.

    Attributes:
        model: What the file holds, weights that are in other files left out.
        external: Those other files.

    Raises:
        MissingFileError: It, or a file that it refers to, is not there.
        InvalidInputError: It is no ONNX file, is damaged, or refers to what it may not.
    """

    def __init__(self, path: Path) -> None:
        require_own(path, "a model")
        self.path = path
        try:
            # whatever the file's name ends in: onnx would read .json as another format
            self.model = onnx.load(path, format="protobuf", load_external_data=False)
        except DecodeError:
            # the first field of every model is its format's version
            how = "cut off or damaged" if head(path)[:1] == b"\x08" else "not an ONNX file"
            raise InvalidInputError(f"{path} is {how}") from None
        except OSError as error:
            raise InvalidInputError(f"cannot read {path}: {error.strerror}") from None
        if not self.model.graph.node:
            raise InvalidInputError(f"{path} is not an ONNX file, or holds no operators")
        self.external = self._external()

    def _external(self) -> list[Path]:
        """Files that hold its weights; all of what it wants of them is there."""
        ends: dict[str, int] = {}
        for tensor in tensors_of(self.model):
            if tensor.data_type not in _TYPES:
                raise InvalidInputError(
                    f"{self.path} is damaged: {tensor.name!r} is of no type that there is"
                )
            if uses_external_data(tensor):
                entries = {entry.key: entry.value for entry in tensor.external_data}
                name = entries.get("location", "")
                try:
                    end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
                except ValueError:
                    raise InvalidInputError(f"{self.path} is damaged at {tensor.name!r}") from None
                ends[name] = max(end, ends.get(name, 0))
        found = []
        for name, end in sorted(ends.items()):
            file = self.path.parent / name
            if not file.is_relative_to(self.path.parent) or ".." in Path(name).parts or not name:
                raise InvalidInputError(f"{self.path} keeps its weights outside its own folder")
            if len(os.fsencode(name)) > MAX_NAME or not file.is_file():
                raise MissingFileError(
                    f"{self.path} keeps its weights in {name}, which is not beside it"
                )
            size = file.stat().st_size
            if size < end:
                require_own(file, f"the weights of {self.path}")
                raise InvalidInputError(
                    f"{file}, the weights of {self.path}, is cut off: it has {size:,} bytes, and "
                    f"{end:,} are needed"
                )
            found.append(file)
        return found

    @property
    def num_bytes(self) -> int:
        """Of the file and of all that it refers to."""
        return sum(file.stat().st_size for file in [self.path, *self.external])

    @property
    def inputs(self) -> list[Input]:
        """See :func:`inputs_of`."""
        return inputs_of(self.model)

    @property
    def metadata(self) -> dict[str, str]:
        """What whoever wrote it noted."""
        return {entry.key: entry.value for entry in self.model.metadata_props}

    @property
    def texts(self) -> list[str]:
        """Names of outputs that are text, or sequences of it."""
        return [
            one.name
            for one in self.model.graph.output
            if onnx.TensorProto.STRING
            in (
                one.type.tensor_type.elem_type,
                one.type.sequence_type.elem_type.tensor_type.elem_type,
            )
        ]

    @property
    def is_quantized(self) -> bool:
        """Whether any of its nodes rounds to whole numbers, or takes such."""
        return any(
            node.op_type.endswith(("QuantizeLinear", "Integer"))
            or node.op_type.startswith("QLinear")
            for node in nodes_of(self.model)
        )

    def shapes(self, typed: Sequence[str]) -> dict[str, list[int]]:
        """Every tensor input's shape, those that are open as typed.

        Args:
            typed: ``1,3,224,224`` for a model of one input, or ``NAME=1,3,224,224`` each.

        Raises:
            InvalidInputError: A shape is neither fixed nor typed, or does not fit.
        """
        inputs = {one.name: one for one in self.inputs if one.type != NO_TENSOR}
        given = dict(_parsed(text, list(inputs)) for text in typed)
        for name, (_, shape, _) in inputs.items():
            own = f"[{', '.join(map(str, shape))}]"
            sides = given.get(name)
            if sides is None:
                if all(isinstance(side, int) for side in shape):
                    given[name] = cast("list[int]", list(shape))
                    continue
                usual = (1, 3, 224, 224)
                example = ",".join(
                    str(side if isinstance(side, int) else usual[axis] if len(shape) == 4 else 1)
                    for axis, side in enumerate(shape)
                )
                which = f"{name}=" if len(inputs) > 1 else ""
                raise InvalidInputError(
                    f"input {name!r} of {self.path} has the dynamic shape {own}",
                    f"say which is meant, for example --input-shape {which}{example}",
                )
            fits = len(sides) == len(shape) and all(
                side == fixed or not isinstance(fixed, int)
                for side, fixed in zip(sides, shape, strict=True)
            )
            if not fits:
                raise InvalidInputError(
                    f"--input-shape {','.join(map(str, sides))} does not fit the input {name!r}: "
                    f"{own}"
                )
        return given

    def with_shapes(self, typed: Sequence[str]) -> onnx.ModelProto:
        """The graph with all its inputs' shapes fixed; see :meth:`shapes`."""
        given = self.shapes(typed)
        if all(given.get(one.name, one.shape) == one.shape for one in self.inputs):
            return self.model
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for value in model.graph.input:
            for dim, side in zip(
                value.type.tensor_type.shape.dim, given.get(value.name, ()), strict=False
            ):
                dim.dim_value = side
        # what was inferred for other shapes would contradict
        del model.graph.value_info[:]
        for value in model.graph.output:
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()
        return model

    def with_small_weights(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """``model`` with those constants in it that shapes are inferred by."""
        self._load(model, SMALL_BYTES)
        return model

    def fixed(self, typed: Sequence[str], folder: Path, *, apart: bool = False) -> Path:
        """The file to measure: itself, or a copy in ``folder``.

        A copy has fixed shapes, and its weights in it unless they are too many for one file.

        Args:
            typed: See :meth:`shapes`.
            folder: A temporary one.
            apart: Never the file itself, so that something can be put beside it.

        Raises:
            InvalidInputError: See :meth:`shapes`; or it does not fit into memory.
        """
        require_memory(self.path, self.num_bytes)
        model = self.with_shapes(typed)
        is_big = self.num_bytes >= PROTOBUF_BYTES
        if model is self.model and (not self.external or is_big) and not apart:
            return self.path
        path = folder / self.path.name
        if is_big:
            for file in self.external:
                place(file, folder / file.relative_to(self.path.parent))
        else:  # one file can be sent to a device elsewhere
            whole = onnx.ModelProto()
            whole.CopyFrom(model)
            model = whole
            self._load(model, PROTOBUF_BYTES)
        path.write_bytes(model.SerializeToString())
        return path

    def _load(self, model: onnx.ModelProto, max_bytes: int) -> None:
        for tensor in tensors_of(model):
            if uses_external_data(tensor) and num_bytes(tensor) <= max_bytes:
                try:
                    load_external_data_for_tensor(tensor, str(self.path.parent))
                    tensor.ClearField("data_location")
                except (ValueError, OSError, ValidationError):
                    raise InvalidInputError(
                        f"the weights that {self.path} keeps in "
                        f"{', '.join(file.name for file in self.external)} are cut off, or "
                        "elsewhere"
                    ) from None

    def require_own_weights(self, other: Any) -> None:
        """Refuse another file that reads the same weights: one of the two has lost its own.

        Raises:
            InvalidInputError: Names the file that both read.
        """
        if self.path.resolve() == other.path.resolve():
            return
        own = {file.resolve() for file in self.external}
        for file in other.external:
            if file.resolve() in own:
                raise InvalidInputError(
                    f"{self.path} and {other.path} both read the weights of {file.name}: one of "
                    "them would run on the other's",
                    "put each beside its own weights, in two folders: see docs/gate.md",
                )


def num_bytes(tensor: onnx.TensorProto) -> int:
    """Of a tensor's values, wherever they are."""
    count = 1
    for side in tensor.dims:
        count *= side
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return (count + 1) // 2
    return int(count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _parsed(text: str, names: list[str]) -> tuple[str, list[int]]:
    if not names:
        raise InvalidInputError(f"--input-shape {text!r}: the model takes no input")
    name, _, sides = text.rpartition("=")
    if not name:
        if len(names) != 1:
            raise InvalidInputError(
                f"the model has the inputs {', '.join(names)}: write --input-shape NAME={sides}"
            )
        name = names[0]
    if name not in names:
        raise InvalidInputError(f"the model has no input {name!r}, but {', '.join(names)}")
    try:
        numbers = [int(side) for side in sides.replace("x", ",").split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise InvalidInputError(f"--input-shape {text!r} is not a list like 1,3,224,224")
    return name, numbers


def require_memory(path: Path, size: int) -> None:
    """Refuse what this machine could not hold, before it tries."""
    available = None
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith("MemAvailable")]
        available = int(line.split()[1]) * 1024
    if available is None and hasattr(os, "sysconf"):
        with contextlib.suppress(OSError, ValueError):
            available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if available is not None and size * MEMORY_PER_BYTE > available:
        raise InvalidInputError(
            f"{path} is too large for this machine: {size / 1e9:.1f} GB, and "
            f"{available / 1e9:.1f} GB of memory are free"
        )
