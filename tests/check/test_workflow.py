"""The workflow of docs/gate.md, step by step, in a repository that holds a model alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import yaml

from deploynas.graph import RandomWeights, write_model
from deploynas.spaces import space

DOCUMENT = Path(__file__).parents[2] / "docs" / "gate.md"


def steps():
    """What the workflow runs, but for the installation: the package under test is installed."""
    text = DOCUMENT.read_text().split("```yaml\n")[1].split("```")[0]
    (job,) = yaml.safe_load(text)["jobs"].values()
    commands = [step for step in job["steps"] if "run" in step]
    assert commands[0]["run"] == "pip install deploynas"
    assert len(commands) == 4
    return commands[1:]


def git(folder, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def write(path, nodes, seed, weights):
    """A model, its weights in a file beside it where asked for."""
    write_model(path, nodes, RandomWeights(seed))
    if weights:
        beside = path.with_name("model.onnx.data")
        beside.unlink(missing_ok=True)
        model = onnx.load(path)
        onnx.save(model, path, save_as_external_data=True, location=beside.name)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
@pytest.mark.parametrize(
    ("change", "code", "weights"),
    [
        pytest.param("none", 0, False, marks=pytest.mark.long),
        pytest.param("larger", 3, False, marks=pytest.mark.long),
        ("larger", 3, True),
    ],
)
def test_a_pull_request_is_gated(change, code, weights, tmp_path):
    """``weights``: in a file beside the model, of which the change makes another."""
    networks = space("mobile-small", 10, 3, [32])
    small, large = (networks.layers(a[0]) for a in (networks.smallest(), networks.largest()))
    upstream, repository = tmp_path / "upstream", tmp_path / "repository"
    upstream.mkdir()
    git(upstream, "init", "-b", "main")
    write(upstream / "model.onnx", small, 0, weights)
    git(upstream, "add", ".")
    git(upstream, "commit", "-m", "a model")
    git(tmp_path, "clone", str(upstream), str(repository))
    nodes, seed = (large, 1) if change == "larger" else (small, 0)
    write(repository / "model.onnx", nodes, seed, weights)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "deploynas").write_text(
        f"#!{sys.executable} -W ignore\n"
        f"import sys; sys.path.insert(0, {str(DOCUMENT.parents[1])!r})\n"
        "sys.modules['torch'] = None  # as if it were not installed\n"
        "from deploynas.cli.main import main; main()\n"
    )
    (bin_folder / "deploynas").chmod(0o755)
    summary = tmp_path / "summary.md"
    environment = {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path),
        "GITHUB_BASE_REF": "main", "GITHUB_STEP_SUMMARY": str(summary),
    }  # fmt: skip
    failed = 0
    for step in steps():
        if failed and step.get("if") != "always()":
            continue
        done = subprocess.run(  # as the runner does it
            ["bash", "-e", "-o", "pipefail", "-c", step["run"]],
            cwd=repository, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        failed = failed or done.returncode
    assert failed == code, done.stderr
    assert ("regressed" in summary.read_text()) == (code == 3)
    assert (repository / "gate.xml").read_text().count("<testcase") >= 1
    assert ("<failure" in (repository / "gate.xml").read_text()) == (code == 3)
