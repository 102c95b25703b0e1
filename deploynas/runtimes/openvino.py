"""OpenVINO, on any machine that runs Python."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deploynas.errors import InvalidInputError
from deploynas.onboard.folders import OWNER
from deploynas.onboard.runtime import Feeds, Input, PythonRuntime, Session, traced

RANDOM_SEED = "random_weights_seed"  # what networks for timing have, see deploynas.graph.emit
IMAGE_CHANNELS = 4  # at most; feature maps have more
CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_TYPES = {  # what numpy calls them
    "boolean": "bool", "bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64",
    **{f"i{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}  # fmt: skip


class OpenVino(PythonRuntime):
    """See :class:`~deploynas.onboard.runtime.PythonRuntime`."""

    name = "openvino"
    package = "openvino"
    installs = "openvino, by pip (some 180 MB)"
    devices: ClassVar[Mapping[str, str]] = {"openvino": "this machine through OpenVINO"}
    suffix = ".xml"
    beside = (".bin",)
    # float32 as the network says, where it would take bfloat16 on processors that have it; the
    # worker chooses its cores itself
    options: ClassVar[Mapping[str, str]] = {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "ENABLE_CPU_PINNING": "NO",
        "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY",
    }  # fmt: skip
    oldest = (2024, 0)

    def version(self) -> str:
        """See :class:`~deploynas.onboard.runtime.PythonRuntime`."""
        import openvino

        return str(openvino.__version__).partition("-")[0]

    def providers(self) -> Sequence[str]:
        """See :class:`~deploynas.onboard.runtime.PythonRuntime`."""
        found = [str(device) for device in _core().available_devices]
        return sorted(found, key=lambda device: device != "CPU")

    def convert(self, model: Path, folder: Path) -> Path:
        """See :class:`~deploynas.onboard.runtime.Runtime`."""
        import openvino

        nodes = _nodes(model)
        try:
            network = _core().read_model(model)
        except RuntimeError as error:
            raise InvalidInputError(_reason(str(error), nodes)) from None
        _name(network)
        path = folder / f"{model.stem}.xml"
        openvino.save_model(network, path, compress_to_fp16=False)
        return path

    def open(self, path: str, provider: str, threads: int, trace: bool = False) -> OpenVinoSession:
        """See :class:`~deploynas.onboard.runtime.PythonRuntime`; ``trace`` times nodes."""
        options = {"INFERENCE_NUM_THREADS": str(threads)} if provider == "CPU" else {}
        if ours := [folder for folder in Path(path).parents if (folder / OWNER).exists()]:
            # it is temporary: later sessions open what the first compiled, four times as fast
            options["CACHE_DIR"] = str(ours[0] / "compiled")
        if trace:
            options["PERF_COUNT"] = "YES"
        network, turned = _as_inside(_core().read_model(path))
        compiled = _core().compile_model(network, provider, {**self.options, **options})
        return OpenVinoSession(compiled, turned)

    def node_ms(
        self, path: str, provider: str, threads: int, feeds: Feeds, folder: Path
    ) -> dict[str, float]:
        """See :class:`~deploynas.onboard.runtime.PythonRuntime`."""
        session = self.open(path, provider, threads, trace=True)
        traced(session.prepared(feeds))
        return session.node_ms()


class OpenVinoSession(Session):
    """See :class:`~deploynas.onboard.runtime.Session`.

    Args:
        compiled: The network.
        turned: Names of inputs and outputs that have their channels last, unlike the file's.
    """

    def __init__(self, compiled: Any, turned: Collection[str]) -> None:
        self._compiled, self._turned = compiled, turned
        self._request = compiled.create_infer_request()

    @property
    def inputs(self) -> Sequence[Input]:
        """See :class:`~deploynas.onboard.runtime.Session`."""
        found = []
        for one in self._compiled.inputs:
            shape = [_side(side) for side in one.partial_shape]
            if one.any_name in self._turned:
                shape = [shape[i] for i in CHANNELS_FIRST]
            found.append(Input(one.any_name, shape, _type(one)))
        return found

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """See :class:`~deploynas.onboard.runtime.Session`; bfloat16 comes as its bits."""
        import openvino

        halves = [one.name for one in self.inputs if one.type == "bfloat16"]
        for name, array in feeds.items():
            if name in self._turned:
                array = array.transpose(CHANNELS_LAST)
            tensor = openvino.Tensor(np.array(array, order="C"))
            if name in halves:
                tensor = openvino.Tensor(openvino.Type.bf16, tensor.shape)
                tensor.data.view(np.uint16)[...] = array
            self._request.set_tensor(name, tensor)
        return functools.partial(self._request.infer, share_outputs=True)

    def answers(self, feeds: Feeds) -> list[Any]:
        """See :class:`~deploynas.onboard.runtime.Session`."""
        self.prepared(feeds)()
        found = []
        for i, one in enumerate(self._compiled.outputs):
            array = np.array(self._request.get_output_tensor(i).data)
            found.append(
                array.transpose(CHANNELS_FIRST) if one.any_name in self._turned else array
            )
        return found

    def option(self, name: str) -> str:
        """One that it was compiled with."""
        return str(self._compiled.get_property(name))

    def node_ms(self) -> dict[str, float]:
        """Name of a node -> milliseconds, the mean of all runs so far."""
        ran = [one for one in self._request.profiling_info if one.status == one.status.EXECUTED]
        return {one.node_name: one.real_time.total_seconds() * 1e3 for one in ran}


def _as_inside(network: Any) -> tuple[Any, list[str]]:
    """A layer for timing as it is inside a network, and the names of what is turned in it.

    OpenVINO keeps channels last. A lone layer would turn what comes and goes, which takes up to
    five times as long as the layer; in a network only the image is turned, and so it is here.
    """
    import openvino

    if not network.has_rt_info(["framework", RANDOM_SEED]):
        return network, []
    turned = []
    work = openvino.preprocess.PrePostProcessor(network)
    for ports, of in ((network.inputs, work.input), (network.outputs, work.output)):
        for port in ports:
            if len(port.partial_shape) == 4 and port.shape[1] > IMAGE_CHANNELS:
                turned.append(port.any_name)
                of(port.any_name).tensor().set_layout(openvino.Layout("NHWC"))
                of(port.any_name).model().set_layout(openvino.Layout("NCHW"))
    return work.build(), turned


@functools.cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def _name(network: Any) -> None:
    """Name what ONNX does not by its place: OpenVINO counts on through all that it reads."""
    for number, node in enumerate(network.get_ordered_ops()):
        kind, name = node.get_type_name(), node.get_friendly_name()
        if re.fullmatch(rf"{kind}_\d+", name) and not any(one.names for one in node.outputs()):
            node.set_friendly_name(f"{kind}:{number}")


def _nodes(model: Path) -> list[tuple[str, str]]:
    """Operator and name of every node; OpenVINO would try other formats, and print much."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        nodes = onnx.load(model, format="protobuf", load_external_data=False).graph.node
    except DecodeError:
        raise InvalidInputError("it is no ONNX file, or is damaged") from None
    return [(node.op_type, node.name or node.output[0]) for node in nodes]


def _reason(said: str, nodes: Sequence[tuple[str, str]]) -> str:
    """What is wrong with an ONNX file, without places in OpenVINO's source."""
    if lacking := re.search(
        r"(?:No conversion rule found for|following ONNX) operations: (\w+)", said
    ):
        name = next((name for operator, name in nodes if operator == lacking[1]), "no name")
        return f"{lacking[1]} ({name}): OpenVINO has it not"
    if failed := re.search(r"While validating ONNX node '<Node\((.*?)\): (.*?)>'", said):
        return f"{failed[1]} ({failed[2]}): OpenVINO cannot convert it"
    return "OpenVINO cannot read it"


def _side(side: Any) -> Any:
    return side.get_length() if side.is_static else str(side)


def _type(one: Any) -> str:
    name = str(one.element_type.get_type_name())
    return _TYPES.get(name, name)


RUNTIME = OpenVino()
