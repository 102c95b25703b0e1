"""The promises that all runtimes share."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx

from deploynas import spaces
from deploynas.device import StopRule, measure, open_device
from deploynas.errors import DeviceError, InvalidInputError, ModelError
from deploynas.export.formats import TOLERANCE, difference_of
from deploynas.export.probe import flat, probes
from deploynas.graph.emit import RandomWeights, emit
from deploynas.graph.model_file import ModelFile
from deploynas.onboard.folders import temporary_folder
from deploynas.onboard.runtime import Runtime
from deploynas.runtimes import by_device, that_travels
from deploynas.testing.report import require

NETWORKS = ("mobile-small", "mobile-plain", "proxyless-small", "darts-small")
SIDE = 32
ONCE = StopRule(precision=1e-9, min_sessions=1, max_sessions=1, rounds=2, touch_ms=0.1)


def check_runtime(name: str) -> None:
    """Check a device of this machine and the runtime that it is one of.

    It says who it is, the same each time. It converts a network to the same file each time, or
    says which operator it lacks, as ``supports`` does. What it runs answers as ONNX Runtime
    does, float32 within 1e-4 of the outputs' deviation, and the larger network takes
    longer. A file that is no network is named. Where the runtime travels, a device elsewhere is
    the same and answers the same.

    Args:
        name: Of the device.

    Raises:
        AssertionError: One of them is not as promised.
        MissingDependencyError: The runtime is not installed.
    """
    device = open_device(name)
    runtime = by_device()[name]
    identity = device.identity
    require(identity.device == name, f"the device says that it is {identity.device}")
    require(
        not open_device(name).identity.differences(identity), "it is another one the second time"
    )
    require(
        identity.runtime.startswith(f"{runtime.name} "), f"it runs {identity.runtime}, not its own"
    )
    with temporary_folder() as folder:
        models = _networks(folder)
        runnable = {n: path for n, path in models.items() if _is_pure(runtime, path, folder)}
        require(bool(runnable), f"{runtime.name} runs none of {', '.join(models)}")
        for network, path in runnable.items():
            difference = difference_of(device, path, path)
            text = f"{network} on {name} differs by {difference:.2g}, allowed {TOLERANCE:.2g}"
            require(difference <= TOLERANCE, text)
        samples = measure(device, runnable, ONCE)
        require(all(one.num_samples for one in samples.values()), "a network was not measured")
        broken = folder / "broken.onnx"
        broken.write_bytes(next(iter(models.values())).read_bytes()[:-400])
        try:
            measure(device, {"broken": broken}, ONCE)
        except DeviceError as error:
            require("broken" in str(error), f"what fails is not named: {error}")
        else:
            require(False, "a file that is no network was measured")
        _check_elsewhere(name, runtime, next(iter(runnable.values())))


def _networks(folder: Path) -> dict[str, Path]:
    """A network of each kind of space, as an ONNX file with random weights."""
    found = {}
    for name in NETWORKS:
        space = spaces.space(name, num_classes=10, in_channels=3, resolutions=[SIDE])
        arch = space.sample(1, np.random.default_rng(0))[0]
        model = emit(space.layers(arch), RandomWeights())
        found[name] = folder / f"{name}.onnx"
        onnx.save(model, found[name])
    return found


def _is_pure(runtime: Runtime, path: Path, folder: Path) -> bool:
    """Whether the runtime converts a network, the same each time; else it says why not."""
    lacks = {
        node.op_type: reason
        for node in onnx.load(path).graph.node
        if (reason := runtime.supports(node.op_type, "fp32"))
    }
    converted = []
    for number in range(2):
        own = folder / f"{path.stem}-{number}"
        own.mkdir()
        try:
            converted.append(runtime.convert(path, own).read_bytes())
        except InvalidInputError as error:
            named = any(operator in str(error) for operator in lacks)
            require(named, f"{runtime.name} refuses {path.stem}, but supports() does not: {error}")
            return False
    require(not lacks, f"{runtime.name} converts {path.stem}, but lacks {', '.join(lacks)}")
    require(converted[0] == converted[1], f"{path.stem} is another file the second time")
    return True


def _check_elsewhere(name: str, runtime: Runtime, path: Path) -> None:
    """A device that a command reaches, where the runtime travels."""
    try:
        that_travels(runtime.name)
    except InvalidInputError:
        return
    there = open_device(f"exec:{sys.executable}", runtime=runtime.name)
    here = open_device(name)
    differences = here.identity.differences(there.identity)
    require(not differences, f"elsewhere it is another one: {'; '.join(differences)}")
    feeds = probes(ModelFile(path).inputs)
    same = zip(here.answers(path, feeds), there.answers(path, feeds), strict=True)
    require(
        all(np.array_equal(flat(a), flat(b)) for a, b in same), "elsewhere it answers otherwise"
    )
    try:
        there.answers(Path(__file__), feeds)
    except ModelError:
        pass
    else:
        require(False, "elsewhere it runs what is no network")
