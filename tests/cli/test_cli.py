"""The command line from outside: options, exit codes, JSON, and the whole chain."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

import deploynas
from deploynas.cli.main import main
from deploynas.cli.profile import choose_space
from deploynas.graph import RandomWeights, write_model
from deploynas.profile import DeviceProfile
from deploynas.spaces import Layer, StagedSpace
from deploynas.spaces.layers import chain

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_sessions")]
# the package under test, whichever copy is installed
PACKAGE = str(Path(deploynas.__file__).parents[1])
SEARCH = ("search", "--latency-ms", "1")
VERBS = {
    "spaces": {"--json", "--quiet"},
    "devices": {"--ask", "--json", "--quiet"},
    "profile": {"--device", "--space", "--data", "--num-classes", "--in-channels", "--resolution",
                "--threads", "--precision", "--output", "--bundle", "--import",
                "--from", "--samples", "--json", "--quiet"},
    "train": {"--space", "--data", "--output", "--epochs", "--recipe", "--recipe-set", "--json",
              "--quiet"},
    "search": {"--latency-ms", "--max-flops", "--max-params", "--max-memory", "--strategy",
               "--space", "--profile", "--supernet", "--ofa-weights", "--calibration-images",
               "--data", "--seed", "--output", "--limit", "--set", "--recipe-set",
               "--evaluator", "--workers", "--precision", "--json", "--quiet"},
    "strategies": {"show", "--space", "--json"},
    "retrain": {"--from-scratch", "--data", "--epochs", "--json", "--quiet"},
    "export": {"--name", "--format", "--with-preprocessing", "--image-size", "--opset",
               "--precision",
               "--max-accuracy-drop", "--output", "--json", "--quiet"},
    "check": {"--device", "--threads", "--latency-ms", "--baseline", "--max-regression",
              "--timeout", "--allow-other-device", "--record", "--max-size", "--max-memory",
              "--input-shape",
              "--summary", "--junit", "--data",
              "--min-accuracy", "--json", "--quiet"},
    "compare": {"--strategies", "--evaluator", "--images", "--latency-ms", "--seeds", "--space",
                "--data", "--profile", "--workers", "--max-minutes", "--output", "--limit",
                "--json", "--quiet"},
    "inspect": {"--profile", "--space", "--json", "--quiet"},
    "profiles": {"list", "show"},
    "demo": {"--data", "--download", "--minutes", "--epochs", "--json", "--quiet"},
}  # fmt: skip


def environment(cwd: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "COLUMNS": "200", "HOME": str(cwd), "PYTHONPATH": PACKAGE}


def run_without(package: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line, as if ``package`` were not installed."""
    hide = f"import sys; sys.modules[{package!r}] = None;"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c",
         f"{hide}from deploynas.cli.main import main; main()", *arguments],
        capture_output=True, text=True, cwd=cwd, timeout=300, env=environment(cwd),
    )  # fmt: skip


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line, in this process: another one would import torch each time."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        patch.dict(os.environ, environment(cwd), clear=True),
        patch.object(sys, "argv", ["deploynas", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(action="ignore"),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    code = ended.value.code
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@pytest.mark.parametrize("verb", VERBS)
def test_documented_options_exist(verb: str, tmp_path: Path) -> None:
    result = run(verb, "--help", cwd=tmp_path)
    assert result.returncode == 0
    missing = {option for option in VERBS[verb] if option not in result.stdout}
    assert not missing


def test_light_imports(tmp_path: Path) -> None:
    code = (
        "import sys, deploynas, deploynas.cli.main;"
        "print([m for m in ('torch', 'onnxruntime', 'onnx', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("search", "--latency-ms", "nan"), 1, "positive number"),
        (("search", "--latency-ms", "-1"), 1, "positive number"),
        (("search", "--latency-ms", "0"), 1, "positive number"),
        (("search",), 2, "give a budget"),
        (("search", "--latency-ms", "1", "--strategy", "randm"), 1, "did you mean 'random'"),
        (("search", "--latency-ms", "1", "--space", "mobile-smal"), 1, "'mobile-small'"),
        (("search", "--latency-ms", "1"), 1, "deploynas profile --device cpu"),
        (("profile", "--device", "cpuu"), 1, "did you mean 'cpu'"),
        (("check", "nothing.onnx"), 1, "does not exist"),
        (("check",), 1, "deploynas export"),
        (("check", "m.onnx", "--max-regression", "2%"), 1, "goes with --baseline"),
        (("check", "m.onnx", "--timeout", "9"), 1, "--timeout goes with --baseline"),
        (("train", "--epochs", "nan"), 1, "--epochs must be a positive number"),
        (("demo", "--epochs", "nan"), 1, "--epochs must be a positive number"),
        (("demo", "--minutes", "0"), 1, "--minutes must be a positive number"),
        (("export",), 1, "deploynas search"),
        (("retrain",), 1, "deploynas search"),
        (("nonsense",), 2, "No such command"),
        (("devices", "install", "wep"), 1, "did you mean 'web'"),
        (("export", "--precision", "int9"), 1, "did you mean 'int8'"),
        (("devices", "remove", "pi"), 1, "unknown device 'pi'"),
        (("devices", "add", "pi"), 1, "give one of --exec COMMAND and --ssh HOST"),
        (("devices", "add", "web", "--ssh", "x"), 1, "choose another name"),
        (("devices", "add", "x", "--exec", "y", "--python", "z"), 1, "--python goes with --ssh"),
        (("profile", "--import", "none.jsonl"), 1, "does not exist"),
        (("profile", "validate"), 1, "deploynas profile --device cpu"),
        (("profile", "validate", "nothing.json"), 1, "does not exist"),
        (("profile", "--budget-minutes", "nan"), 1, "--budget-minutes must be a positive"),
        (("profile", "--budget-minutes", "-1"), 1, "--budget-minutes must be a positive"),
        (("profile", "validate", "--seed", "-1"), 2, "--seed"),
        (("inspect", "nothing.onnx"), 1, "does not exist"),
        ((*SEARCH, "--evaluator", "guess"), 1, "unknown evaluator 'guess'"),
        ((*SEARCH, "--strategy", "darts", "--workers", "2"), 1, "start it by torchrun"),
        ((*SEARCH, "--workers", "2", "--executor", "lokal"), 1, "did you mean 'local'"),
        ((*SEARCH, "--strategy", "darts", "--evaluator", "training"), 1, "it goes with ofa, evol"),
        ((*SEARCH, "--set", "costs=params"), 1, "unknown option of predictor 'costs'"),
        (
            (*SEARCH, "--strategy", "ofa", "--set", "costs=params"),
            1,
            "unknown option of ofa 'costs' (it has none)",
        ),
        ((*SEARCH, "--strategy", "pareto", "--set", "costs=macz"), 1, "did you mean 'macs'"),
        ((*SEARCH, "--strategy", "evolution", "--set", "populaton=9"), 1, "'population'"),
        (
            (*SEARCH, "--strategy", "evolution", "--set", "cooling=1"),
            1,
            "unknown option of evolution 'cooling' (known: ",
        ),
        (("train", "--recipe-set", "batch_size=0"), 1, "recipe field batch_size: "),
        (("train", "--recipe-set", "learning_rate=-1"), 1, "recipe field learning_rate: "),
        (("train", "--recipe-set", "epochs=-1"), 1, "recipe field epochs: "),
        (("train", "--recipe-set", "teacher_ramp=-1"), 1, "recipe field teacher_ramp: "),
        (("train", "--recipe", "strongg"), 1, "did you mean 'strong'"),
        (("train", "--resume"), 2, "No such option"),
        ((*SEARCH, "--supernet", "x", "--epochs", "3"), 1, "--supernet is trained: leave out"),
        ((*SEARCH, "--ofa-weights", "x", "--recipe", "strong"), 1, "--ofa-weights is trained"),
        ((*SEARCH, "--strategy", "evolution", "--set", "soft_flops=nan"), 1, "soft_flops"),
        ((*SEARCH, "--set", "population"), 1, "--set is NAME=VALUE"),
        (("search", "--limit", "macs"), 1, "--limit is NAME=VALUE"),
        (("search", "--limit", "mac=3"), 1, "did you mean 'macs'"),
        (("search", "--limit", "macs=3X"), 1, "macs has no unit 'X' (it has k, M, G)"),
        (("search", "--limit", "macs=0M"), 1, "positive number"),
        ((*SEARCH, "--limit", "latency_ms=5"), 1, "latency_ms is given twice"),
        ((*SEARCH, "--profile", "a.json", "--profile", "b.json"), 1, "two profiles have no name"),
        (("strategies", "show", "evolutoin"), 1, "did you mean 'evolution'"),
        (("strategies", "--space", "darst"), 1, "did you mean 'darts'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_error_as_json(tmp_path: Path) -> None:
    result = run("search", "--latency-ms", "nan", "--json", cwd=tmp_path)
    assert json.loads(result.stdout)["error"]["kind"] == "invalid-input"


def make_images(folder: Path, per_class: int = 160) -> Path:
    """Bright and dark noise: two classes that a few steps can tell apart."""
    rng = np.random.default_rng(0)
    for name, low in (("bright", 150), ("dark", 0)):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(low, low + 100, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03}.png")
    return folder


@pytest.mark.long
def test_the_chain_on_an_image_folder(
    tmp_path: Path, signed: Callable[[dict[str, object]], str]
) -> None:
    data = str(make_images(tmp_path / "images"))
    done = run(
        "profile", "--data", data, "--resolution", "24", "--budget-minutes", "0.4", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_layers"] > 0

    validate = ("profile", "validate", "--budget-minutes", "0.1")
    done = run(*validate, "--num-networks", "6", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    validated = json.loads(done.stdout)
    assert validated["num_networks"] == 6
    assert 0 <= validated["mape"] <= validated["worst"]
    with Image.open(tmp_path / validated["picture"]) as picture:
        assert picture.width > 300
    few = (*validate, "--num-networks", "4", "--quiet", "--picture", "no.png")
    done = run_without("matplotlib", *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mean absolute error" in done.stdout
    assert "pip install 'deploynas[report]'" in done.stderr
    assert not (tmp_path / "no.png").exists()
    elsewhere = json.loads((tmp_path / "profiles" / "cpu.json").read_text())
    elsewhere["identity"]["processor"] = "another"
    other = tmp_path / "other.json"
    other.write_text(signed(elsewhere))
    done = run("profile", "validate", str(other), "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["kind"] == "device-mismatch"
    other.unlink()

    done = run("search", "--data", data, "--latency-ms", "0.0001", cwd=tmp_path)
    assert done.returncode == 1
    assert "lowest reachable" in done.stderr
    assert not (tmp_path / "runs").exists()

    search = ("search", "--data", data, "--epochs", "3", "--evaluations", "8", "--json")
    done = run(*search, "--latency-ms", "1000", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["not_binding"] == ["latency_ms"]
    assert found["accuracy_kind"] == "measured"

    done = run(*search, "--max-flops", "1e6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["macs"] <= 1e6

    done = run("export", "--opset", "18", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    exported = json.loads(done.stdout)
    assert exported["parity_max_abs_diff"] < 1e-3
    assert exported["weights"] == "inherited"
    assert json.loads(Path(tmp_path, exported["manifest"]).read_text())["opset"] == 18
    assert "changed since the search" not in done.stderr

    pixels = ("export", "--image-size", "40x30", "--name", "pixels", "--json")
    done = run(*pixels, "--opset", "17", cwd=tmp_path)
    assert done.returncode == 1
    assert "--opset 18" in json.loads(done.stdout)["error"]["message"]
    done = run("export", "--image-size", "40", cwd=tmp_path)
    assert (done.returncode, "like 480x640" in done.stderr) == (1, True)
    done = run(*pixels, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    takes_pixels = json.loads(done.stdout)
    assert takes_pixels["opset"] == 18
    assert 0 < takes_pixels["preprocessing_max_abs_diff"] < 0.1
    done = run("check", takes_pixels["path"], "--latency-ms", "1e4", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    accuracy_of_pixels = json.loads(done.stdout)["accuracy"]
    done = run("export", "--with-preprocessing", "--name", "own-side", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["preprocessing_max_abs_diff"] < 1e-4

    if importlib.util.find_spec("ai_edge_litert"):
        done = run("export", "--format", "tflite", "--name", "own", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        own = json.loads(done.stdout)
        assert own["model"] == "exports/own/model.tflite"
        assert own["converted"]["difference"] < 1e-4
        done = run("check", own["path"], "--latency-ms", "1e4", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["device"]["device"] == "litert"
        assert json.loads(done.stdout)["accuracy"] > 0.9
        done = run("export", "--name", "own", "--json", cwd=tmp_path)
        files = sorted(path.name for path in (tmp_path / "exports" / "own").iterdir())
        # the other format is gone
        assert files == ["manifest.json", "model.onnx", "sbom.cdx.json"]

    profile = tmp_path / "profiles" / "cpu.json"
    profile.write_text(profile.read_text() + "\n")
    done = run("export", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "profiles/cpu.json changed since the search" in done.stderr

    costs = {}
    for arguments in ((exported["path"],), (found["run"], "--profile", "profiles/cpu.json")):
        done = run("inspect", *arguments, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        costs[arguments[0]] = json.loads(done.stdout)
    of_file, of_run = costs.values()
    assert of_file["macs"] == of_run["macs"]
    assert of_file["weight_bytes"] == of_run["weight_bytes"]
    assert all(row["latency_ms"] > 0 for row in of_run["layers"])
    assert of_run["predicted_latency_ms"] > 0
    assert sum(row["latency_share"] for row in of_run["layers"]) == pytest.approx(1)
    assert of_file["params_before_folding"] == of_run["params"]
    done = run("inspect", exported["path"], "--profile", str(profile), "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["predicted_latency_ms"] == of_run["predicted_latency_ms"]
    manifest_path = tmp_path / exported["manifest"]
    content = manifest_path.read_text()
    manifest_path.write_text(signed(json.loads(content) | {"params": 7}))
    done = run("inspect", exported["path"], cwd=tmp_path)
    assert done.returncode == 1
    assert "the manifest says 7 params" in done.stderr
    manifest_path.write_text(content)
    done = run("inspect", exported["model"], cwd=tmp_path)
    assert "M MACs" in done.stdout

    weights = tmp_path / found["run"] / "supernet.json"
    record = weights.read_text()
    weights.write_text(signed(json.loads(record) | {"weights_sha256": "0" * 64}))
    done = run("retrain", "--epochs", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert "is not what" in done.stderr
    weights.write_text(record)

    done = run("retrain", "--epochs", "1", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    retrained = json.loads(done.stdout)
    done = run("export", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["weights"] == "fine-tuned"
    manifest = json.loads((tmp_path / exported["manifest"]).read_text())
    assert manifest["accuracy"] == retrained["accuracy"]

    done = run(*search, "--max-flops", "9e5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("export", cwd=tmp_path)  # another network now: those weights do not fit it
    assert done.returncode == 1
    assert "earlier search" in done.stderr
    done = run("retrain", "--from-scratch", "--epochs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("export", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["weights"] == "from-scratch"

    for limit, code in (("1000", 0), ("0.000001", 3)):
        done = run("check", exported["path"], "--latency-ms", limit, "--json", cwd=tmp_path)
        assert done.returncode == code, done.stderr
        checked = json.loads(done.stdout)
        assert 0 < checked["latency_ms"]["low"] <= checked["latency_ms"]["high"]
        assert 0 <= checked["accuracy"] <= 1
    assert accuracy_of_pixels > 0.9  # two classes of noise, bright and dark

    # an export is measured as its manifest says, unless the command line says otherwise
    manifest_path = tmp_path / exported["manifest"]
    written = manifest_path.read_text()
    document = json.loads(written)
    # whose runtime is not installed in this home
    document["device"] |= {"device": "web", "provider": "wasm"}
    manifest_path.write_text(signed(document))
    done = run("check", exported["path"], cwd=tmp_path)
    assert done.returncode == 1
    assert "devices install web" in done.stderr or "Node.js" in done.stderr
    done = run("check", exported["path"], "--device", "cpu", "--json", cwd=tmp_path)
    assert done.returncode in (0, 3, 4), done.stderr
    assert json.loads(done.stdout)["device"]["device"] == "cpu"
    document["device"] |= {"device": "cpu", "threads": 4096}
    manifest_path.write_text(signed(document))
    done = run("check", exported["path"], cwd=tmp_path)
    assert done.returncode == 1
    assert "which this machine cannot run" in done.stderr
    manifest_path.write_text(written)

    # outputs that the export did not record, and a manifest edited into the impossible
    document = json.loads(written)
    document["recorded_outputs"][0][0] += 1.0
    manifest_path.write_text(signed(document))
    done = run("check", exported["path"], "--latency-ms", "1e4", "--json", cwd=tmp_path)
    assert done.returncode == 3
    assert "outputs that the export recorded" in json.loads(done.stdout)["reason"]
    for key, value in (
        ("latency_budget_ms", -5), ("predicted_latency_ms", 0), ("memory_ms", 0),
        ("core_ms", -1), ("preprocessing", document["preprocessing"] | {"channels": 2}),
    ):  # fmt: skip
        manifest_path.write_text(json.dumps(json.loads(written) | {key: value}))
        done = run("check", exported["path"], cwd=tmp_path)
        assert done.returncode == 1
        assert key in done.stderr
        assert "Traceback" not in done.stderr
    manifest_path.write_text(written)

    done = run("check", exported["model"], "--min-accuracy", "0.5", cwd=tmp_path)
    assert done.returncode == 1
    assert "needs test images" in done.stderr

    # a record, and against it: the same file, of which half the size is allowed
    done = run("check", exported["model"], "--record", "base.json", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    half = str((tmp_path / exported["model"]).stat().st_size // 2)
    against = ("check", exported["model"], "--baseline", "base.json", "--json")
    reports = ("--summary", "gate.md", "--junit", "gate.xml")
    limits = ("--max-regression", "100%", "--max-size", half)
    done = run(*against, *limits, *reports, cwd=tmp_path)
    assert done.returncode == 3
    checked = json.loads(done.stdout)
    assert checked["verdict"] == "failed-gate"
    assert 0 < checked["ratio"]["low"] <= checked["ratio"]["median"] <= checked["ratio"]["high"]
    assert "| size | failed |" in (tmp_path / "gate.md").read_text()
    assert '<failure message="' in (tmp_path / "gate.xml").read_text()
    other = tmp_path / "other.json"
    document = json.loads((tmp_path / "base.json").read_text())
    document["identity"]["processor"] += "x"
    other.write_text(signed(document))
    elsewhere = (
        "check",
        exported["model"],
        "--baseline",
        "other.json",
        "--max-regression",
        "300%",
    )
    done = run(*elsewhere, cwd=tmp_path)
    assert (done.returncode, "another device" in done.stderr) == (1, True)
    done = run(*elsewhere, "--allow-other-device", *reports, cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "but on another device" in done.stdout
    assert "| regression | inconclusive |" in (tmp_path / "gate.md").read_text()
    assert '<error message="' in (tmp_path / "gate.xml").read_text()
    done = run("check", "base.json", cwd=tmp_path)
    assert (done.returncode, "not an ONNX file" in done.stderr) == (1, True)
    done = run(*against, "--max-regression", "lots", cwd=tmp_path)
    assert done.returncode == 1
    assert "5% or 0.05" in json.loads(done.stdout)["error"]["message"]

    model = tmp_path / exported["model"]
    model.write_bytes(model.read_bytes()[:-100])
    done = run("check", exported["path"], cwd=tmp_path)
    assert done.returncode == 1
    assert "is not the file" in done.stderr
    done = run("check", exported["model"], cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_precision_is_part_of_the_choice(tmp_path: Path) -> None:
    """An INT8 profile, a search under its budget, an INT8 file that says which is faster."""
    data = str(make_images(tmp_path / "images", per_class=80))
    profile = ("profile", "--data", data, "--resolution", "24", "--json")
    done = run(*profile, "--precision", "int8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    search = ("search", "--data", data, "--epochs", "3", "--evaluations", "8", "--json")
    int8 = ("--precision", "int8")
    done = run(*search, *int8, "--latency-ms", "1000", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["precision"] == "int8"
    assert 0 < found["predicted_latency_ms"] < 1000
    assert found["measured_latency_ms"] > 0

    done = run("export", "--max-accuracy-drop", "30%", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    exported = json.loads(done.stdout)
    assert exported["precision"] == "int8"
    quantization = exported["quantization"]
    assert quantization["accuracy_int8"] == exported["accuracy"]
    assert quantization["accuracy_int8"] >= quantization["accuracy_float"] - 0.3
    assert 0 < quantization["ratio_low"] <= quantization["ratio_high"]
    manifest = json.loads((tmp_path / exported["manifest"]).read_text())
    assert manifest["predicted_latency_ms"] == found["predicted_latency_ms"]
    done = run("check", exported["path"], "--latency-ms", "1000", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"] > 0.5

    # the same network in float: priced in another precision, so that nothing is predicted
    floats = ("export", "--precision", "fp32", "--name", "floats", "--json")
    done = run(*floats, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "exports" / "floats" / "manifest.json").read_text())
    assert manifest["predicted_latency_ms"] is None
    assert manifest["quantization"] is None


@pytest.mark.long
def test_a_gradient_search_from_profile_to_checked_file(
    board_profile: Callable[[StagedSpace], DeviceProfile], tmp_path: Path
) -> None:
    data = str(make_images(tmp_path / "images", per_class=80))
    space = deploynas.space("proxyless-small", num_classes=2, resolutions=[24])
    board_profile(space).write(tmp_path / "profiles" / "board.json")
    search = ("search", "--strategy", "proxyless", "--data", data, "--latency-ms", "0.2")
    few = ("--epochs", "2", "--evaluations", "4", "--json")

    for wrong, says in (
        (("--space", "mobile-small"), "searches candidate operations at one resolution"),
        (("--space", "ofa-mbv3-w1.0"), "searches candidate operations at one resolution"),
        (("--set", "latency_loss=log"), "latency_loss"),
        (("--set", "latency_weight=0.2"), "goes with latency_loss sum or product"),
        (("--set", "latency_loss=sum", "--set", "latency_weight=nan"), "got 'nan'"),
        (("--recipe-set", "epoch=3"), "did you mean 'epochs'"),
        (("--recipe-set", "mixup=-1"), "recipe field mixup: input should be greater than"),
        (("--recipe", "strongest"), "unknown recipe 'strongest'"),
        (("--epochs", "nan"), "--epochs must be a positive number"),
        (("--strategy", "ofa", "--set", "latency_loss=sum"), "it has none"),
        (("--latency-ms", "0.0001"), "lowest reachable"),
        (("--supernet", "runs/other"), "trains its own weights"),
    ):
        done = run(*search, *few, *wrong, cwd=tmp_path)
        assert done.returncode == 1
        message = json.loads(done.stdout)["error"]["message"]
        assert re.search(says, message), message
    assert not (tmp_path / "runs").exists()

    done = run(*search, *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["space"] == "proxyless-small"
    assert found["predicted_latency_ms"] < 0.2
    assert found["accuracy_kind"] == "measured"
    assert len(found["architecture"]["ops"]) == 9
    decision = found["decision"]
    assert decision["is_exact"]
    chosen, kept, free = (decision[f"{k}log_probability"] for k in ("", "kept_", "free_"))
    assert chosen <= kept <= free
    run_folder = tmp_path / found["run"]
    with Image.open(run_folder / "probabilities.png") as picture:
        assert picture.width > 300
    history = json.loads((run_folder / "gradient.json").read_text())["history"]
    assert history[0]["step"] < history[-1]["step"]
    assert len(history[0]["probabilities"]) == 9
    assert not (run_folder / "gradient-checkpoint.safetensors").exists()

    done = run("export", "--json", cwd=tmp_path)  # the weights of the search
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["weights"] == "inherited"
    done = run("retrain", "--from-scratch", "--epochs", "1", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    retrained = json.loads(done.stdout)
    done = run("export", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    exported = json.loads(done.stdout)
    assert exported["weights"] == "from-scratch"
    assert exported["accuracy"] == retrained["accuracy"]
    assert exported["parity_max_abs_diff"] < 1e-3
    check = ("check", exported["path"], "--device", "cpu", "--latency-ms", "1000", "--json")
    done = run(*check, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    weights = run_folder / "chosen.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    done = run("export", "--inherited", cwd=tmp_path)
    assert done.returncode == 1
    assert "is not what" in done.stderr


@pytest.mark.long
def test_candidates_that_are_trained_and_several_costs(
    board_profile: Callable[[StagedSpace], DeviceProfile], tmp_path: Path
) -> None:
    data = str(make_images(tmp_path / "images", per_class=80))
    space = deploynas.space("proxyless-small", num_classes=2, resolutions=[24])
    board_profile(space).write(tmp_path / "profiles" / "board.json")
    search = (
        "search", "--space", "proxyless-small", "--data", data, "--latency-ms", "0.2",
        "--epochs", "1", "--evaluations", "4",
    )  # fmt: skip
    pareto = (
        "--strategy",
        "pareto",
        "--set",
        "costs=params,latency_ms",
        "--evaluator",
        "training",
    )
    done = run(*search, *pareto, "--workers", "2", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 candidates" in done.stderr
    point = json.loads(done.stdout)["front"][0]
    params, latency_ms = point["costs"]
    assert params > 1_000
    assert latency_ms == point["predicted_latency_ms"] < 0.2
    done = run("export", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    exported = json.loads(done.stdout)
    assert exported["weights"] == "from-scratch"
    assert exported["parity_max_abs_diff"] < 1e-3

    soft = ("--strategy", "evolution", "--evaluator", "halving", "--set", "population=4",
            "--set", "soft_latency=0.1", "--set", "tournament=2")  # fmt: skip
    done = run(*search, *soft, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["predicted_latency_ms"] < 0.2
    assert found["run"].endswith("-halving")
    assert found["random_best"] is None


@pytest.mark.long
def test_a_published_supernet_without_training(
    published_weights: Path, board_profile: Callable[[StagedSpace], DeviceProfile], tmp_path: Path
) -> None:
    """From checkpoint to checked file, and on to classes of one's own."""
    space = deploynas.space("ofa-mbv3-w1.0", resolutions=[128, 224])
    board_profile(space).write(tmp_path / "profiles" / "board.json")
    images = make_images(tmp_path / "images", per_class=20)
    weights = ("--ofa-weights", str(published_weights), "--space", "ofa-mbv3-w1.0")
    search = ("search", *weights, "--latency-ms", "20", "--evaluations", "500")

    done = run(*search, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "knows no other resolution" in done.stderr
    found = json.loads(done.stdout)
    assert found["accuracy_kind"] == "predicted"
    assert 0.7 < found["random_best"]["accuracy"] < found["accuracy"] < 0.8
    assert 0 < found["accuracy_error"] < 0.002
    assert found["architecture"]["resolution"] == 224
    assert found["predicted_latency_ms"] < 20
    assert found["measured_latency_ms"] is None
    points = [(p["predicted_latency_ms"], p["accuracy"]) for p in found["front"]]
    assert points == sorted(points)
    assert len(points) > 3

    done = run("export", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--calibration-images" in done.stderr
    exported = json.loads(done.stdout)
    assert (exported["batch_norm"], exported["accuracy"]) == ("uncalibrated", None)
    manifest = json.loads(Path(tmp_path, exported["manifest"]).read_text())
    assert manifest["parity_images"] == "noise"
    assert manifest["preprocessing"]["crop"] == 0.875
    assert len(manifest["classes"]) == 1000

    done = run(*search, "--calibration-images", str(images), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "predicted ImageNet accuracy" in done.stdout
    done = run("export", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    exported = json.loads(done.stdout)
    assert (exported["batch_norm"], exported["accuracy_kind"]) == ("calibrated", "predicted")
    assert exported["accuracy"] == pytest.approx(found["accuracy"])
    manifest = json.loads(Path(tmp_path, exported["manifest"]).read_text())
    assert (manifest["parity_images"], manifest["weights"]) == ("real", "published")
    for given, message in (((), "ImageNet's validation"), (("--data", str(images)), "1000")):
        done = run("export", "--precision", "int8", *given, cwd=tmp_path)
        assert done.returncode == 1
        assert message in done.stderr
    done = run("retrain", cwd=tmp_path)
    assert done.returncode == 1
    assert "pass --data DIR" in done.stderr
    few = ("--epochs", "0.2", "--learning-rate", "0.01", "--json")
    done = run("retrain", "--data", str(images), *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "new classifier" in done.stderr
    retrained = json.loads(done.stdout)
    assert retrained["space"]["num_classes"] == 2
    assert retrained["candidate"]["params"] == found["params"] - 998 * 1281
    assert retrained["candidate"]["predicted_latency_ms"] is None
    done = run("export", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    own = json.loads(done.stdout)
    assert (own["weights"], own["accuracy"]) == ("fine-tuned", retrained["accuracy"])
    done = run("check", own["path"], "--latency-ms", "1e4", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    checked = json.loads(done.stdout)
    assert 0 <= checked["accuracy"] <= 1
    assert "latency_ms_normalised" not in checked  # the board is elsewhere

    for arguments, message in (
        ((*search, "--space", "ofa-mbv3-w1.2"), "space of an ImageNet accuracy predictor"),
        ((*search, "--supernet", "runs/x"), "one of --ofa-weights and --supernet"),
        ((*search, "--calibration-images", "nowhere"), "not a folder of images"),
        ((*search, "--data", str(images)), "2 class folders, ImageNet has 1000"),
        ((*search, "--latency-ms", "0.001"), "lowest reachable"),
        ((*search, "--ofa-weights", str(images / "dark" / "000.png")), "not a checkpoint"),
    ):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 1, arguments
        assert message in done.stderr
        assert "Traceback" not in done.stderr


ARCHITECTURE = {
    "resolution": 32, "depths": [1, 1, 1], "kernel_sizes": [3] * 9, "expand_ratios": [2] * 9,
}  # fmt: skip


def test_inspect_an_architecture(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ARCHITECTURE))
    arguments = ("inspect", "a.json", "--space", "mobile-small", "--in-channels", "1")
    done = run(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    first, last = found["layers"][0], found["layers"][-1]
    assert first["input"] == [1, 1, 32, 32]
    assert first["activation_bytes"] == 4 * 16 * 16 * 16
    assert last["output"] == [1, 10, 1, 1]
    chosen = deploynas.space("mobile-small", in_channels=1, resolutions=[32])
    arch = chosen.encode([ARCHITECTURE])
    assert (found["macs"], found["params"]) == (chosen.macs(arch)[0], chosen.params(arch)[0])
    peak = found["weight_bytes"] + found["peak_activation_bytes"]
    assert peak == chosen.peak_memory_bytes(arch)[0]
    done = run(*arguments, cwd=tmp_path)
    assert "1x1x32x32 > 1x16x16x16" in done.stdout


@pytest.mark.parametrize(
    ("document", "arguments", "message"),
    [
        (ARCHITECTURE, (), "say of what: --space NAME"),
        (ARCHITECTURE, ("--space", "mobile-smal"), "did you mean 'mobile-small'"),
        (ARCHITECTURE | {"depths": [1, 9, 1]}, ("--space", "mobile-small"), "stage2.depth"),
        (ARCHITECTURE | {"resolution": None}, ("--space", "mobile-small"), "got None"),
        ({"bn": 1}, (), "x.json: not a once-for-all or ProxylessNAS block list"),
        ({"net": {}, "resolution": -5}, (), "8 px or more"),
        ([1], (), "x.json: a published block list is a JSON object"),
        ({"schema": "deploynas-export", "version": 99}, (), "upgrade deploynas"),
    ],
)
def test_inspect_refuses_in_one_line(
    document: object, arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text(json.dumps(document))
    done = run("inspect", "x.json", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("name", "numbers", "expected"),
    [
        ("ofa-mbv3-w1.0", (None, None, [48]), (1000, 3, (48,))),
        ("ofa-mbv3-w1.0", (10, 1, [48]), (10, 1, (48,))),
        ("mobile-small", (7, None, [24]), (7, 3, (24,))),
    ],
)
def test_a_published_space_needs_no_data(name, numbers, expected):
    """Profiled as published: the default data set does not shrink it to its own classes."""
    chosen = choose_space(name, None, *numbers)
    assert (chosen.num_classes, chosen.in_channels, tuple(chosen.resolutions)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("limit", [20_000, 0])
def test_a_full_disk_is_one_line(limit: int, tmp_path: Path) -> None:
    """The system refuses to let files grow, as it does on a full disk."""
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from deploynas.cli.main import main; main()"
    )
    arguments = ("profile", "--num-classes", "2", "--in-channels", "1", "--resolution", "20")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments, "--output", "p/cpu.json"],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": str(tmp_path),
             "PYTHONPATH": PACKAGE, "PYTHONDONTWRITEBYTECODE": "1"},  # or broken .pyc files stay
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: cannot write")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "p" / "cpu.json").exists()


@pytest.mark.long
def test_a_named_device(tmp_path: Path) -> None:
    """From its name to a profile, and a model that is measured on it."""
    command = f"{shlex.quote(sys.executable)} -W ignore"
    done = run("devices", "add", "pi", "--exec", command, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    identity = json.loads(done.stdout)["device"]
    assert (identity["device"], identity["recorded"]["reached"]) == ("cpu", "pi")
    assert json.loads(run("devices", "--json", cwd=tmp_path).stdout)["named"] == {
        "pi": f"exec:{command}"
    }
    size = ("--num-classes", "10", "--in-channels", "1", "--resolution", "20")
    profile = ("profile", *size, "--budget-minutes", "0.01", "--json")
    done = run(*profile, "--device", "pi", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "asking pi" in done.stderr
    assert json.loads(done.stdout)["path"] == "profiles/pi.json"
    layer = Layer("conv", 3, 8, 16, 16, kernel_size=3)
    write_model(tmp_path / "m.onnx", chain([layer]), RandomWeights())
    done = run("check", "m.onnx", "--device", "pi", "--latency-ms", "1000", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["device"]["recorded"]["reached"] == "pi"

    done = run("profile", "--bundle", "b.pyz", "--import", "r.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "error: give one of --bundle and --import\n")
    done = run("profile", *size, "--bundle", "b.pyz", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes"] == (tmp_path / "b.pyz").stat().st_size

    assert run("devices", "remove", "pi", cwd=tmp_path).returncode == 0
    done = run("check", "m.onnx", "--device", "pi", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown device 'pi'")
    done = run("devices", "add", "pi", "--exec", "/nowhere/python3", cwd=tmp_path)
    assert done.returncode == 0
    assert "pi is named, but not ready" in done.stderr
