"""The whole chain with images that are wider than high."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import deploynas
from deploynas.spaces import space

PACKAGE = str(Path(deploynas.__file__).parents[1])
MAIN = "from deploynas.cli.main import main; main()"
TABLE = """
operator = "mbconv"
resolutions = ["24x40"]
kernel_sizes = [3, 5]
expand_ratios = [2]
activation = "relu"
stem = { width = 8 }
first = { width = 8 }
head = { width = 32 }
[[stages]]
width = 16
stride = 2
depths = [1, 2]
"""


def make_images(root: Path) -> Path:
    """Bright at both ends or nowhere, which a square out of the centre would not see."""
    rng = np.random.default_rng(0)
    for name, brighter in (("ends", 130), ("plain", 0)):
        (root / name).mkdir(parents=True)
        for number in range(80):
            pixels = rng.integers(0, 120, (46, 74), dtype=np.uint8)
            pixels[:, :12] += brighter
            pixels[:, -12:] += brighter
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def run(*arguments: str, cwd: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MAIN, *arguments, "--json"],
        capture_output=True, text=True, cwd=cwd, timeout=600,
        env={**os.environ, "PYTHONPATH": PACKAGE},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    found: dict = json.loads(done.stdout)
    return found


@pytest.mark.long
def test_the_chain_on_wide_images(tmp_path, board_profile):
    data = str(make_images(tmp_path / "images"))
    (tmp_path / "wide.toml").write_text(TABLE)
    wide = space(str(tmp_path / "wide.toml"), 2, 1)
    (tmp_path / "profiles").mkdir()
    board_profile(wide).write(tmp_path / "profiles" / "board.json")
    asked = ("--space", "wide.toml", "--data", data)

    run("profile", *asked, "--budget-minutes", "0.2", cwd=tmp_path)
    trained = run("train", *asked, "--epochs", "12", "--output", "runs/s", cwd=tmp_path)
    assert trained["space"]["resolutions"] == ["24x40"]
    found = run(
        "search", *asked, "--supernet", "runs/s", "--profile", "profiles/board.json",
        "--latency-ms", "1000", "--evaluations", "4", "--output", "runs/found", cwd=tmp_path,
    )  # fmt: skip
    assert found["architecture"]["resolution"] == "24x40"
    assert found["macs"] == wide.macs(wide.encode([found["architecture"]]))[0]
    assert found["accuracy"] > 0.9

    exported = run("export", "runs/found", "--name", "plain", cwd=tmp_path)
    assert exported["parity_max_abs_diff"] < 1e-3
    manifest = json.loads((tmp_path / exported["manifest"]).read_text())
    assert manifest["preprocessing"]["resolution"] == manifest["data_size"] == "24x40"
    (image,) = onnx.load(tmp_path / exported["model"]).graph.input
    assert [d.dim_value for d in image.type.tensor_type.shape.dim] == [1, 1, 24, 40]
    framed = run("export", "runs/found", "--name", "framed", "--image-size", "46x74", cwd=tmp_path)
    assert framed["preprocessing_max_abs_diff"] < 0.1

    checked = run(
        "check", "exports/plain", "--latency-ms", "1000", "--data", data, "--min-accuracy", "0.9",
        cwd=tmp_path,
    )  # fmt: skip
    assert checked["verdict"] == "pass"
    layers = run("inspect", "runs/found", cwd=tmp_path)["layers"]
    assert layers[0]["input"] == [1, 1, 24, 40]

    code = (Path(PACKAGE) / "examples" / "python" / "classify.py", "images/ends/3.png")
    done = subprocess.run(
        [sys.executable, *map(str, code), "exports/plain"],
        capture_output=True, text=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert done.stdout.split()[1] == "ends", done.stderr
