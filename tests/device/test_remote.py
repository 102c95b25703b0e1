"""Devices elsewhere: real interpreters, a real ssh server, real processes killed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
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
    open_same,
)
from deploynas.device import link as link_module
from deploynas.device.fleet import Fleet
from deploynas.device.link import Link
from deploynas.device.named import NamedDevices
from deploynas.device.remote import command_of
from deploynas.device.wire import Parcel
from deploynas.errors import (
    DeploynasError,
    DeviceError,
    DeviceMismatchError,
    InvalidInputError,
    UnknownNameError,
)
from deploynas.graph import RandomWeights, StateWeights, emit, write_model
from deploynas.onboard.parts import ModelFolder, draw, join
from deploynas.runtimes import that_travels
from deploynas.runtimes.web import install_runtime
from deploynas.spaces import Layer, space
from deploynas.spaces.layers import chain

pytestmark = pytest.mark.slow

HERE = f"exec:{shlex.quote(sys.executable)}"
QUICK = StopRule(precision=1e-9, min_sessions=2, max_sessions=2, rounds=3, touch_ms=0.1)
ONCE = StopRule(precision=1e-9, min_sessions=1, max_sessions=1, rounds=1, touch_ms=0.1)
LONG = StopRule(precision=1e-9, min_sessions=50, max_sessions=50, rounds=50, touch_ms=0.1)
SMALL = Layer("conv", 3, 8, 16, 16, kernel_size=3, activation="relu")
LARGE = Layer("conv", 32, 32, 48, 48, kernel_size=3, activation="relu")


@pytest.fixture
def models(tmp_path):
    layers = {"small": SMALL, "large": LARGE}
    return {
        name: write_model(tmp_path / f"{name}.onnx", chain([layer]), RandomWeights())
        for name, layer in layers.items()
    }


@pytest.fixture
def own_folder(monkeypatch):
    """A temporary folder of one test, for what it starts."""
    with tempfile.TemporaryDirectory(prefix="dn") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)
    tempfile.tempdir = None


@pytest.fixture
def board(ssh_server, monkeypatch):
    """``--device`` of the host that the test's ssh server is."""
    monkeypatch.setenv("PATH", f"{ssh_server.bin}:{os.environ['PATH']}")
    return f"ssh:board {shlex.quote(sys.executable)}"


@pytest.fixture(
    params=[
        "cpu", "exec",
        *(pytest.param(one, marks=pytest.mark.long) for one in ("web", "ssh")),
    ]
)  # fmt: skip
def name(request):
    """Every kind of device, as ``--device`` calls it."""
    if request.param == "web":
        try:
            install_runtime()
            open_device("web")
        except DeploynasError as error:
            pytest.skip(str(error))
    return request.getfixturevalue("board") if request.param == "ssh" else {
        "exec": HERE
    }.get(request.param, request.param)  # fmt: skip


def agents():
    """Numbers of the agents that run."""
    command = ["ps", "-axww", "-o", "pid=,args="]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    found = [line.split(None, 1) for line in lines]
    return {int(pid) for pid, args in found if args == f"{sys.executable} -i"}


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


# what every kind of device passes


@pytest.mark.slow
def test_conformance(name, models, tmp_path):
    device = open_device(name)
    identity = device.identity
    assert Identity.model_validate_json(identity.model_dump_json()) == identity
    assert identity.name == name
    assert not identity.differences(open_device(name).identity)
    assert open_attached(identity)
    assert open_attached(identity.model_copy(update={"processor": "another"})) is None

    progress, rounds = [], []
    samples = measure(
        device, models, QUICK,
        on_progress=lambda p: progress.append((p.done, p.num_models)),
        on_round=lambda number, touches: rounds.append((number, set(touches))),
    )  # fmt: skip
    assert rounds == [(r, {"small", "large"}) for _ in range(2) for r in range(3)]
    assert progress == sorted(progress)
    assert progress[-1] == (1.0, 2)
    assert [len(s) for one in samples.values() for s in one.ms] == [3] * 4
    small, large = (samples[n].estimate().median for n in ("small", "large"))
    assert 0 < small < large
    assert measure(device, models, QUICK, samples=samples)["small"].num_samples == 6  # enough

    broken = tmp_path / "broken-net.onnx"
    broken.write_bytes(models["small"].read_bytes()[:-40])
    with pytest.raises(DeviceError, match="failed with broken-net") as caught:
        measure(device, models | {"x": broken}, ONCE)
    assert "\n" not in str(caught.value)
    shapes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", shapes[:1], shapes[1:]
    )
    dynamic = tmp_path / "dynamic.onnx"
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), dynamic)
    with pytest.raises(DeviceError, match=r"dynamic shape \['n', 3\]"):
        measure(device, {"x": dynamic}, ONCE)
    if not name.startswith("web"):
        with pytest.raises(DeviceError, match=r"onnxruntime 1\.\d+ failed with .*dynamic shape"):
            device.examine(dynamic)
    assert measure(device, models, ONCE)["large"].num_samples == 1  # the device goes on


