"""ncnn, on any machine that runs Python; :mod:`deploynas.runtimes.ncnn_param` writes its files."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deploynas.onboard.runtime import Feeds, Input, PythonRuntime, Session, traced

MAGIC = "7767517"
FP16 = "CPU-fp16"
_UNPACKED = 1  # what Extractor.extract takes for: leave the blob in the layout that it has


class Ncnn(PythonRuntime):
    """See :class:`~deploynas.onboard.runtime.PythonRuntime`.

    Its providers are the processor at float32, and storing numbers as float16, which phones do.
    """

    name = "ncnn"
    package = "ncnn"
    installs = "ncnn, by pip (some 30 MB)"
    devices: ClassVar[Mapping[str, str]] = {"ncnn": "this machine through ncnn"}
    suffix = ".param"
    beside = (".bin",)
    options: ClassVar[Mapping[str, str]] = {"lightmode": "1"}

    def version(self) -> str:
        """Its date: releases have no other number."""
        import ncnn

        return str(ncnn.__version__).rpartition(".")[2]

    def providers(self) -> Sequence[str]:
        """See :class:`~deploynas.onboard.runtime.PythonRuntime`."""
        return ["CPU", FP16]

    def convert(self, model: Path, folder: Path) -> Path:
        """See :class:`~deploynas.onboard.runtime.Runtime`."""
        from deploynas.runtimes.ncnn_param import written

        network = written(model)
        path = folder / f"{model.stem}.param"
        path.write_text(network.param)
        path.with_suffix(".bin").write_bytes(network.weights)
        return path

    def supports(self, operator: str, precision: str) -> str:
        """See :class:`~deploynas.onboard.runtime.Runtime`."""
        from deploynas.runtimes.ncnn_param import INT8, lacking

        return INT8 if precision == "int8" else lacking(operator)

    def open(self, path: str, provider: str, threads: int) -> NcnnSession:
        """See :class:`~deploynas.onboard.runtime.PythonRuntime`."""
        return NcnnSession(Path(path), provider, threads)

    def node_ms(
        self, path: str, provider: str, threads: int, feeds: Feeds, folder: Path
    ) -> dict[str, float]:
        """See :class:`~deploynas.onboard.runtime.PythonRuntime`."""
        session = self.open(path, provider, threads)
        times = traced(lambda: session.layer_ms(feeds))
        return {name: float(np.median([one[name] for one in times])) for name in times[0]}


class NcnnSession(Session):
    """See :class:`~deploynas.onboard.runtime.Session`.

    Args:
        path: The ``.param`` file, with the ``.bin`` file beside it.
        provider: Of :meth:`Ncnn.providers`.
        threads: Threads inside one layer.

    Raises:
        ValueError: This is no network, or ncnn lacks one of its layers.
    """

    def __init__(self, path: Path, provider: str, threads: int) -> None:
        import ncnn

        lines = path.read_bytes().decode(errors="replace").split("\n")
        if lines[0].strip() != MAGIC:
            raise ValueError("it is no .param file of ncnn")
        self._layers = [line.split() for line in lines[2:] if line.strip()]
        self._net = net = ncnn.Net()
        half = provider == FP16
        net.opt.num_threads = threads
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = half
        for load, suffix in ((net.load_param, ".param"), (net.load_model, ".bin")):
            if load(str(path.with_suffix(suffix))):
                raise ValueError(f"ncnn cannot read its {suffix} file")
        # what nothing reads, inputs too
        own = {blob for kind, _, _, _, blob, *_ in self._layers if kind == "Input"}
        self._outputs = [name for name in net.output_names() if name not in own]

    @property
    def inputs(self) -> Sequence[Input]:
        """See :class:`~deploynas.onboard.runtime.Session`."""
        found = []
        for kind, _, _, _, blob, *params in self._layers:
            if kind == "Input":
                sides = dict(one.split("=") for one in params)
                shape = [int(sides[key]) for key in ("2", "11", "1", "0") if key in sides]
                found.append(Input(blob, [1, *shape] if shape else ["any"], "float32"))
        return found

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """See :class:`~deploynas.onboard.runtime.Session`."""
        inputs = self._mats(feeds)
        return functools.partial(self._run, inputs)

    def answers(self, feeds: Feeds) -> list[Any]:
        """See :class:`~deploynas.onboard.runtime.Session`."""
        return [np.array(mat)[None] for mat in self._run(self._mats(feeds))]

    def layer_ms(self, feeds: Feeds) -> dict[str, float]:
        """Name of a layer -> milliseconds of one run: of asking for one blob after the other."""
        extractor = self._net.create_extractor()
        for name, mat in self._mats(feeds):
            extractor.input(name, mat)
        times = {}
        for kind, layer, num_inputs, num_outputs, *blobs in self._layers:
            if kind in ("Input", "Split", "MemoryData"):
                continue
            first = int(num_inputs)
            started = time.perf_counter_ns()
            for blob in blobs[first : first + int(num_outputs)]:
                extractor.extract(blob, _UNPACKED)
            times[layer] = (time.perf_counter_ns() - started) / 1e6
        return times

    def _mats(self, feeds: Feeds) -> list[tuple[str, Any]]:
        import ncnn

        return [
            (name, ncnn.Mat(np.ascontiguousarray(array[0])).clone())
            for name, array in feeds.items()
        ]

    def _run(self, inputs: list[tuple[str, Any]]) -> list[Any]:
        extractor = self._net.create_extractor()
        for name, mat in inputs:
            extractor.input(name, mat)
        return [extractor.extract(name)[1] for name in self._outputs]


RUNTIME = Ncnn()
