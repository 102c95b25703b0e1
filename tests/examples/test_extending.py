"""What docs/extending.md says, run: each example alone, and as another package brings it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import deploynas as dn
from deploynas.errors import InvalidInputError
from deploynas.profile import DeviceProfile
from deploynas.spaces import StagedSpace
from deploynas.spaces.tables import read_table
from deploynas.testing import check_space

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "extending"
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
MOST_LINES = 150


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    if path.is_file():
        assert len(path.read_text().splitlines()) <= MOST_LINES
        assert path.name in PAGE


def test_the_table_is_the_one_on_the_page() -> None:
    assert f"```toml\n{(EXAMPLES / 'npu.toml').read_text()}```" in PAGE
    space = dn.space(str(EXAMPLES / "npu.toml"))
    assert {layer.activation for layer in space.layer_table} == {"relu"}
    assert {layer.kernel_size for layer in space.layer_table} <= {1, 3, 5}
    for line in (EXAMPLES / "npu.toml").read_text().splitlines():
        key = line.partition("=")[0].strip()
        assert not key.isidentifier() or f"`{key}" in PAGE


def test_the_error_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (EXAMPLES / "npu.toml").read_text()
    before, _, after = text.rpartition("stride = 2")
    Path("npu.toml").write_text(f"{before}stride = 3{after}")
    with pytest.raises(InvalidInputError) as caught:
        read_table(Path("npu.toml"))
    assert str(caught.value) in re.sub(r"\s+", " ", PAGE)


@pytest.mark.slow
def test_the_table_keeps_what_every_space_promises() -> None:
    check_space(dn.space(str(EXAMPLES / "npu.toml")))


def bring(folder: Path, name: str, **entries: str) -> None:
    """Another package with examples, as an installer leaves it.

    Args:
        folder: On the path.
        name: Of the package.
        entries: Kind -> ``name = module:attribute``.
    """
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    text = "".join(f"[deploynas.{kind}]\n{entry}\n" for kind, entry in entries.items())
    (info / "entry_points.txt").write_text(text)
    for entry in entries.values():
        module = entry.partition("= ")[2].partition(":")[0]
        shutil.copy(EXAMPLES / f"{module}.py", folder)


def package(folder: Path, name: str, space: str = "plain", module: str = "plain") -> None:
    """A package with a space, as an installer leaves it: its module and its entry point."""
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[deploynas.spaces]\n{space} = {module}:space\n")
    shutil.copy(EXAMPLES / "plain.py", folder / f"{module}.py")


def run(
    folder: Path, code: str, *arguments: str, package: Path = Path(dn.__file__).parents[1]
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), str(package)])
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True,
        cwd=folder, env={**os.environ, "PYTHONPATH": path}, timeout=300,
    )  # fmt: skip


MAIN = "from deploynas.cli.main import main; main()"


def test_another_packages_space_is_listed_and_shown(tmp_path: Path) -> None:
    package(tmp_path, "plainspaces")
    done = run(tmp_path, MAIN, "spaces", "--json")
    assert {"name": "plain", "architectures": 648} in json.loads(done.stdout)["spaces"]
    done = run(tmp_path, MAIN, "spaces", "show", "plain", "--json")
    assert json.loads(done.stdout)["choices"]["stage2.width"] == [16, 32]
    done = run(tmp_path, MAIN, "spaces", "show", "plian")
    assert done.returncode == 1
    assert "did you mean 'plain'" in done.stderr


def test_one_that_cannot_be_imported_does_not_hide_the_others(tmp_path: Path) -> None:
    package(tmp_path, "one", "broken")
    bring(tmp_path, "two", strategies="also = plain:STRATEGY")
    (tmp_path / "plain.py").write_text("import nothing_like_it")
    for arguments in (("spaces",), ("strategies",), ("strategies", "show", "evolution")):
        done = run(tmp_path, MAIN, *arguments)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    done = run(tmp_path, MAIN, "spaces")
    assert "mobile-small" in done.stdout
    assert "'broken' of one cannot be imported" in done.stderr
    done = run(tmp_path, MAIN, "strategies")
    assert "evolution" in done.stdout
    assert "'also' of two cannot be imported" in done.stderr
    done = run(tmp_path, MAIN, "strategies", "show", "also")
    assert done.returncode == 1


@pytest.mark.slow
def test_it_keeps_what_every_space_promises(tmp_path: Path) -> None:
    package(tmp_path, "plainspaces")
    code = (
        "import deploynas as dn; from deploynas.testing import check_space;"
        "check_space(dn.space('plain')); check_space(dn.space('plain', 3, 1, [12]))"
    )
    done = run(tmp_path, code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        (
            [("one", "plain", "plain"), ("other", "plain", "also")],
            "error: two packages bring a search space named 'plain': ",
        ),
        (
            [("one", "darts", "plain")],
            "error: two packages bring a search space named 'darts': deploynas itself and one",
        ),
    ],
)
def test_two_of_one_name(
    tmp_path: Path, packages: list[tuple[str, str, str]], message: str
) -> None:
    for name, space, module in packages:
        package(tmp_path, name, space, module)
    done = run(tmp_path, MAIN, "spaces")
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert run(tmp_path, MAIN, "spaces", "show", "mobile-small").returncode == 0


def test_a_space_that_cannot_be_loaded_or_has_another_name(tmp_path: Path) -> None:
    package(tmp_path, "one", space="complex")
    done = run(tmp_path, MAIN, "spaces", "show", "complex")
    assert done.stderr == "error: the space 'complex' of another package calls itself 'plain'\n"
    (tmp_path / "plain.py").write_text("import nothing_like_it")
    done = run(tmp_path, MAIN, "spaces", "show", "complex")
    assert done.returncode == 1
    assert "'complex' of one cannot be imported: No module named" in done.stderr


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A folder with a package of all examples."""
    found = re.findall(r"entry-points.\"deploynas\.(\w+)\"\]\n(.+)\n", PAGE)
    entries = {kind: entry.replace('"', "") for kind, entry in found if "mine:" not in entry}
    assert entries.keys() == {"spaces", "strategies", "costs", "executors", "sources"}
    bring(tmp_path, "examples", **entries)
    return tmp_path