# what is sent


def test_random_weights_are_drawn_there(tmp_path):
    chosen = space("mobile-small", 10, 3, [32])
    path = write_model(tmp_path / "n.onnx", chosen.layers(chosen.largest()[0]), RandomWeights(7))
    parcel = Parcel.of([path], path)
    assert len(parcel.literal) < path.stat().st_size / 20
    assert join(parcel.parts, parcel.literal) == path.read_bytes()


def test_real_weights_are_sent(tmp_path):
    state = {"layers.0.conv.weight": np.arange(216.0).reshape(8, 3, 3, 3)}
    norms = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    state |= {f"layers.0.bn.{k}": np.full(8, v) for k, v in norms.items()}
    model = emit(chain([SMALL]), StateWeights(state), metadata={"random_weights_seed": "0"})
    path = tmp_path / "n.onnx"
    path.write_bytes(model.SerializeToString())
    parcel = Parcel.of([path], path)
    assert parcel.literal == path.read_bytes()  # the seed alone is not believed
    assert join(parcel.parts, parcel.literal) == path.read_bytes()


def test_files_that_belong_together_stay_so(tmp_path):
    paths = [tmp_path / "n.param", tmp_path / "n.bin"]
    for path, content in zip(paths, (b"graph", b"weights"), strict=True):
        path.write_bytes(content)
    parcel = Parcel.of(paths, tmp_path / "n.param")
    (tmp_path / "there").mkdir()
    there = ModelFolder(tmp_path / "there")
    there.put(parcel.digest, parcel.files, parcel.parts, parcel.literal)
    found = there.path(parcel.digest)
    assert (found.suffix, found.read_bytes()) == (".param", b"graph")
    assert found.with_suffix(".bin").read_bytes() == b"weights"
    with pytest.raises(ValueError, match="damaged on its way"):
        there.put(parcel.digest, parcel.files, parcel.parts, b"graphweightz")


def test_draws_never_change():
    """Other processors and numpy versions draw these very bits, or the digest differs."""
    assert [float(v).hex() for v in draw(3, 1, 3, 0.5)] == EXPECTED_DRAWS
    drawn = draw(0, 1, 100_001, 2.0)
    assert drawn.dtype == np.float32
    assert drawn.min() >= -2.0
    assert drawn.max() < 2.0
    assert abs(drawn.std() - 2 / np.sqrt(3)) < 0.01


EXPECTED_DRAWS = ["0x1.e9b4c80000000p-2", "-0x1.f956780000000p-3", "0x1.4480f00000000p-4"]


@pytest.mark.slow
def test_a_file_goes_once(models):
    device = open_device(HERE)
    measure(device, models, ONCE)
    before = device.bytes_sent
    measure(device, models, ONCE)
    assert device.bytes_sent - before < 2_000


# what goes wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("exec:/nowhere/python3", "cannot start '/nowhere/python3': No such file"),
        ("exec:false", r"does not start Python, but ends \(exit code 1\)"),
        ("exec:sh -c 'nopython3'", "there is no 'nopython3' there"),
        ("exec:sh -c 'echo hello; sleep 60'", "has said nothing for 2 seconds"),
        ("exec:sh -c 'yes'", "does not start Python, but says b'y"),
        ("exec:sh -c 'echo deploynas-python 3.8; sleep 9'", "its Python is 3.8, and 3.9 is"),
        ("exec:ssh", "does not start Python"),
    ],
)
def test_no_agent_starts(device, said, monkeypatch):
    monkeypatch.setattr(link_module, "START_SECONDS", 2.0)
    with pytest.raises(DeviceError, match=said) as caught:
        open_device(device).identity  # noqa: B018
    assert "\n" not in str(caught.value)


