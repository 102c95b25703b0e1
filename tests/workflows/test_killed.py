"""Conformance of all that runs long: killed at any moment it leaves no worker, loses nothing.

The process alone is killed, or its whole group; it is begun again, and in the end says what an
undisturbed run says. The same with a full disk, with files that may not grow, and with a clock
that jumps. ``make test-faults`` kills every case at 20 random moments and says how often; the
ordinary tests a few of them twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deploynas
from deploynas.artifacts import read_json
from deploynas.data import load_dataset, space_for

PACKAGE = str(Path(deploynas.__file__).parents[1])
NUM_KILLS = int(os.environ.get("DEPLOYNAS_KILLS", "0"))
CELLS = "darts-small:channels=4,cells=3,nodes=1,operations=skip_connect+max_pool_3x3+sep_conv_3x3"
SHORT = ("--evaluations", "6", "--epochs", "2")
SEARCHES = {
    "random": (CELLS, "--strategy", "random", *SHORT),
    "ofa": ("mobile-small", "--strategy", "ofa", "--evaluations", "6", "--epochs", "2"),
    "evolution": (CELLS, "--strategy", "evolution", *SHORT),
    "pareto": (CELLS, "--strategy", "pareto", *SHORT),
    "predictor": (CELLS, "--strategy", "predictor", "--evaluations", "14", "--epochs", "2"),
    "one-shot": (CELLS, "--strategy", "one-shot", "--evaluations", "6", "--epochs", "1"),
    "proxyless": (
        "proxyless-small", "--strategy", "proxyless", "--evaluations", "4", "--epochs", "2"
    ),
    "darts": (CELLS, "--strategy", "darts", "--evaluations", "4", "--epochs", "2"),
    "training": (CELLS, "--strategy", "evolution", "--evaluator", "training", *SHORT),
    "training-2": (
        CELLS, "--strategy", "evolution", "--evaluator", "training", "--workers", "2", *SHORT
    ),
    "halving-2": (
        CELLS, "--strategy", "pareto", "--evaluator", "halving", "--workers", "2",
        "--evaluations", "6", "--epochs", "12",
    ),
    "compare": (
        CELLS, "--strategies", "random,one-shot,darts", "--seeds", "2", "--evaluations", "4",
        "--search-epochs", "1", "--epochs", "1", "--workers", "2",
    ),
}  # fmt: skip
MODEL = "mobile-small"
OTHERS = {
    "train": ("train", "--space", MODEL, "--epochs", "2", "--output", "run"),
    "retrain": ("retrain", "found", "--epochs", "2"),
    "export": ("export", "found", "--name", "net"),
    "export-int8": ("export", "found", "--name", "net", "--precision", "int8"),
    "profile": (
        "profile", "--space", CELLS, "--num-classes", "2", "--in-channels", "1",
        "--resolution", "16", "--output", "cpu.json",
    ),
    "check": ("check", "net.onnx", "--record", "record.json", "--latency-ms", "1e6"),
}  # fmt: skip
ENDS = {
    "train": "run/supernet.json", "retrain": "found/retrained.json",
    "export": "exports/net/manifest.json", "export-int8": "exports/net/manifest.json",
    "profile": "cpu.json", "check": "record.json", "compare": "run/comparison.json",
}  # fmt: skip
ALWAYS = ("evolution", "halving-2")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes of 60 small images each, told apart by where they are bright."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, num in (("train", 60), ("test", 20)):
        for place, name in enumerate(("left", "right")):
            (folder / split / name).mkdir(parents=True)
            for i in range(num):
                pixels = rng.integers(0, 120, (16, 16), dtype=np.uint8)
                pixels[:, 8 * place : 8 * place + 8] += 60
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def found(images, board_profile, tmp_path_factory):
    """A folder with a search's run and a model, for what goes on from them."""
    folder = tmp_path_factory.mktemp("found")
    whole, _ = command("random", folder, images, board_profile, None)
    run_whole(["found" if word == "run" else word for word in whole], folder)
    run_whole([*BEGIN, "export", "found", "--name", "net"], folder)
    (folder / "exports" / "net" / "model.onnx").rename(folder / "net.onnx")
    shutil.rmtree(folder / "exports")
    return folder


BEGIN = [sys.executable, "-W", "ignore", "-c", "from deploynas.cli.main import main; main()"]


def command(case, folder, images, board_profile, found):
    """The verb with all it needs, and the file that it ends with."""
    folder.mkdir(exist_ok=True)
    file = folder / ENDS.get(case, "run/search.json")
    if case in OTHERS:
        if found is not None and not (folder / "found").exists():
            shutil.copytree(found, folder, dirs_exist_ok=True)
        verb, *options = OTHERS[case]
        data = ("--data", str(images)) if verb == "train" else ()
        return [*BEGIN, verb, *options, *data, "--quiet"], file
    space_name, *options = SEARCHES[case]
    space = space_for(space_name, load_dataset(images, max_size=64))
    profile = folder / "board.json"
    if not profile.exists():
        board_profile(space).write(profile)
    verb = "compare" if case == "compare" else "search"
    whole = [
        *BEGIN, verb, "--space", space_name, "--data", str(images), "--profile", str(profile),
        "--max-params", "1e9", "--output", "run", "--quiet", *options,
    ]  # fmt: skip
    return whole, file


