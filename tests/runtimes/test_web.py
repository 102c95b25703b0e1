"""The web devices: real onnxruntime-web in Node and in a headless browser."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploynas.device import (
    Identity,
    LocalDevice,
    StopRule,
    measure,
    open_attached,
    open_device,
)
from deploynas.errors import (
    DeploynasError,
    DeviceError,
    InvalidInputError,
    MissingDependencyError,
    UnknownNameError,
)
from deploynas.graph.emit import RandomWeights, emit
from deploynas.onboard.conversation import Worker
from deploynas.onboard.folders import sweep
from deploynas.runtimes.web import RUNTIME, install_runtime
from deploynas.runtimes.web import install as web_install
from deploynas.spaces import Layer
from deploynas.spaces.layers import chain

pytestmark = pytest.mark.long

SMALL = Layer("conv", 3, 8, 16, 16, kernel_size=3, activation="relu")
LARGE = Layer("conv", 32, 32, 48, 48, kernel_size=3, activation="relu")
QUICK = StopRule(precision=1e-9, min_sessions=1, max_sessions=1, rounds=2, touch_ms=0.1)


@pytest.fixture(scope="module", autouse=True)
def temporary():
    """A temporary folder of this file's own: other browsers on the machine are not ours."""
    with tempfile.TemporaryDirectory(prefix="dn") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)  # a short path: a browser keeps sockets below it
        yield Path(folder)


@pytest.fixture(scope="module", params=list(RUNTIME.devices))
def device(request):
    try:
        install_runtime()
        return LocalDevice(request.param)
    except DeploynasError as error:
        pytest.skip(str(error))


def write_model(path, layer):
    path.write_bytes(emit(chain([layer]), RandomWeights()).SerializeToString())
    return path


@pytest.fixture
def models(tmp_path):
    layers = {"small": SMALL, "large": LARGE}
    return {name: write_model(tmp_path / f"{name}.onnx", layers[name]) for name in layers}


def browser_processes(folder):
    """Numbers and commands of the processes of the browsers that work below ``folder``."""
    command = ["ps", "-axww", "-o", "pid=,args="]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    found = [line.split(None, 1) for line in lines if f"{folder}/deploynas-chromium-" in line]
    return {int(pid): arguments for pid, arguments in found}


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert condition()


@pytest.fixture
def own_folder(temporary, monkeypatch):
    """A temporary folder of one test, for what it starts."""
    with tempfile.TemporaryDirectory(dir=temporary, prefix="t") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def test_measure(device, models, own_folder):
    samples = measure(device, models, QUICK)
    small, large = (samples[name].estimate(samples[name].level) for name in ("small", "large"))
    assert 0 < small.median < large.median
    assert not list(own_folder.iterdir())


@pytest.fixture(scope="module")
def worker(device, tmp_path_factory):
    """A worker with a small and a large model: starting one takes seconds."""
    folder = tmp_path_factory.mktemp("models")
    paths = [write_model(folder / f"{i}.onnx", layer) for i, layer in enumerate((SMALL, LARGE))]
    with device.opened(paths) as opened:
        yield opened


def test_answers_repeat(worker):
    """Compiled once, by the optimising compiler: the first samples are like the last."""
    times = np.array(worker.time([(1, 10)] * 20))
    first, last = np.median(times[:5]), np.median(times[-5:])
    assert 0.6 < first / last < 1.6


def test_a_run_that_is_shorter_than_the_clock_ticks_is_not_zero(worker):
    (times,) = worker.time([(0, 20)])
    assert min(times) > 0
    assert len(set(times)) > 1