def test_a_command_that_talks_without_end_is_ended_with_what_it_started(own_folder):
    mark = f"{own_folder}/endless"
    loop = f"while true; do echo {mark}; done"
    with pytest.raises(DeviceError, match="does not start Python"):
        open_device(f"exec:sh -c \"sh -c '{loop}'; true\"").identity  # noqa: B018
    listed = ["ps", "-axww", "-o", "args="]
    wait_until(lambda: mark not in subprocess.run(listed, capture_output=True, text=True).stdout)


@pytest.mark.slow
def test_a_greeting_is_passed_over(models):
    python = shlex.quote(sys.executable)
    device = open_device(f"exec:sh -c 'echo Welcome to the board; exec {python} \"$@\"' sh")
    assert measure(device, models, QUICK)["small"].num_samples == 6


@pytest.mark.parametrize("package", ["numpy", "onnxruntime"])
def test_a_python_that_lacks_something(package, tmp_path):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(
        f"raise ModuleNotFoundError(\"No module named '{package}'\", name='{package}')"
    )
    device = open_device(f"exec:env PYTHONPATH={shlex.quote(str(tmp_path))} {HERE[5:]}")
    with pytest.raises(DeviceError, match=f"there has no {package} .*pip install"):
        device.identity  # noqa: B018


def test_a_runtime_that_crashes_when_it_is_imported(tmp_path):
    """As a build for another processor does: arm64 wheels under an emulator end so."""
    (tmp_path / "onnxruntime.py").write_text("import os; os.kill(os.getpid(), 11)")
    device = open_device(f"exec:env PYTHONPATH={shlex.quote(str(tmp_path))} {HERE[5:]}")
    with pytest.raises(DeviceError, match="by SIGSEGV when it is imported.*another version"):
        device.identity  # noqa: B018


@pytest.mark.parametrize(
    "answer",
    ["nonsense", '{"identity": 3}', '{"identity": {}}', "[]", '{"model": "x"}', '{"error": 5}'],
)
def test_a_device_that_answers_nonsense(answer, tmp_path):
    script = tmp_path / "fake.py"
    script.write_text(
        "import sys\nsys.stdin.readline()\nprint('deploynas-python 3.11', flush=True)\n"
        f"sys.stdin.buffer.readline()\nprint({answer!r}, flush=True)\nsys.stdin.buffer.read()\n"
    )
    with pytest.raises(DeviceError, match="unexpected|does not say what it is|failed with x|5"):
        open_device(f"exec:{HERE[5:]} {shlex.quote(str(script))}").identity  # noqa: B018


@pytest.mark.slow
def test_options_that_it_does_not_have():
    with pytest.raises(DeviceError, match="--threads 1000: it offers 1 to"):
        open_device(HERE, threads=1000).identity  # noqa: B018
    with pytest.raises(DeviceError, match="its onnxruntime has no NoProvider .it has .*CPUExec"):
        open_device(HERE, provider="NoProvider").identity  # noqa: B018


def killed_while_measuring(device, models, kill, rule=LONG):
    """Measure, ``kill`` after the second round, and return the error and the samples."""
    samples, count = {}, []

    def on_round(number, touches):
        count.append(number)
        if len(count) == 2:
            threading.Thread(target=kill).start()

    with pytest.raises(DeviceError) as caught:
        measure(device, models, rule, samples=samples, on_round=on_round)
    assert "\n" not in str(caught.value)
    assert samples["small"].num_samples >= 2  # what was measured is kept
    return str(caught.value)


def worker_of(pid):
    command = ["ps", "-axww", "-o", "pid=,ppid="]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")
    pairs = [tuple(map(int, line.split())) for line in lines if line.strip()]
    return [child for child, parent in pairs if parent == pid][0]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["agent", "worker"])
