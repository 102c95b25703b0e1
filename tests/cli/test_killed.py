"""Nothing outlives a command that is killed, and one that is interrupted says what is kept."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import deploynas as dn
from deploynas.data.sources import load_digits
from deploynas.device import open_device
from deploynas.errors import DeploynasError
from deploynas.graph import RandomWeights, write_model
from deploynas.runtimes.web import install_runtime
from deploynas.spaces import Layer
from deploynas.spaces.layers import chain

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
PACKAGE = str(Path(dn.__file__).parents[1])
COMMAND = [sys.executable, "-W", "ignore", "-c", "from deploynas.cli.main import main; main()"]
# a run of it takes seconds: a question about it is answered long after the asker is dead
SLOW = Layer("conv", 512, 512, 160, 160, kernel_size=3, activation="relu")
FAST = Layer("conv", 32, 32, 48, 48, kernel_size=3, activation="relu")
END_SECONDS = 5.0
SPACE = "darts-small:channels=4,cells=3,nodes=1,operations=skip_connect+max_pool_3x3+sep_conv_3x3"
HERE = f"exec:{shlex.quote(sys.executable)}"


def stat(pid):
    """State, parent, processor time in seconds and start of a process; None where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return fields[0], int(fields[1]), seconds, fields[19]


def descendants(pid):
    """Number -> start of all processes that a process has started, directly or not."""
    table = {int(p.name): stat(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()}
    table = {number: found for number, found in table.items() if found}
    found, new = {}, {pid}
    while new:
        new = {n for n, (_, parent, _, _) in table.items() if parent in new}
        found |= {n: table[n][3] for n in new}
    return found


def alive(processes):
    """Those that still run; what nobody has reaped yet is gone all the same."""
    now = {pid: stat(pid) for pid in processes}
    return [pid for pid, s in now.items() if s and s[0] != "Z" and s[3] == processes[pid]]


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def hears_interrupts():
    """What a shell starts in the background ignores them, and so does what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path):
    """Starts a command in a folder of the test's own, and sees to its end."""
    processes = []

    def started(command):
        environment = {**os.environ, "PYTHONPATH": PACKAGE, "TMPDIR": str(tmp_path)}
        environment["DEPLOYNAS_FASHION_MNIST"] = str(tmp_path)  # has none: the digits are used
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, preexec_fn=hears_interrupts,
        )  # fmt: skip
        processes.append(process)
        return process

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def end(process, number):
    """Signal it alone; what it says, and the seconds that it took."""
    children = descendants(process.pid)
    assert children
    started = time.monotonic()
    process.send_signal(number)
    process.wait(END_SECONDS)
    seconds = time.monotonic() - started
    wait_until(lambda: not alive(children), END_SECONDS - seconds)
    out, err = process.communicate()
    return out, err, seconds


@pytest.fixture
def slow(tmp_path):
    return write_model(tmp_path / "slow.onnx", chain([SLOW]), RandomWeights())


@pytest.mark.long
@pytest.mark.parametrize("name", ["cpu", "web", HERE])
def test_a_worker_in_the_middle_of_a_long_question_ends_with_its_asker(name, slow, start):
    if name == "web":
        try:
            install_runtime()
            open_device("web")
        except DeploynasError as error:
            pytest.skip(str(error))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from deploynas.device import open_device\n"
        "device, path = open_device(sys.argv[1]), Path(sys.argv[2])\n"
        "if sys.argv[1].startswith('exec:'):\n"
        "    device.examine(path)\n"
        "with device.opened([path]) as worker:\n"
        "    print('asked', flush=True)\n"
        "    worker.time([(0, 20)])\n"
    )
    process = start([sys.executable, "-c", code, name, str(slow)])
    if name.startswith("exec:"):
        wait_until(lambda: any(stat(n)[2] > 2 for n in descendants(process.pid) if stat(n)))
    else:
        assert process.stdout.readline() == "asked\n"
        time.sleep(0.5)
    out, err, _ = end(process, signal.SIGKILL)
    assert err == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_measurement_that_is_ended(number, code, tmp_path, start):
    model = write_model(tmp_path / "model.onnx", chain([FAST]), RandomWeights())
    command = [*COMMAND, "check", str(model), "--json"]
    process = start(command)
    wait_until(lambda: any(stat(n)[2] > 0.5 for n in descendants(process.pid) if stat(n)))
    out, err, seconds = end(process, number)
    assert process.returncode == code
    assert seconds < 2
    left = list(tmp_path.glob("deploynas-*"))
    if number == signal.SIGKILL:
        assert left
        start(command)  # the next one removes them
        wait_until(lambda: not any(folder.exists() for folder in left))
        return
    assert not left
    words = "interrupted: what was done is kept, and the same command goes on from it"
    assert err.splitlines()[-1] == f"error: {words}"
    assert json.loads(out) == {"error": {"kind": "interrupted", "message": words}}
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_anything_is_imported(number, code, start):
    """Once Python itself has begun, whatever it imports then."""
    process = start([sys.executable, "-v", "-m", "deploynas", "spaces", "--json"])
    for line in process.stderr:  # of Python, which says what it imports
        if line.startswith("import 'typer'"):
            process.send_signal(number)
            break
    out, err = process.communicate()
    assert process.returncode == code
    assert json.loads(out)["error"]["kind"] == "interrupted"
    assert "error: interrupted before anything began" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_second_signal_ends_at_once_without_a_traceback(tmp_path, start):
    model = write_model(tmp_path / "model.onnx", chain([FAST]), RandomWeights())
    # a link that does not end with its input: it is given some seconds
    device = f"exec:sh -c '\"$@\"; sleep 20' sh {shlex.quote(sys.executable)}"
    process = start([*COMMAND, "check", str(model), "--device", device])
    wait_until(lambda: len(descendants(process.pid)) == 3)  # sh, the agent and its worker
    children = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: len(alive(children)) == 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(1) == 130
    os.killpg(min(children), signal.SIGKILL)
    _, err = process.communicate()
    assert err.splitlines()[-1].startswith("error: interrupted: what was done is kept")
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def search(board_profile, tmp_path_factory):
    """A command line whose trainings take minutes."""
    digits = load_digits((), seed=0, max_size=64)
    space = dn.space(SPACE, digits.num_classes, digits.channels, [28])
    path = tmp_path_factory.mktemp("profiles") / "board.json"
    profile = board_profile(space)
    profile.write(path)
    limit = dn.LatencyModel(space, profile).upper_ms(space.sample(99, np.random.default_rng(0)))
    return [
        *COMMAND, "search", "--space", SPACE, "--profile", str(path), "--strategy", "evolution",
        "--evaluator", "training", "--latency-ms", str(float(np.median(limit))), "--epochs", "300",
        "--evaluations", "4", "--set", "population=2", "--output", "run",
    ]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "code", "worked"),
    [(signal.SIGKILL, -9, 4.0), (signal.SIGINT, 130, 0.5)],  # while they train; while they start
)
def test_trainings_that_are_ended(number, code, worked, search, start):
    process = start([*search, "--workers", "2"])

    def workers():
        return [n for n in descendants(process.pid) if (found := stat(n)) and found[2] > worked]

    wait_until(lambda: len(workers()) == 2)
    _, err, seconds = end(process, number)
    assert seconds < 2
    assert process.returncode == code
    if number == signal.SIGINT:
        assert err.splitlines()[-1].startswith("error: interrupted: what was done is kept")
        assert "Traceback" not in err