def test_a_broken_model_is_named(worker, models, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(models["small"].read_bytes()[:-40])
    with pytest.raises(DeviceError, match="failed with broken"):
        worker.load(broken)
    assert len(worker.time([(0, 1), (1, 1)])) == 2  # the others go on


def test_a_dynamic_shape_is_refused(worker, tmp_path):
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "dynamic.onnx"
    onnx.save(model, path)
    with pytest.raises(DeviceError, match=r"dynamic shape \['n', 3\]"):
        worker.load(path)


def test_identity(device):
    identity = device.identity
    assert identity.provider == "wasm"
    assert identity.runtime.startswith("onnxruntime-web 1.")
    host = {"web": "node", "web-chromium": "chromium"}[identity.device]
    assert identity.session_options["host"].split()[0] == host
    assert not identity.differences(open_device(identity.device).identity)
    assert open_attached(identity)
    other = identity.model_copy(update={"processor": "another"})
    assert open_attached(other) is None
    cpu = open_device("cpu").identity
    assert {d.split(":")[0] for d in identity.differences(cpu)} >= {"device", "runtime"}
    assert Identity.model_validate_json(identity.model_dump_json()) == identity


def test_threads_and_providers_are_refused(device):
    name = device.identity.device
    with pytest.raises(InvalidInputError, match="has one thread"):
        open_device(name, threads=2)
    with pytest.raises(UnknownNameError, match="unknown execution provider"):
        open_device(name, provider="CPUExecutionProvider")


def test_nothing_is_left_when_the_tool_is_killed(device, models, own_folder):
    """The worker and the browser end when the process that asked does, whatever ended it."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from deploynas.device import open_device\n"
        "with open_device(sys.argv[1]).opened([Path(sys.argv[2])]) as worker:\n"
        "    print(worker.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    name = device.identity.device
    command = [sys.executable, "-c", code, name, str(models["small"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        assert bool(browser_processes(own_folder)) == (name == "web-chromium")
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not exists(pid) and not browser_processes(own_folder))
    sweep(own_folder)  # as the next start does
    assert not list(own_folder.iterdir())


@pytest.mark.parametrize("victim", ["relay", "page"])
def test_a_browser_without_its_relay_or_page_ends(victim, models, own_folder):
    """A killed relay leaves no browser behind, and a dead page is an error, not silence."""
    try:
        install_runtime()
        device = LocalDevice("web-chromium")
    except DeploynasError as error:
        pytest.skip(str(error))
    worker = Worker(device.command(0))
    try:
        worker.load(models["small"])
        browser = browser_processes(own_folder)
        assert browser
        pages = [pid for pid, arguments in browser.items() if "--type=renderer" in arguments]
        for pid in pages if victim == "page" else [worker.pid]:
            os.kill(pid, signal.SIGKILL)
        words = "the page ended" if victim == "page" else "exit code -9"
        with pytest.raises(DeviceError, match=words):
            worker.time([(0, 1)])
    finally:
        worker.close()
    wait_until(lambda: not browser_processes(own_folder))


def test_a_wheel_holds_the_files_of_the_workers():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    globs = tomllib.loads(text)["tool"]["setuptools"]["package-data"]["deploynas.runtimes.web"]
    packed = {path for glob in globs for path in web_install.HERE.glob(glob)}
    assert packed == {p for p in web_install.HERE.iterdir() if p.is_file() and p.suffix != ".py"}


def exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # an orphan that nobody has reaped yet is gone all the same
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return not state.stdout.strip().startswith("Z")


def test_a_runtime_that_is_missing(monkeypatch, tmp_path):
    if shutil.which("node") is None:
        pytest.skip("Node.js is not here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="deploynas devices install web"):
        LocalDevice("web")


def test_node_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingDependencyError, match="apt-get install nodejs"):
        LocalDevice("web")
    with pytest.raises(MissingDependencyError, match="apt-get install nodejs"):
        install_runtime()


def test_an_installation_that_fails_leaves_nothing(monkeypatch, tmp_path):
    if shutil.which("npm") is None:
        pytest.skip("npm is not here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(web_install, "HERE", tmp_path)
    (tmp_path / "package.json").write_text('{"dependencies": {"onnxruntime-web": "0.0.0"}}')
    (tmp_path / "package-lock.json").write_text("{}")
    with pytest.raises(DeviceError, match="npm could not install") as caught:
        install_runtime()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("**/node_modules"))


def test_a_failure_of_npm_is_told_by_the_line_that_says_why():
    output = (
        "npm error code ECONNREFUSED\nnpm error syscall connect\nnpm error errno ECONNREFUSED\n"
        "npm error FetchError: request failed, reason: connect ECONNREFUSED\n"
    )
    reason = "FetchError: request failed, reason: connect ECONNREFUSED"
    assert web_install.reason_of(output) == reason
    assert web_install.reason_of("npm ERR! code E404\n") == "code E404"
    assert web_install.reason_of("") == "no message"


def test_an_unknown_device_suggests_a_name():
    with pytest.raises(UnknownNameError, match="did you mean 'web-chromium'"):
        open_device("web-chrom")


def test_a_worker_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr("deploynas.onboard.conversation.END_SECONDS", 0.2)
    worker = Worker([sys.executable, "-c", "import time; time.sleep(60)"])
    worker.close()
    assert worker.exit_code == -signal.SIGKILL
