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
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import deploynas
from deploynas import spaces
from deploynas.cli.main import main
from deploynas.data.sources import load_digits
from deploynas.errors import InvalidInputError
from deploynas.profile import LatencyModel
from deploynas.search import Budget, Effort, Plan, SearchResult
from deploynas.search.strategies.ofa import STRATEGY as OFA
from deploynas.train import SupernetRecipe
from deploynas.workflows import compare, demo, retraining
from deploynas.workflows import search as searching
from deploynas.workflows.candidates import Candidates
from deploynas.workflows.gradient import GradientRecord
from deploynas.workflows.inherited import Inherited
from deploynas.workflows.target import Tell

pytestmark = pytest.mark.slow
PACKAGE = str(Path(deploynas.__file__).parents[1])
ENVIRONMENT = os.environ | {"PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1"}
SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import torch
torch.set_num_threads(1)
from deploynas import spaces
from deploynas.data.sources import load_digits
from deploynas.nn import Loan, Supernet
from deploynas.train import SupernetRecipe, save_weights, train_supernet
from deploynas.train.distributed import place, processes

folder, schedule = Path(sys.argv[1]), sys.argv[2]
digits = load_digits((), seed=0, max_size=64)
space = spaces.space("mobile-small", 10, 1, [20, 24])
seen = []
lend = Supernet.lend
def spy(self, arch, lender):
    loan = lend(self, arch, lender)
    def run(x):
        seen.append([len(x), *map(int, arch)])
        return loan.run(x)
    return Loan(run, loan.sources)
