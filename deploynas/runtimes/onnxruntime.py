"""ONNX Runtime, on any machine that runs Python."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from deploynas.onboard.runtime import Feeds, Input, PythonRuntime, Session, traced

_BFLOAT16 = 16  # ONNX's number of the type
_TYPES = {"float": "float32", "double": "float64"}  # what numpy calls them


class OnnxRuntime(PythonRuntime):
    """See :class:`~deploynas.onboard.runtime.PythonRuntime`."""

    name = "onnxruntime"
    package = "onnxruntime"
    devices: ClassVar[Mapping[str, str]] = {"cpu": "this machine through ONNX Runtime"}
    options: ClassVar[Mapping[str, str]] = {
        "allow_spinning": "0", "execution_mode": "sequential",
    }  # fmt: skip
    oldest = (1, 12)  # opset 17, which the networks for timing have

    def version(self) -> str:
        """See :class:`~deploynas.onboard.runtime.PythonRuntime`."""
        import onnxruntime

        return str(onnxruntime.__version__)

    def providers(self) -> Sequence[str]:
        """See :class:`~deploynas.onboard.runtime.PythonRuntime`."""
        import onnxruntime

        found = onnxruntime.get_available_providers()
        return sorted(found, key=lambda provider: provider != "CPUExecutionProvider")

    def open(
        self, path: str | bytes, provider: str, threads: int, trace: str | None = None
    ) -> OnnxSession:
        """See :class:`~deploynas.onboard.runtime.PythonRuntime`; ``trace`` begins a file."""
        import onnxruntime as ort

        ort.set_default_logger_severity(3)
        options = ort.SessionOptions()
        if trace is not None:
            options.enable_profiling = True
            options.profile_file_prefix = trace
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        # Many open sessions must not spin against each other.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = ort.InferenceSession(path, options, providers=[provider])
        if session.get_providers()[0] != provider:
            raise RuntimeError(
                f"{provider} does not start here, and another provider took its place"
            )
        return OnnxSession(session)

    def node_ms(
        self, path: str, provider: str, threads: int, feeds: Feeds, folder: Path
    ) -> dict[str, float]:
        """See :class:`~deploynas.onboard.runtime.PythonRuntime`."""
        session = self.open(path, provider, threads, str(folder / "trace"))
        traced(session.prepared(feeds))
        times: dict[str, list[float]] = {}
        for event in json.loads(Path(session.end_trace()).read_text()):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"][: -len("_kernel_time")]
                times.setdefault(name, []).append(event["dur"] / 1e3)
        return {name: _middle_mean(ms[1:]) for name, ms in times.items() if ms[1:]}


class OnnxSession(Session):
    """See :class:`~deploynas.onboard.runtime.Session`."""

    def __init__(self, session: Any) -> None:
        self._session = session

    @property
    def inputs(self) -> Sequence[Input]:
        """See :class:`~deploynas.onboard.runtime.Session`."""
        return [Input(one.name, one.shape, _type(one.type)) for one in self._session.get_inputs()]

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """See :class:`~deploynas.onboard.runtime.Session`; bfloat16 comes as its bits."""
        halves = [one.name for one in self.inputs if one.type == "bfloat16"]
        if not halves:
            return functools.partial(self._session.run, None, dict(feeds))
        import onnxruntime as ort

        values = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
            if name in halves
            else ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in feeds.items()
        }
        return functools.partial(self._session.run_with_ort_values, None, values)

    def answers(self, feeds: Feeds) -> list[Any]:
        """See :class:`~deploynas.onboard.runtime.Session`."""
        found: Any = self.prepared(feeds)()
        return [one.numpy() if hasattr(one, "numpy") else one for one in found]

    def end_trace(self) -> str:
        """The file with the times of its nodes."""
        return str(self._session.end_profiling())


def _type(name: str) -> str:
    """``tensor(float)`` as numpy's name; what is no tensor as it is."""
    if not name.startswith("tensor("):
        return name
    inner = name[len("tensor(") : -1]
    return _TYPES.get(inner, inner)


def _middle_mean(values: list[float]) -> float:
    """Mean of the middle half: single values are whole microseconds, and some are disturbed."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    return sum(middle) / len(middle)


RUNTIME = OnnxRuntime()
