"""Profiles that ship: packed, listed, read by name, and never written to."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import ship_profile

from deploynas.cli.main import main
from deploynas.device import LocalDevice, StopRule
from deploynas.errors import IncompleteProfileError, InvalidInputError, UnknownNameError
from deploynas.profile import DeviceProfile, profile_space, profiler, shipped
from deploynas.search.budget import Budget
from deploynas.spaces import space

pytestmark = pytest.mark.slow

SPACE = space("mobile-small", 10, 1, [20])
SHORT = StopRule(min_sessions=1, max_sessions=1, rounds=2, touch_ms=0.1)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of few real samples."""
    path = tmp_path_factory.mktemp("measured") / "cpu.json"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(profiler, "NETWORK_RULE", SHORT)
        patched.setattr(profiler, "LAYER_RULE", SHORT)
        patched.setattr(profiler, "NUM_CALIBRATION", 12)
        profile_space(SPACE, LocalDevice(), path, soft_seconds=0)
    return path


@pytest.fixture
def folder(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped profiles; the working directory is another, empty one."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "here-ort.json.gz").write_bytes(ship_profile.packed(measured))
    (folder / "mine.json").write_bytes(measured.read_bytes())
    monkeypatch.setattr(shipped, "FOLDER", folder)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """Exit code and output of the command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "argv", ["deploynas", *arguments])
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out.getvalue(), err.getvalue()


@pytest.mark.slow
def test_packing_keeps_every_sample_and_repeats_to_the_byte(measured: Path, folder: Path) -> None:
    path = shipped.locate(Path("shipped:here-ort"))
    assert path.read_bytes() == ship_profile.packed(measured)
    assert path.stat().st_size < measured.stat().st_size / 5
    assert DeviceProfile.load(path) == DeviceProfile.load(measured)
    assert ship_profile.packed(path) == path.read_bytes()


def test_what_is_not_to_ship_is_refused(
    measured: Path, tmp_path: Path, signed: Callable[[dict[str, object]], str]
) -> None:
    document = json.loads(measured.read_text())
    document["identity"]["recorded"]["reached"] = "ssh:user@host"
    path = tmp_path / "far.json"
    path.write_text(signed(document))
    with pytest.raises(InvalidInputError, match="how its device is reached"):
        ship_profile.packed(path)
    del document["identity"]["recorded"]["reached"]
    path.write_text(signed(document | {"validations": {}}))
    with pytest.raises(InvalidInputError, match="not finished"):
        ship_profile.packed(path)


def test_only_a_name_is_mapped(folder: Path) -> None:
    assert shipped.names() == ["here-ort"]
    assert shipped.locate(Path("profiles/cpu.json")) == Path("profiles/cpu.json")
    with pytest.raises(UnknownNameError, match="did you mean 'here-ort'"):
        shipped.locate(Path("shipped:here-or"))
    with pytest.raises(UnknownNameError, match="unknown shipped profile"):
        shipped.locate(Path("shipped:../shipped/here-ort"))
    assert shipped.is_shipped(Path("shipped:anything"))
    assert shipped.is_shipped(folder / "here-ort.json.gz")
    assert not shipped.is_shipped(folder / "mine.json")
    assert not shipped.is_shipped(Path("here-ort.json.gz"))


def test_list_and_show(folder: Path, measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run(monkeypatch, "profiles", "list", "--json")
    (row,) = json.loads(out)["profiles"]
    profile = DeviceProfile.load(measured)
    assert code == 0
    assert row["name"] == "here-ort"
    assert row["device"] == profile.identity.title
    assert row["num_layers"] == len(profile.layers)
    assert row["bytes"] == (folder / "here-ort.json.gz").stat().st_size
    (held,) = row["spaces"]
    (validation,) = profile.validations.values()
    assert held["space"] == SPACE.name
    assert held["resolutions"] == [20]
    assert held["num_networks"] == row["num_networks"] == validation.num_networks
    assert held["stated_error"] == validation.margin
    _, shown, _ = run(monkeypatch, "profiles", "show", "here-ort", "--json")
    assert json.loads(shown).items() >= row.items()
    _, other, _ = run(monkeypatch, "profiles", "show", str(measured), "--json")
    assert json.loads(other)["spaces"] == row["spaces"]
    for arguments in (("list", "--quiet"), ("show", "shipped:here-ort"), ("show", str(measured))):
        code, out, err = run(monkeypatch, "profiles", *arguments)
        assert (code, err) == (0, "")
        assert "mobile-small fp32 at 20 px, 10 classes, 1 channel: stated error" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("profiles", "show", "here-or"), "did you mean 'here-ort'"),
        (("profiles", "show", "none.json"), "does not exist"),
        (("profile", "--output", "shipped:here-ort"), "only read"),
        (("profile", "--output", "shipped:new"), "only read"),
        (("profile", "validate", "shipped:here-or"), "did you mean 'here-ort'"),
        (("search", "--latency-ms", "1", "--profile", "shipped:x-ort"), "'here-ort'"),
        (("inspect", "a.onnx", "--profile", "shipped:x-ort"), "'here-ort'"),
        # never by default, whatever the working directory's own folder holds
        (("search", "--latency-ms", "10"), "deploynas profile --device cpu"),
    ],
)
def test_one_line_errors(
    arguments: tuple[str, ...], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("profiles").mkdir()
    (Path("profiles") / "here-ort.json.gz").write_bytes((folder / "here-ort.json.gz").read_bytes())
    code, out, err = run(monkeypatch, *arguments)
    assert code == 1
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


def test_inspect_prices_by_a_shipped_profile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = SPACE.decode(SPACE.smallest())[0]
    Path("small.json").write_text(json.dumps(document))
    code, out, err = run(
        monkeypatch, "inspect", "small.json", "--space", "mobile-small", "--num-classes", "10",
        "--in-channels", "1", "--profile", "shipped:here-ort", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["predicted_latency_ms"] > 0


def test_layers_that_lack_are_not_measured_into_it(folder: Path) -> None:
    target = pytest.importorskip("deploynas.workflows.target")
    path = shipped.locate(Path("shipped:here-ort"))
    before = path.read_bytes()
    with pytest.raises(IncompleteProfileError, match="lacks the layer"):
        target.Target(path, LocalDevice()).problem(
            space("mobile-small", 10, 1, [24]), Budget(), target.Tell()
        )
    assert path.read_bytes() == before
    assert {p.name for p in folder.iterdir()} == {"here-ort.json.gz", "mine.json"}


def test_the_index_tells_what_the_files_hold() -> None:
    """`python benchmarks/ship_profile.py` writes the table."""
    files = sorted(ship_profile.FOLDER.glob(f"*{shipped.SUFFIX}"))
    assert files, "no profile ships"
    assert shipped.names() == sorted(path.name.removesuffix(shipped.SUFFIX) for path in files)
    text = ship_profile.INDEX.read_text(encoding="utf-8")
    assert ship_profile.with_table(text, ship_profile.table(ship_profile.FOLDER)) == text
    for path in files:
        held = shipped.calibrations(DeviceProfile.load(path))
        assert held
        assert all(one.stated_error is not None for one in held)
        assert path.stat().st_size < 1e6


def test_a_table_stands_between_its_marks(folder: Path) -> None:
    text = ship_profile.with_table(
        "a\n<!-- table -->\nstale\n<!-- /table -->\nb", ship_profile.table(folder)
    )
    assert text.startswith("a\n<!-- table -->\n| name |")
    assert text.endswith("<!-- /table -->\nb")
    assert "stale" not in text
    assert "| `here-ort` |" in text
