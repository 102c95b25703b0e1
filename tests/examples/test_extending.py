"""What docs/extending.md says of spaces, run: a table, and a family of another package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deploynas as dn
from deploynas.errors import InvalidInputError
from deploynas.spaces.tables import read_table
from deploynas.testing import check_space

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


def package(folder: Path, name: str, space: str = "plain", module: str = "plain") -> None:
    """Another package, as an installer leaves it: its module and its entry point."""
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[deploynas.spaces]\n{space} = {module}:space\n")
    shutil.copy(EXAMPLES / "plain.py", folder / f"{module}.py")


def run(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), str(Path(dn.__file__).parents[1])])
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True,
        cwd=folder, env={**os.environ, "PYTHONPATH": path}, timeout=120,
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
