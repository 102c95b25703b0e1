"""``deploynas adapt MODEL --explain``, from the command line."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from deploynas.cli.main import app
from deploynas.errors import DeploynasError
from deploynas.nn.adapt.sources import load_module
from deploynas.nn.adapt.space import widths

SOURCE = """
import torch
from torch import nn
from beside import WIDTH

def network():
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10),
    )

def needy(width):
    return network()

def number():
    return 5

def broken():
    raise RuntimeError("no such file: weights.pth")

def half():
    return network().half()

def leaves():
    raise SystemExit(0)

def talks():
    print("loading ...")
    return network()

SHELF = 3
"""


@pytest.fixture
def source(tmp_path):
    (tmp_path / "beside.py").write_text("WIDTH = 24\n")
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def run(*options):
    return CliRunner().invoke(app, ["adapt", *map(str, options)])


def test_explained(source):
    said = run(f"{source}:network", "--explain", "--resolution", "16x24", "--json", "--quiet")
    assert said.exit_code == 0, said.exception
    document = json.loads(said.stdout)
    assert document["input"] == [1, 3, 16, 24]
    assert document["macs"] == 16 * 24 * 27 * 24 + 24 * 10
    assert document["macs_narrowest"] == 16 * 24 * 27 * 8 + 8 * 10
    assert document["groups"] == [
        {"name": "0", "kind": "width", "options": [8, 16, 24], "layers": ["0"]}
    ]
    assert document["frozen"] == [{"name": "5", "reason": "the network's output"}]
    for_people = run(f"{source}:network", "--explain", "--resolution", "16", "--quiet")
    assert "channels: 1" in for_people.stdout
    assert "the network's output" in for_people.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine.py:needy", "needs width"),
        ("mine.py:number", "returns int, and a torch.nn.Module is needed"),
        ("mine.py:broken", "ends in RuntimeError: no such file: weights.pth"),
        ("mine.py:nework", "did you mean 'network'"),
        ("mine.py:SHELF", "unknown function of"),
        ("mine.py:half", "is float16, and float32 is needed"),
        ("mine.py:leaves", "ends in SystemExit"),
        ("torchvision:fasterrcnn_resnet50_fpn", "unknown network of torchvision"),
        ("other.py:network", "does not exist"),
        ("mine.py", "names no network"),
        ("keras:resnet", "neither a .py file nor one of torchvision, timm"),
        ("torchvision:mobilenet_v9", "did you mean 'mobilenet_v"),
    ],
)
def test_what_is_no_network(source, name, said):
    spec = f"{source.parent}/{name}" if ".py" in name else name
    found = run(spec, "--explain", "--quiet")
    assert isinstance(found.exception, DeploynasError)
    assert said in str(found.exception)


def test_what_a_file_prints_is_no_answer(source):
    found = run(f"{source}:talks", "--explain", "--resolution", "16", "--json", "--quiet")
    assert json.loads(found.stdout)["network"] == "Sequential"
    assert "loading ..." in found.stderr


def test_it_is_not_searched_yet(source):
    found = run(f"{source}:network")
    assert "--explain" in str(found.exception)


@pytest.mark.slow
def test_weights_of_a_library(tmp_path):
    module = load_module("torchvision:squeezenet1_1")
    with torch.no_grad():
        module.classifier[1].bias.fill_(0.25)
    torch.save(module.state_dict(), tmp_path / "w.pth")
    again = load_module("torchvision:squeezenet1_1", tmp_path / "w.pth")
    assert torch.equal(again.classifier[1].bias, module.classifier[1].bias)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    found = run("torchvision:squeezenet1_1", "--explain", "--weights", tmp_path / "other.pth")
    assert "are not of torchvision:squeezenet1_1: they lack features.0.weight" in str(
        found.exception
    )


def test_widths_are_steps_of_eight_from_a_quarter_up():
    assert widths(64) == [16, 24, 32, 40, 48, 56, 64]
    assert widths(58) == [16, 24, 32, 40, 48, 56, 58]
    assert widths(8) == [2, 4, 6, 8]
    assert widths(3) == [1, 2, 3]