Supernet.lend = spy
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


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run(script, *arguments, count=2):
    """``count`` processes as ``torchrun`` starts them: exit code, output and errors of each."""
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            env=ENVIRONMENT
            | {
                "RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    found = [(*process.communicate(timeout=240), process.returncode) for process in started]
    return [(code, out, errors) for out, errors, code in found]


def run_well(script, *arguments, count=2):
    for code, _, errors in run(script, *arguments, count=count):
        assert code == 0, errors


@pytest.mark.long
@pytest.mark.parametrize("schedule", ["progressive"])
def test_two_processes_are_one(schedule, tmp_path):
    run_well(SCRIPT, tmp_path, schedule, count=1)
    run_well(SCRIPT, tmp_path, schedule)
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


PARTS = """
import sys
from pathlib import Path
import torch
from torch import nn
from deploynas import spaces
from deploynas.nn import MixedCells
from deploynas.nn.norm import BatchNorm2d
from deploynas.search.darts import DartsOptions, DartsOptimizer
from deploynas.search.gradient import WeightStep
from deploynas.train.distributed import place, processes


folder = Path(sys.argv[1])
given = torch.load(folder / "given.pt", weights_only=True)
with processes():
    rank, count = place()
    part = slice(rank, None, count)  # of 7 images one process has one more
    norm = BatchNorm2d(3).train()
    norm.weight.data, norm.bias.data = given["weight"], given["bias"]
    x = given["x"][part].clone().requires_grad_()
    out = norm(x)
    (out * given["pull"][part]).sum().backward()
    found = {
        "out": out.detach(), "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad,
        "mean": norm.running_mean, "variance": norm.running_var,
    }
    torch.manual_seed(0)
    space = spaces.space(sys.argv[2], 10, 1, [8])
    network = MixedCells(space).double()
    x, labels = torch.randn(7, 1, 8, 8).double(), torch.arange(7)
    x_train, labels_train = torch.randn(8, 1, 8, 8).double(), torch.arange(8)
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.2)
    recipe = DartsOptions(order="second", rate=0.1)
    optimizer = DartsOptimizer(network, [], recipe)
    step = WeightStep(x_train[part], lambda out: smoothed(out, labels_train[part]), 0.2)
    for _ in range(3):
        loss = optimizer.step(x[part], labels[part], None, 0.0, step)
    found |= {f"row {i}": row.detach() for i, row in enumerate(network.rows)}
    found["loss"] = torch.tensor(loss).double()
    torch.save(found, folder / f"{rank}of{count}.pt")
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """What :data:`PARTS` found: as one process, and as each of two."""
    folder = tmp_path_factory.mktemp("parts")
    generator = torch.Generator().manual_seed(0)
    given = {
        "x": 1000 + 0.1 * torch.randn(7, 3, 6, 6, generator=generator),
        "pull": torch.randn(7, 3, 6, 6, generator=generator),
        "weight": torch.tensor([0.5, 1.0, 2.0]),
        "bias": torch.tensor([0.0, -1.0, 3.0]),
    }
    torch.save(given, folder / "given.pt")
    run_well(PARTS, folder, CELLS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["", str(folder), CELLS])
        exec(PARTS, {})
    names = ("0of1", "0of2", "1of2")
    return given, *(torch.load(folder / f"{name}.pt", weights_only=True) for name in names)


@pytest.mark.long
def test_batch_norm_over_two_processes_where_the_mean_is_far_from_zero(parts):
    """Outputs, statistics and gradients; E[x^2] - E[x]^2 would be noise."""
    given, _, first, second = parts
    exact = {name: tensor.double() for name, tensor in given.items()}
    norm = nn.BatchNorm2d(3).double()
    norm.weight.data, norm.bias.data = exact["weight"], exact["bias"]
    x = exact["x"].requires_grad_()
    out = norm(x)
    (out * exact["pull"]).sum().backward()

    def near(found, expected, tolerance=2e-3):
        scale = expected.abs().max()
        assert (found.double() - expected).abs().max() < tolerance * scale

    for name, expected in (("out", out.detach()), ("x", x.grad)):
        near(first[name], expected[::2])
        near(second[name], expected[1::2])
    for name, parameter in (("weight", norm.weight), ("bias", norm.bias)):
        near(first[name] + second[name], parameter.grad)
    for one in (first, second):
        near(one["mean"], norm.running_mean, 1e-6)
        near(one["variance"], norm.running_var, 1e-5)


@pytest.mark.long
def test_second_order_steps_of_two_processes_are_those_of_one(parts):
    _, alone, first, second = parts
    for name in (name for name in alone if name.startswith("row") or name == "loss"):
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], alone[name], rtol=1e-5, atol=1e-6)


CELLS = "darts-small:channels=4,cells=3,nodes=2,operations=skip_connect+sep_conv_3x3"
VERB = "from deploynas.cli.main import main; main()"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The digits at 8 px as a folder of images, some 360 of them."""
    digits = load_digits((), seed=0, max_size=8).val
    root = tmp_path_factory.mktemp("digits")
    for i in range(2, -1, -1):
        for number, (image, label) in enumerate(zip(digits.images, digits.labels, strict=True)):
            folder = root / str(label)
            folder.mkdir(exist_ok=True)
            shifted = np.roll(image[..., 0], i, axis=1)
            Image.fromarray(shifted).save(folder / f"{number}-{i}.png")
    return root


def arguments_for(strategy, name, images, board_profile, folder):
    """Of a search under half of what the space's networks take."""
    space = spaces.space(name, 10, 1, [8])
    profile = board_profile(space)
    profile.write(folder / "board.json")
    ms = float(np.median(LatencyModel(space, profile).upper_ms(space.uniform())))
    return [
        "search", "--strategy", strategy, "--space", name, "--latency-ms", f"{ms:.4f}",
        "--data", str(images), "--profile", str(folder / "board.json"), "--evaluations", "4",
    ]  # fmt: skip


@pytest.mark.long
def test_a_gradient_search_under_torchrun(images, board_profile, tmp_path, monkeypatch):
    """Finds what one process finds, and one process alone decides, writes and talks."""
    search = arguments_for("proxyless", "proxyless-small", images, board_profile, tmp_path)
    search += ["--epochs", "2", "--json", "--output"]
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
        str(free_port()), "--no-python",
    ]  # fmt: skip
    done = subprocess.run(
        [*torchrun, sys.executable, "-c", VERB, *search, str(tmp_path / "both")],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["strategy"] == "proxyless"  # one document
    assert done.stderr.count("profile ") == 1
    monkeypatch.setattr(sys, "argv", ["deploynas", *search, str(tmp_path / "alone")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    one, two = (SearchResult.read(tmp_path / run / "search.json") for run in ("alone", "both"))
    assert one.decision.free_architecture == two.decision.free_architecture
    assert one.best.architecture == two.best.architecture
    points = [
        GradientRecord.read(tmp_path / run / "gradient.json").history for run in ("alone", "both")
    ]
    for alone, both in zip(*points, strict=True):
        assert (both.loss is None) == (alone.loss is None)
        assert (both.loss or 0) == pytest.approx(alone.loss or 0, rel=0.02)
        for p, q in zip(alone.probabilities, both.probabilities, strict=True):
            assert p == pytest.approx(q, abs=1e-3)
    start, end = (np.concatenate(point.probabilities) for point in (points[0][0], points[0][-1]))
    assert np.abs(end - start).max() > 0.1


@pytest.mark.long
def test_an_error_of_the_first_process_ends_all(images, board_profile, tmp_path):
    """Said once; the other process ends without one of its own, so that it cannot be faster."""
    search = arguments_for("darts", CELLS, images, board_profile, tmp_path)
    search[search.index("--latency-ms") + 1] = "0.0000001"
    first, second = run(VERB, *search, "--json", "--output", tmp_path / "run")
    assert (first[0], second[0]) == (1, 0)
    assert json.loads(first[1])["error"]["kind"] == "infeasible-budget"
    assert second[1:] == ("", "")
    assert "Traceback" not in first[2]


SMALL = spaces.space("mobile-small", 10, 1, [16])


def search_by(source):
    plan = Plan(OFA, OFA.options(), 0, Effort(4))
    return searching.search(Budget(), plan, source, None, None, Tell())


WORKFLOWS = {
    "inherited": lambda: search_by(Inherited(SMALL, None, Path("nowhere"), SupernetRecipe())),
    "candidates": lambda: search_by(Candidates(SMALL, None, SupernetRecipe(), halving=False)),
    "retrain": lambda: retraining.retrain_run(None, None, None, None, print),
    "compare": lambda: compare.compare(SMALL, None, None, None, None, tell=Tell()),
    "demo": lambda: demo.run_demo(None, epochs=1.0, seed=0, on_progress=print),
}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_does_not_share_its_work_refuses(name, monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InvalidInputError, match="2 processes that torchrun started"):
        WORKFLOWS[name]()
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as ended:
        WORKFLOWS[name]()
    assert not ended.value.code
    assert capfd.readouterr() == ("", "")
