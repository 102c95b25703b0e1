"""A trained network of one's own, made to keep its limits."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from deploynas.artifacts import read_json
from deploynas.cli.main import app
from deploynas.data import load_dataset
from deploynas.device import StopRule
from deploynas.errors import DeploynasError
from deploynas.export import Manifest
from deploynas.nn.adapt import read
from deploynas.search import Budget
from deploynas.workflows import adapting, workshop
from deploynas.workflows.adapting import Adapted, AdaptPlan
from deploynas.workflows.target import Tell

SIDE = 16
SOURCE = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.BatchNorm2d(48), nn.ReLU(),
        nn.Conv2d(48, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2),
    )
"""

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_sessions")]


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    rule = StopRule(precision=1e-6, min_sessions=2, max_sessions=2, rounds=3, session_seconds=3.0)
    monkeypatch.setattr(workshop, "BESIDE_RULE", rule)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes, told apart by where they are bright."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, num in (("train", 80), ("test", 20)):
        for place, name in enumerate(("top", "bottom")):
            (folder / split / name).mkdir(parents=True)
            for i in range(num):
                pixels = rng.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8)
                pixels[8 * place : 8 * place + 8] += 60
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return f"{path}:network"


def run(*options):
    return CliRunner().invoke(app, ["adapt", *map(str, options)])


@pytest.mark.long
def test_a_limit_on_multiply_adds(source, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = (
        source, "--data", images, "--resolution", SIDE, "--max-flops", "600k",
        "--evaluations", 24, "--epochs", 12, "--beside", "--json", "--quiet",
    )  # fmt: skip
    found = run(*options)
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    rows = {row["name"]: row for row in document["rows"]}
    assert rows["original"]["macs"] > 2 * 600_000
    for name in ("found", "trained", "narrowed uniformly"):
        assert rows[name]["macs"] <= 600_000
    assert rows["trained"]["accuracy"] > 0.9 > rows["original"]["accuracy"]
    manifest = Manifest.read(tmp_path / document["export"] / "manifest.json")
    assert manifest.limits == {"macs": 600_000.0}
    assert manifest.macs == rows["trained"]["macs"]
    assert manifest.weights == "fine-tuned"
    assert manifest.parity_max_abs_diff < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / document["export"] / "model.onnx")
    (one,) = session.get_inputs()
    assert one.shape == [1, 3, SIDE, SIDE]
    # what was judged is not judged again, and the answer is the same
    lines = (tmp_path / document["run"] / "evaluations.jsonl").read_text()
    again = json.loads(run(*options).stdout)
    assert (tmp_path / document["run"] / "evaluations.jsonl").read_text() == lines
    assert again["architecture"] == document["architecture"]
    assert [r["accuracy"] for r in again["rows"]] == [r["accuracy"] for r in document["rows"]]


def test_check_goes_on_from_its_export(source, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run(
        source, "--data", images, "--resolution", SIDE, "--max-params", "20k",
        "--evaluations", 16, "--no-finetune", "--quiet",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "next: deploynas check exports" in found.output
    checked = CliRunner().invoke(app, ["check", "--json", "--quiet", "--data", str(images)])
    assert checked.exit_code == 0, checked.output
    assert read_json(tmp_path / "runs" / "adapt-mine.py-network" / "adapted.json")["schema"]


@pytest.mark.long
def test_a_limit_on_latency_is_kept_by_what_was_measured(images, tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 96, 3, padding=1), nn.BatchNorm2d(96), nn.ReLU(),
        nn.Conv2d(96, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2),
    )  # fmt: skip
    reading = read(module, torch.randn(1, 3, 32, 32))
    dataset = load_dataset(images, max_size=32)
    from deploynas.device import open_device

    device = open_device("cpu")
    original = workshop.measure_bytes(
        device, workshop.onnx_bytes(module, reading.example)
    ).estimate()
    limit = 0.6 * original.median
    plan = AdaptPlan("mine", Budget(latency_ms=limit), 20, "magnitude", finetunes=False)
    said = []
    arguments = (
        module, reading, dataset, device, plan, tmp_path / "run", tmp_path / "export",
        Tell(note=said.append),
    )  # fmt: skip
    result = adapting.adapt(*arguments)
    assert result.row("found").macs < result.row("original").macs
    assert result.predicted_ms == pytest.approx(limit, rel=0.5)
    assert any("networks measured" in text for text in said)
    measured = (tmp_path / "run" / "measured.jsonl").read_text()
    # what was measured stays measured
    assert adapting.adapt(*arguments).architecture == result.architecture
    assert (tmp_path / "run" / "measured.jsonl").read_text() == measured
    assert Adapted.read(Adapted.file_in(tmp_path / "run")).budget.latency_ms == limit


@pytest.mark.long
def test_other_classes_get_a_head_that_is_trained(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(SOURCE.replace("nn.Linear(64, 2)", "nn.Linear(64, 7)"))
    found = run(
        f"{path}:network", "--data", images, "--resolution", SIDE, "--max-flops", "800k",
        "--evaluations", 16, "--epochs", 12, "--no-finetune", "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "a new head, for 2 classes" in found.output
    document = json.loads(found.stdout[found.stdout.index("{") :])
    assert document["rows"][0]["accuracy"] > 0.9
    kept = [p.name for p in (tmp_path / document["run"]).glob("original-*.safetensors")]
    assert len(kept) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "pass --data DIR"),
        (("--data", "DATA", "--max-flops", "9M", "--importance", "age"), "taylor or magnitude"),
        (("--data", "DATA", "--max-flops", "1G"), "keeps the limits as it is"),
        (("--data", "DATA", "--max-flops", "1k"), "the lowest reachable is"),
        (("--data", "DATA", "--max-flops", "600k", "--keep", "nose"), "--keep nose names nothing"),
        (("--data", "DATA", "--max-flops", "600k", "--mean", "0.5"), "3 numbers"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(options, said, source, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [images if one == "DATA" else one for one in options]
    found = run(source, "--resolution", SIDE, "--evaluations", 8, "--quiet", *given)
    assert isinstance(found.exception, DeploynasError)
    assert said in str(found.exception)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(72, 2))", "does not take an"),
        ("nn.Conv2d(3, 8, 3)", "is no classifier"),
    ],
)
def test_networks_that_cannot_be_judged(body, said, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(f"from torch import nn\n\ndef network():\n    return {body}\n")
    found = run(
        f"{path}:network", "--data", images, "--resolution", SIDE, "--max-flops", "1M", "--quiet"
    )
    assert isinstance(found.exception, DeploynasError)
    assert said in str(found.exception)