def test_something_is_killed_in_mid_measurement(victim, models, own_folder):
    device = open_device(HERE)
    before = agents()
    assert device.identity
    (agent,) = agents() - before

    def kill():
        os.kill(worker_of(agent) if victim == "worker" else agent, signal.SIGKILL)

    said = killed_while_measuring(device, models, kill)
    assert ("runtime ended" if victim == "worker" else "connection ended") in said
    wait_until(lambda: not agents() - before)
    assert measure(device, models, QUICK)["small"].num_samples == 6  # it connects again


@pytest.mark.long
def test_a_device_that_falls_silent(models, monkeypatch):
    monkeypatch.setattr(link_module, "SILENCE_SECONDS", 7.0)  # it speaks every five
    device = open_device(HERE)
    before = agents()
    assert device.identity
    (agent,) = agents() - before
    said = killed_while_measuring(device, models, lambda: os.kill(agent, signal.SIGSTOP))
    assert "said nothing for 7 seconds" in said


@pytest.mark.slow
def test_nothing_is_left_when_the_tool_is_killed(models, own_folder):
    code = (
        "import sys; from pathlib import Path\n"
        "from deploynas.device import StopRule, measure, open_device\n"
        "rule = StopRule(min_sessions=99, max_sessions=99, rounds=99)\n"
        "measure(open_device(sys.argv[1]), {'m': Path(sys.argv[2])}, rule,\n"
        "        on_round=lambda *a: print(flush=True))\n"
    )
    before = agents()
    command = [sys.executable, "-c", code, HERE, str(models["small"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert len(agents() - before) == 1
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not agents() - before)
    wait_until(lambda: not list(own_folder.glob("deploynas-*/deploynas")))


def test_a_device_that_is_full(models, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(small)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be made here")
    try:
        device = open_device(f"exec:env TMPDIR={shlex.quote(str(small))} {HERE[5:]}")
        with pytest.raises(DeviceError, match=r"cannot write .* No space left .*MB are free"):
            measure(device, models, QUICK)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


# ssh


def test_hosts_that_are_not_there(board):
    with pytest.raises(DeviceError, match="no host of that name"):
        open_device("ssh:nowhere.invalid").identity  # noqa: B018
    with pytest.raises(DeviceError, match="no '/nowhere/python' there.*name its Python"):
        open_device("ssh:board /nowhere/python").identity  # noqa: B018


def test_keys_that_are_not_right(ssh_server, board):
    try:
        ssh_server.use_key("stranger")
        with pytest.raises(DeviceError, match="refused every key.*ssh-copy-id board"):
            open_device(board).identity  # noqa: B018
        ssh_server.use_key("client")
        ssh_server.trust(None)
        with pytest.raises(DeviceError, match="host key is not known here.*by hand"):
            open_device(board).identity  # noqa: B018
        ssh_server.trust("stranger")
        with pytest.raises(DeviceError, match="host key has changed"):
            open_device(board).identity  # noqa: B018
        known = (ssh_server.folder / "known_hosts").read_text()
        assert (ssh_server.folder / "stranger.pub").read_text() in known  # never bypassed
    finally:
        ssh_server.use_key("client")
        ssh_server.trust("host")


def test_a_server_that_is_off(ssh_server, board):
    ssh_server.stop()
    try:
        with pytest.raises(DeviceError, match="does not answer .is it on"):
            open_device(board).identity  # noqa: B018
    finally:
        ssh_server.start()


def test_a_link_that_is_cut(ssh_server, board, models, own_folder):
    device = open_device(board)
    before = agents()
    assert device.identity
    assert len(agents() - before) == 1
    said = killed_while_measuring(device, models, ssh_server.cut)
    assert "connection ended" in said
    wait_until(lambda: not agents() - before)
    ssh_server.stop()
    ssh_server.start()
    assert measure(device, models, QUICK)["small"].num_samples == 6


@pytest.mark.parametrize("name", ["exec:", "ssh:", "ssh:-oProxyCommand=x", "exec:'", "ssh:a b c"])
def test_names_that_cannot_be(name):
    with pytest.raises(InvalidInputError, match="for example|quotation"):
        open_device(name)


# names and fleets


@pytest.mark.slow
def test_a_file_runs_no_command_that_nobody_typed(tmp_path):
    """A profile or an export may come from anywhere."""
    identity = LocalDevice().identity
    bad = f"exec:sh -c 'touch {tmp_path}/run'"
    from_file = identity.model_copy(update={"recorded": {**identity.recorded, "reached": bad}})
    notes = []
    assert open_attached(from_file, notes.append) is None
    assert "of which this machine knows nothing (if you trust it, name it" in notes[0]
    with pytest.raises(DeviceMismatchError, match="knows nothing"):
        open_same(from_file)
    assert not (tmp_path / "run").exists()
    typed = open_device(HERE)  # a person's own words are remembered
    assert open_attached(typed.identity)
    assert NamedDevices.load().typed == (HERE,)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rounds",
    [
        '{"done": true}',
        '{"round": {"number": 4, "touches": {"small": [1, {"core_ms": 1, "memory_ms": 1}]}, '
        '"done": 0.1, "others": 0}}',
        '{"round": {"number": 0, "touches": {"large": [1, {"core_ms": 1, "memory_ms": 1}]}, '
        '"done": 0.1, "others": 0}}',
        '{"round": {"number": 1e999, "touches": {}, "done": 0.1, "others": 0}}',
        '{"round": {"number": 0, "touches": {"small": [-1, {"core_ms": 1, "memory_ms": 1}]}, '
        '"done": 0.1, "others": 0}}',
    ],
)
def test_a_device_whose_samples_are_nonsense(rounds, models, tmp_path):
    script = tmp_path / "fake.py"
    facts = {
        "processor": "p", "runtime": "onnxruntime 1.30", "provider": "CPUExecutionProvider",
        "threads": 1, "session_options": {}, "recorded": {},
    }  # fmt: skip
    identity = json.dumps({"identity": facts})
    script.write_text(
        "import sys\nsys.stdin.readline()\nprint('deploynas-python 3.11', flush=True)\n"
        f"sys.stdin.buffer.readline()\nprint({identity!r}, flush=True)\n"
        f"print({identity!r}, flush=True)\nprint({rounds!r}, flush=True)\n"
        "sys.stdin.buffer.read()\n"
    )
    device = open_device(f"exec:{HERE[5:]} {shlex.quote(str(script))}")
    assert device.identity.processor == "p"
    with pytest.raises(DeviceError, match="samples|impossible"):
        measure(device, {"small": models["small"]}, QUICK)


def test_an_agent_that_meets_the_unforeseen_says_so():
    link = Link("here", command_of(HERE), that_travels("onnxruntime"))
    link.send({"do": "measure"})
    with pytest.raises(DeviceError, match="KeyError there: 'provider'"):
        link.receive()
    link.send({"do": "describe", "runtime": "onnxruntime", "provider": None, "threads": 1})
    assert Identity.of("cpu", link.receive()["identity"]) == LocalDevice().identity  # it goes on
    link.post(b"no json\n")
    with pytest.raises(DeviceError, match="Expecting value"):
        link.receive()
    with pytest.raises(DeviceError, match="connection ended"):
        link.receive()  # what cannot hear does not stay


@pytest.mark.slow
def test_files_of_the_folder_shadow_nothing(tmp_path, monkeypatch, models):
    for name in ("json", "numpy", "zipfile", "queue", "tempfile"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    assert measure(open_device(HERE), models, ONCE)["small"].num_samples == 1


@pytest.mark.slow
def test_named_devices(models):
    with pytest.raises(UnknownNameError, match="unknown device 'pi'"):
        open_device("pi")
    NamedDevices.load().with_device("pi", HERE).save()
    device = open_device("pi")
    assert device.identity.name == "pi"
    assert device.identity.title.startswith("pi: ")
    assert not device.identity.differences(LocalDevice().identity)  # one and the same machine
    assert open_attached(device.identity)
    with pytest.raises(UnknownNameError, match="did you mean 'pi'"):
        open_device("p1")
    NamedDevices.load().without("pi").save()
    with pytest.raises(UnknownNameError):
        open_device("pi")
    notes = []
    assert open_attached(device.identity, notes.append) is None
    for bad in ("a,b", "exec:x", "", "-x"):
        with pytest.raises(InvalidInputError, match="a device's name is"):
            NamedDevices().with_device(bad, HERE)


def test_a_device_that_does_not_answer_is_told():
    NamedDevices.load().with_device("pi", "exec:/nowhere/python3").save()
    identity = LocalDevice().identity
    recorded = {**identity.recorded, "reached": "pi"}
    notes = []
    assert open_attached(identity.model_copy(update={"recorded": recorded}), notes.append) is None
    assert "cannot start '/nowhere/python3'" in notes[0]


def six_models(folder):
    layers = [Layer("conv", 3, 8 * i, 24, 24, kernel_size=3) for i in range(1, 7)]
    return {
        f"m{i}": write_model(folder / f"m{i}.onnx", chain([layer]), RandomWeights(i))
        for i, layer in enumerate(layers)
    }


@pytest.mark.slow
def test_a_fleet_shares_the_work(tmp_path):
    named = NamedDevices.load()
    for name in ("pi1", "pi2", "pi3"):
        named = named.with_device(name, HERE)
    named.save()
    fleet = open_device("pi1,pi2,pi3")
    rounds = []
    samples = measure(
        fleet, six_models(tmp_path), QUICK,
        on_round=lambda number, touches: rounds.append((number, set(touches))),
    )  # fmt: skip
    assert [one.num_samples for one in samples.values()] == [6] * 6
    # every sample once, whoever measured it: a journal can be replayed
    assert sum(len(names) for _, names in rounds) == 36
    assert set(fleet.disagreement) == {"pi1", "pi2", "pi3"}
    assert all(abs(share) < 1 for share in fleet.disagreement.values())
    assert any("on the same models, against their median: pi1" in note for note in fleet.notes)


@pytest.mark.long
def test_a_member_that_drops_out_does_not_stop_the_rest(tmp_path):
    before = agents()
    first = open_device(HERE)
    assert first.identity
    (agent,) = agents() - before
    fleet = Fleet({"one": first, "two": open_device(HERE)})
    count = []

    def on_round(number, touches):
        count.append(number)
        if len(count) == 1:
            os.kill(agent, signal.SIGKILL)

    models = six_models(tmp_path)
    rule = StopRule(precision=1e-9, min_sessions=3, max_sessions=3, rounds=20, touch_ms=2.0)
    samples = measure(fleet, models, rule, on_round=on_round)
    assert all(len(one.ms) >= 3 for one in samples.values())
    assert any("one dropped out" in note for note in fleet.notes)
    measure(fleet, {"m1": models["m1"]}, ONCE)
    assert fleet.disagreement == {}  # one is left


@pytest.mark.slow
def test_a_member_that_is_off_does_not_stop_the_rest(models):
    fleet = Fleet({"off": open_device("exec:/nowhere/python3"), "on": open_device(HERE)})
    assert measure(fleet, models, ONCE)["small"].num_samples == 1
    assert any(note.startswith("off dropped out: exec:/nowhere") for note in fleet.notes)
    with pytest.raises(DeviceError, match="no device of the fleet answers"):
        Fleet({"a": open_device("exec:/nowhere/a"), "b": open_device("exec:/nowhere/b")})


def test_an_error_of_our_own_is_not_swallowed_by_a_fleet(models):
    class Broken(LocalDevice):
        def rounds(self, models, rule, samples, seed):
            raise OSError("no room")
            yield

    with pytest.raises(OSError, match="no room"):
        measure(Fleet({"a": Broken(), "b": LocalDevice()}), models, ONCE)


@pytest.mark.slow
def test_an_interrupt_ends_every_member_of_a_fleet(models):
    before, agents_before = set(threading.enumerate()), agents()
    fleet = Fleet({"a": LocalDevice(), "b": open_device(HERE)})

    def on_round(number, touches):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(fleet, models, LONG, on_round=on_round)
    wait_until(lambda: set(threading.enumerate()) <= before, 5)
    wait_until(lambda: not agents() - agents_before, 5)


@pytest.mark.slow
def test_fleets_that_cannot_be(tmp_path):
    with pytest.raises(DeviceMismatchError, match="not of one kind: threads: 1 / 2"):
        Fleet({"one": LocalDevice(), "two": open_device(HERE, threads=2)})
    with pytest.raises(InvalidInputError, match="two or more different devices"):
        open_device("cpu,cpu")
    alone = Fleet({"one": open_device(HERE), "two": open_device(HERE)})
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(DeviceError, match="failed with broken"):
        measure(alone, {"x": broken}, QUICK)
