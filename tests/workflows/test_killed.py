"""Conformance of all that runs long: killed at any moment it leaves no worker, loses nothing.

``make test-kill`` kills every case at 20 random moments; the ordinary tests two of them twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deploynas
from deploynas import spaces
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


def command(case, folder, images, board_profile):
    """The verb with all it needs, and the file that it ends with."""
    space_name, *options = SEARCHES[case]
    space = space_for(space_name, load_dataset(images, max_size=64))
    profile = folder / "board.json"
    if not profile.exists():
        folder.mkdir(exist_ok=True)
        board_profile(space).write(profile)
    verb = "compare" if case == "compare" else "search"
    whole = [
        sys.executable, "-W", "ignore", "-c", "from deploynas.cli.main import main; main()",
        verb, "--space", space_name, "--data", str(images), "--profile", str(profile),
        "--max-params", "1e9", "--output", "run", "--quiet", *options,
    ]  # fmt: skip
    return whole, folder / "run" / ("comparison.json" if case == "compare" else "search.json")


def start(whole, folder):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": PACKAGE}
    with (folder / "said.txt").open("wb") as said:
        return subprocess.Popen(
            whole, cwd=folder, env={**environment, "OMP_NUM_THREADS": "1"}, stderr=said
        )


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


def essence(file):
    """What must be the same, whatever happened on the way."""
    found = read_json(file)
    if "winners" in found:
        return [
            {k: v for k, v in w.items() if not k.endswith("seconds")} for w in found["winners"]
        ]
    return {k: v for k, v in found.items() if k not in ("inputs", "profile")}


@pytest.mark.long
@pytest.mark.parametrize("case", SEARCHES if NUM_KILLS else ALWAYS)
def test_killed_at_random_moments(case, images, board_profile, tmp_path):
    whole, file = command(case, tmp_path / "whole", images, board_profile)
    started = time.monotonic()
    process = start(whole, tmp_path / "whole")
    assert process.wait() == 0, (tmp_path / "whole" / "said.txt").read_text()
    seconds = time.monotonic() - started
    expected = essence(file)

    rng = np.random.default_rng(0)
    broken, file = command(case, tmp_path / "broken", images, board_profile)
    journal = tmp_path / "broken" / "run" / "evaluations.jsonl"
    # what is kept makes it shorter each time, so that the moments are drawn from what is left
    for share in rng.uniform(0.15, 1.0, NUM_KILLS or 2):
        process = start(broken, tmp_path / "broken")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(share * seconds)
        workers = descendants(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and any(map(is_alive, workers)):
            time.sleep(0.05)
        assert not [pid for pid in workers if is_alive(pid)]
        if journal.exists() and rng.random() < 0.5:  # as a loss of power leaves it
            journal.write_bytes(journal.read_bytes()[: -int(rng.integers(1, 20))])
    process = start(broken, tmp_path / "broken")
    assert process.wait() == 0, (tmp_path / "broken" / "said.txt").read_text()
    assert essence(file) == expected
    if journal.exists():
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        asked = [json.dumps([x["evaluator"], x["fidelity"], x["architecture"]]) for x in lines]
        assert len(set(asked)) == len(asked)  # nothing was evaluated twice
    assert spaces.is_known(SEARCHES[case][0])
