"""LiteRT, which was TensorFlow Lite: what Android runs, on any machine that runs Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from deploynas.onboard.runtime import Array, Feeds, Input, PythonRuntime, Session

CHANNELS_LAST = "deploynas.channels_last"  # metadata: the tensors that ONNX has channels first


class LiteRt(PythonRuntime):
    """See :class:`~deploynas.onboard.runtime.PythonRuntime`.

    Its processor kernels are XNNPACK's, and those of its own for what XNNPACK lacks.
    """

    name = "litert"
    package = "ai-edge-litert"
    devices: ClassVar[Mapping[str, str]] = {"litert": "this machine through LiteRT and XNNPACK"}
    installs = "ai-edge-litert, by pip (some 60 MB)"
    suffix = ".tflite"
    oldest = (2, 0)

    def version(self) -> str:
        """See :class:`~deploynas.onboard.runtime.PythonRuntime`."""
        import ai_edge_litert.interpreter

        return str(ai_edge_litert.__version__)

    def providers(self) -> Sequence[str]:
        """See :class:`~deploynas.onboard.runtime.PythonRuntime`."""
        return ["XNNPACK"]

    def convert(self, model: Path, folder: Path) -> Path:
        """See :class:`~deploynas.onboard.runtime.Runtime`."""
        from deploynas.runtimes.tflite import converted

        path = folder / f"{model.stem}.tflite"
        path.write_bytes(converted(model))
        return path

    def supports(self, operator: str, precision: str) -> str:
        """See :class:`~deploynas.onboard.runtime.Runtime`."""
        from deploynas.runtimes.tflite import OPERATORS

        if precision != "fp32":
            return "only float networks are converted for LiteRT"
        return "" if operator in OPERATORS else f"{operator} is not converted for LiteRT"

    def costs(self, path: Path) -> tuple[list[Any], int]:
        """See :class:`~deploynas.onboard.runtime.Runtime`."""
        from deploynas.runtimes.tflite_costs import node_costs

        return node_costs(path)

    def open(self, path: str, provider: str, threads: int) -> LiteRtSession:
        """See :class:`~deploynas.onboard.runtime.PythonRuntime`."""
        from ai_edge_litert import interpreter

        opened = interpreter.Interpreter(path, num_threads=threads)
        opened.allocate_tensors()
        return LiteRtSession(opened, channels_last(Path(path).read_bytes()))


class LiteRtSession(Session):
    """See :class:`~deploynas.onboard.runtime.Session`.

    Args:
        interpreter: With its tensors allocated.
        turned: Names of inputs and outputs that are fed and answered channels first.
    """

    def __init__(self, interpreter: Any, turned: Sequence[str]) -> None:
        self._interpreter, self._turned = interpreter, frozenset(turned)
        self._inputs = {one["name"]: one for one in interpreter.get_input_details()}
        self._outputs = interpreter.get_output_details()

    @property
    def inputs(self) -> Sequence[Input]:
        """See :class:`~deploynas.onboard.runtime.Session`."""
        found = []
        for name, one in self._inputs.items():
            shape = [int(side) if side >= 0 else "?" for side in one["shape_signature"]]
            if name in self._turned:
                shape = [shape[0], shape[3], *shape[1:3]]
            found.append(Input(name, shape, one["dtype"].__name__))
        return found

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """See :class:`~deploynas.onboard.runtime.Session`."""
        for name, array in feeds.items():
            own = array.transpose(0, 2, 3, 1) if name in self._turned else array
            self._interpreter.set_tensor(self._inputs[name]["index"], own)
        invoke: Callable[[], object] = self._interpreter.invoke
        return invoke

    def answers(self, feeds: Feeds) -> list[Any]:
        """See :class:`~deploynas.onboard.runtime.Session`."""
        self.prepared(feeds)()
        return [self._output(one) for one in self._outputs]

    def _output(self, details: Mapping[str, Any]) -> Array:
        own: Array = self._interpreter.get_tensor(details["index"])
        return own.transpose(0, 3, 1, 2) if details["name"] in self._turned else own


def channels_last(content: bytes) -> list[str]:
    """Inputs and outputs of a file that are its ONNX file's, turned; of another file none."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content)
    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        if entry.Name() == CHANNELS_LAST.encode():
            names: list[str] = json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
            return names
    return []


RUNTIME = LiteRt()
