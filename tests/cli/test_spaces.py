"""``deploynas spaces``: names, and tables of one's own."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploynas.cli.main import main
from deploynas.spaces import space_names
from deploynas.spaces.tables import FOLDER

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["deploynas", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


def test_every_space_is_listed(run: Run) -> None:
    code, out, _ = run("spaces", "--json")
    assert code == 0
    rows = json.loads(out)["spaces"]
    assert [row["name"] for row in rows] == space_names()
    assert {"mobile-plain", "darts", "ofa-mbv3-w1.0"} <= {row["name"] for row in rows}


def test_a_table_of_ones_own_is_shown(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "mine.toml"
    path.write_text((FOLDER / "mobile-plain.toml").read_text())
    code, out, _ = run("spaces", "show", str(path), "--json")
    shown = json.loads(out)
    assert (code, shown["name"]) == (0, str(path))
    assert math.prod(map(len, shown["choices"].values())) >= shown["architectures"] > 1e9
    assert shown["choices"]["stage1.depth"] == [1, 2, 3]


def test_a_wrong_table_ends_in_one_line(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "mine.toml"
    path.write_text((FOLDER / "mobile-plain.toml").read_text().replace("stride = 2", "stride = 3"))
    code, out, err = run("spaces", "show", str(path))
    assert (code, out) == (1, "")
    assert err == f"error: {path}, line 17: stride of stage 1 is one of 1, 2, got 3\n"
