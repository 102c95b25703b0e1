"""Two real processes train what one process trains with the same batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import deploynas

PACKAGE = str(Path(deploynas.__file__).parents[1])
SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import torch
torch.set_num_threads(1)
from deploynas import spaces
from deploynas.data.sources import _load_digits
from deploynas.nn import Supernet
from deploynas.train import SupernetRecipe, save_weights, train_supernet
from deploynas.train.distributed import place, processes

folder, schedule = Path(sys.argv[1]), sys.argv[2]
digits = _load_digits((), seed=0, max_size=64)
space = spaces.space("mobile-small", 10, 1, [20, 24])
seen = []
forward = Supernet.forward
def spy(self, x, arch):
    seen.append([len(x), *map(int, arch)])
    return forward(self, x, arch)
Supernet.forward = spy
losses = []
with processes():
    torch.manual_seed(0)
    net = Supernet(space)
    recipe = SupernetRecipe(
        epochs=0.35, batch_size=64, schedule=schedule, augment_from=0.0, learning_rate=0.02
    )
    train_supernet(net, digits, recipe, on_progress=lambda p: losses.append(p.loss),
                   checkpoint=folder / "checkpoint.safetensors")
    rank, count = place()
    save_weights(folder / f"{rank}of{count}.safetensors", net)
    (folder / f"{rank}of{count}.json").write_text(json.dumps({"losses": losses, "seen": seen}))
"""


def start(folder, schedule, rank, count, port):
    environment = os.environ | {
        "RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "PYTHONPATH": PACKAGE,
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), schedule], env=environment,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


@pytest.mark.parametrize("schedule", ["progressive"])
def test_two_processes_are_one(schedule, tmp_path):
    finish(start(tmp_path, schedule, 0, 1, 0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for process in [start(tmp_path, schedule, rank, 2, port) for rank in (0, 1)]:
        finish(process)
    alone, first, second = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0of1", "0of2", "1of2")
    )
    assert first["losses"] == second["losses"]
    assert first["seen"] == second["seen"]
    assert [row[1:] for row in first["seen"]] == [row[1:] for row in alone["seen"]]
    assert {row[0] for row in first["seen"]} == {32}
    assert {row[0] for row in alone["seen"]} == {64}
    assert len(alone["losses"]) > 5
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=2e-3)
    weights = {
        name: load_file(tmp_path / f"{name}.safetensors") for name in ("0of1", "0of2", "1of2")
    }
    for name, tensor in weights["0of2"].items():
        assert torch.equal(tensor, weights["1of2"][name]), name