def run_whole(whole, folder):
    code, said = ended(start(whole, folder))
    assert code == 0, said


def start(whole, folder, env=(), **more):
    """Begin it as the first of a group of its own, with no other folder than this one.

    What it says is in ``said`` of the process: no file, as those may not be written.
    """
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": PACKAGE}
    environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp"), **dict(env)}
    (folder / "tmp").mkdir(exist_ok=True)
    process = subprocess.Popen(
        whole, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True, **more,
    )  # fmt: skip
    process.said = bytearray()

    def hear():
        with process.stderr:
            for line in process.stderr:
                process.said.extend(line)

    process.hears = threading.Thread(target=hear, daemon=True)
    process.hears.start()
    return process


def ended(process):
    """Exit code, and what it said."""
    code = process.wait()
    process.hears.join(5)
    return code, process.said.decode()


def descendants(pid):
    """Numbers of all processes that a process has begun, and those have."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        own = children.get(waiting.pop(), [])
        found += own
        waiting += own
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def essence(case, file):
    """What must be the same, whatever happened on the way."""
    found = read_json(file)
    if case == "profile":
        return found["layers"].keys(), found["networks"].keys(), found["validations"].keys()
    if case == "check":
        return found["model_sha256"], found["identity"]
    if "winners" in found:
        return [
            {k: v for k, v in w.items() if not k.endswith("seconds")} for w in found["winners"]
        ]
    if case.startswith("export"):
        taken = ("ratio", "ratio_low", "ratio_high")
        found["quantization"] = {
            k: v for k, v in (found["quantization"] or {}).items() if k not in taken
        }
    return {k: v for k, v in found.items() if k not in ("inputs", "profile", "sha256")}


def left(folder):
    """Temporary files of ours."""
    return [
        path.name
        for path in folder.rglob("*")
        if path.name.endswith((".tmp", ".next", ".whole", ".journal"))
        or path.name.startswith("deploynas-")
    ]


@pytest.fixture(scope="module")
def counts():
    """Of faults, said when all is done; `make test-faults` shows it."""
    told = Counter()
    yield told
    print("\n" + "".join(f"{number:5d} {what}\n" for what, number in sorted(told.items())))


CASES = [*SEARCHES, *OTHERS]


@pytest.mark.long
@pytest.mark.parametrize("case", CASES if NUM_KILLS else ALWAYS)
def test_killed_at_random_moments(case, images, board_profile, found, counts, tmp_path):
    whole, file = command(case, tmp_path / "whole", images, board_profile, found)
    started = time.monotonic()
    run_whole(whole, tmp_path / "whole")
    seconds = time.monotonic() - started
    expected = essence(case, file)

    rng = np.random.default_rng(0)
    broken, file = command(case, tmp_path / "broken", images, board_profile, found)
    journal = tmp_path / "broken" / "run" / "evaluations.jsonl"
    # what is kept makes it shorter each time, so that the moments are drawn from what is left
    for share in rng.uniform(0.15, 1.0, NUM_KILLS or 2):
        process = start(broken, tmp_path / "broken")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(share * seconds)
        workers = descendants(process.pid)
        if process.poll() is None:
            alone = rng.random() < 0.5
            os.kill(process.pid, signal.SIGKILL) if alone else kill_group(process.pid)
            counts["kills of the process alone" if alone else "kills of the whole group"] += 1
        else:
            counts["runs that had ended before they were to be killed"] += 1
        process.wait()
        require_end(workers)
        if journal.exists() and rng.random() < 0.5:  # as a loss of power leaves it
            journal.write_bytes(journal.read_bytes()[: -int(rng.integers(1, 20))])
            counts["torn journals"] += 1
    run_whole(broken, tmp_path / "broken")
    assert essence(case, file) == expected
    assert left(tmp_path / "broken") == []
    counts["results equal to the undisturbed run's"] += 1
    if journal.exists():
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        asked = [json.dumps([x["evaluator"], x["fidelity"], x["architecture"]]) for x in lines]
        assert len(set(asked)) == len(asked)  # nothing was evaluated twice


def kill_group(pid):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def require_end(workers):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(map(is_alive, workers)):
        time.sleep(0.05)
    assert not [pid for pid in workers if is_alive(pid)]


FULL = ("random", "train", "retrain", "export", "profile", "check", "compare")


@pytest.mark.long
@pytest.mark.skipif(not NUM_KILLS, reason="make test-faults")
@pytest.mark.parametrize("case", FULL)
def test_files_that_may_not_grow(case, images, board_profile, found, counts, tmp_path):
    """Each file that it writes is the first that is too large."""
    whole, file = command(case, tmp_path / "whole", images, board_profile, found)
    before = {path for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    run_whole(whole, tmp_path / "whole")
    expected = essence(case, file)
    written = [p for p in (tmp_path / "whole").rglob("*") if p.is_file() and p not in before]
    sizes = {path.stat().st_size for path in written}
    for number, size in enumerate(sorted({1, *(s - 1 for s in sizes if s > 1)})):
        folder = tmp_path / str(number)
        limited, file = command(case, folder, images, board_profile, found)
        limit = resource.RLIMIT_FSIZE, (size, size)
        process = start(limited, folder, preexec_fn=lambda limit=limit: resource.setrlimit(*limit))
        require_line(*ended(process))
        counts["files that may not grow"] += 1
        run_whole(limited, folder)
        assert essence(case, file) == expected
        assert left(folder) == []


def require_line(code, said):
    """One error of our own, or success."""
    assert "Traceback" not in said, said
    assert code in (0, 1), said
    if code:
        assert [line for line in said.splitlines() if line.startswith("error: ")], said


@pytest.fixture
def disk(tmp_path):
    """A file system of a few KiB, and what gives it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        return subprocess.run(["mount", "-t", "tmpfs", *options], capture_output=True, check=False)

    if shutil.which("mount") is None or mount("-o", "size=64k", "tmpfs", folder).returncode:
        pytest.skip("no file system may be mounted here")
    yield folder, lambda size: mount("-o", f"remount,size={size}", folder).check_returncode()
    subprocess.run(["umount", "-l", folder], check=False)


