"""The wheel in an empty environment without extras: what works there, and what says why not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploynas import __version__
from deploynas.profile.shipped import names
from deploynas.spaces.tables import shipped_names

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.long


def shell(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": str(cwd), "COLUMNS": "200"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment,
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``deploynas`` of an environment that holds the wheel and what it requires, nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    pinned = ("-c", ROOT / "constraints.txt")
    asked = shell(*pip, "download", "--no-deps", "-d", folder, "typer", cwd=folder)
    if asked.returncode:
        pytest.skip(f"PyPI cannot be reached: {asked.stderr.strip().splitlines()[-1]}")
    python = folder / "venv" / "bin" / "python"
    venv.create(folder / "venv", symlinks=True, with_pip=False)
    done = shell(*pip, "--python", python, "install", "--no-compile", *pinned, wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    return python.with_name("deploynas")


def test_the_wheel_holds_its_data_and_no_stray_file(wheel: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(wheel, tmp_path, "zip")
    shipped = {path.name for path in (tmp_path / "deploynas" / "shipped_profiles").iterdir()}
    assert shipped == {f"{name}.json.gz" for name in names()}
    tables = {path.name for path in (tmp_path / "deploynas" / "spaces" / "tables").iterdir()}
    assert tables == {f"{name}.toml" for name in shipped_names()}
    tops = {path.name for path in tmp_path.iterdir()}
    assert tops == {"deploynas", f"deploynas-{__version__}.dist-info"}


def test_it_gates_without_torch(command: Path, tmp_path: Path) -> None:
    assert not list(command.parents[1].glob("lib/*/site-packages/torch*"))
    done = shell(command, "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"deploynas {__version__}\n")
    done = shell(command, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "profiles" in done.stdout
    shutil.copytree(ROOT / "exports" / "fashion-mnist", tmp_path / "copy")
    done = shell(command, "check", "copy", "--latency-ms", "50", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "pass"
    done = shell(command, "profiles", "list", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["name"] for row in json.loads(done.stdout)["profiles"]] == names()
    done = shell(command, "profiles", "list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_verb_names_the_extra_that_it_needs(command: Path, tmp_path: Path) -> None:
    verbs = (
        "train", "search --latency-ms 1", "retrain", "export", "compare --latency-ms 1", "demo",
    )  # fmt: skip
    with ThreadPoolExecutor() as pool:  # each takes a second or two to start
        answers = list(
            pool.map(lambda verb: shell(command, *verb.split(), "--json", cwd=tmp_path), verbs)
        )
    for done in answers:
        assert done.returncode == 1, done.args
        assert done.stderr.startswith("error: "), done.args
        assert len(done.stderr.splitlines()) == 1, done.args
        assert "pip install 'deploynas[search]'" in done.stderr
        assert json.loads(done.stdout)["error"]["kind"] == "missing-dependency"
    assert list(tmp_path.iterdir()) == []