CHECK = """
from deploynas.costs import COSTS
from deploynas.search import STRATEGIES
from deploynas.spaces import space
from deploynas.testing import check_cost, check_executor, check_strategy
from deploynas.workflows.executor import EXECUTORS
if __name__ == "__main__":
    small = space("darts-small", resolutions=[8])
    check_cost(COSTS.load("energy_mj"), small)
    check_strategy(STRATEGIES.load("annealing"), small)
    check_executor(EXECUTORS.load("one-by-one"))
    print("kept")
"""


@pytest.mark.slow
def test_the_examples_keep_what_everything_promises(plugins: Path) -> None:
    done = run(plugins, CHECK)
    assert (done.returncode, done.stdout) == (0, "kept\n"), done.stderr


def digests(folder: Path) -> dict[str, str]:
    """Path -> hash of every file but compiled ones."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.long
def test_a_search_by_another_packages_strategy_cost_and_executor(
    plugins: Path, wheel: Path, board_profile: Callable[[StagedSpace], DeviceProfile]
) -> None:
    """Beside the wheel, whose files stay as they are."""
    installed = plugins / "installed"
    shutil.unpack_archive(wheel, installed, "zip")
    before = digests(installed)
    space = dn.space("mobile-plain", 10, 1, [28])
    board_profile(space).write(plugins / "board.json")
    shown = run(plugins, MAIN, "strategies", "show", "annealing", "--json")
    assert json.loads(shown.stdout)["options"][0]["name"] == "temperature"
    middle = np.median(space.macs(space.sample(200, np.random.default_rng(0))))
    done = run(
        plugins, MAIN, "search", "--strategy", "annealing", "--set", "temperature=0.05",
        "--space", "mobile-plain", "--profile", "board.json", "--limit", "energy_mj=300uJ",
        "--limit", f"macs={middle / 1e3:.0f}k", "--evaluator", "training", "--epochs", "0.2",
        "--evaluations", "4", "--workers", "2", "--executor", "one-by-one", "--json",
        package=installed,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["strategy"] == "annealing"
    assert found["options"] == {"temperature": 0.05, "cooling": 0.01}
    assert 0 < found["costs"]["energy_mj"] <= found["budget"]["energy_mj"] == 0.3
    assert found["macs"] <= middle
    assert digests(installed) == before
    wrong = run(plugins, MAIN, "search", "--limit", "energy_mj=1Wh")
    assert "energy_mj has no unit 'Wh' (it has uJ, mJ, J)" in wrong.stderr
    wrong = run(plugins, MAIN, "search", "--limit", "energi_mj=1")
    assert "did you mean 'energy_mj'?" in wrong.stderr
    bring(plugins / "again", "others", costs="energy_mj = energy:Energy2")
    path = f"{plugins}{os.pathsep}{plugins / 'again'}"
    code = f"import sys; sys.path[:0] = {path.split(os.pathsep)!r}; {MAIN}"
    twice = run(plugins, code, "search", "--limit", "macs=1", "--limit", "energy_mj=1")
    assert twice.returncode == 1
    assert "two packages bring a cost named 'energy_mj': " in twice.stderr
    assert "examples" in twice.stderr
    assert "others" in twice.stderr