@pytest.mark.long
@pytest.mark.skipif(not NUM_KILLS, reason="make test-faults")
@pytest.mark.parametrize("case", FULL)
def test_a_full_disk(case, images, board_profile, found, counts, tmp_path, disk):
    folder, resize = disk
    whole, file = command(case, tmp_path / "whole", images, board_profile, found)
    run_whole(whole, tmp_path / "whole")
    expected = essence(case, file)
    resize("100m")
    limited, file = command(case, folder, images, board_profile, found)
    for more in (4, 16, 64, 256, 1024):
        used = shutil.disk_usage(folder).used // 1024
        resize(f"{used + more}k")
        code, said = ended(start(limited, folder))
        counts["full disks"] += bool(code)
        require_line(code, said)
    resize("100m")
    run_whole(limited, folder)
    assert essence(case, file) == expected
    assert left(folder) == []


@pytest.mark.long
@pytest.mark.skipif(not NUM_KILLS, reason="make test-faults")
@pytest.mark.parametrize("case", ["evolution", "train", "profile", "check"])
@pytest.mark.parametrize("jump", ["+3y", "-3y", "+0 x5", "+0 x0.2"])
def test_a_clock_that_jumps(case, jump, images, board_profile, found, counts, tmp_path):
    """Killed, and gone on with under a clock that is years off, or runs at another speed."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        pytest.skip("no faketime here")
    whole, file = command(case, tmp_path / "whole", images, board_profile, found)
    run_whole(whole, tmp_path / "whole")
    expected = essence(case, file)
    broken, file = command(case, tmp_path / "broken", images, board_profile, found)
    process = start(broken, tmp_path / "broken")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(4)
    kill_group(process.pid)
    process.wait()
    clock = {"LD_PRELOAD": str(library), "FAKETIME": jump}
    if "x" not in jump:
        clock["FAKETIME_DONT_FAKE_MONOTONIC"] = "1"  # as when somebody sets the clock
    process = start(broken, tmp_path / "broken", env=clock)
    code, said = ended(process)
    assert code == 0, said
    assert essence(case, file) == expected
    counts["clocks that jumped"] += 1


PAIRED = ("evolution", "one-shot", "train", "retrain", "export", "profile", "compare")


@pytest.mark.long
@pytest.mark.parametrize(
    ("one", "other"),
    [*combinations_with_replacement(PAIRED, 2)] if NUM_KILLS else [("train", "evolution")],
)
def test_two_at_once_in_one_folder(one, other, images, board_profile, found, counts, tmp_path):
    """Each ends well, or refuses because the other writes there; then each ends as ever."""
    commands, files = [], []
    for case in (one, other):
        whole, file = command(case, tmp_path / "both", images, board_profile, found)
        commands.append(whole)
        files.append(file)
    processes = [start(whole, tmp_path / "both") for whole in commands]
    for process in processes:
        require_line(*ended(process))
    counts["pairs of verbs in one folder"] += 1
    for case, whole, file in zip((one, other), commands, files, strict=True):
        code, said = ended(start(whole, tmp_path / "both"))
        require_line(code, said)
        # the supernet of another space is in the way of a search
        assert code == 0 or "supernet of mobile-small" in said, said
        assert code or essence(case, file)
    assert left(tmp_path / "both") == []
