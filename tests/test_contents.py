"""Bytes and surroundings that nobody expects, told in a line."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys

import pytest

from deploynas.artifacts import read_json
from deploynas.contents import foreign, home, shown
from deploynas.errors import InvalidInputError


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"/annex/objects/MD5E-s3--0", "a git-annex pointer"),
        (b"\xef\xbb\xbf\n<!DOCTYPE HTML>", "a web page"),
        (bytes(512), "nothing but zeros"),
    ],
)
def test_what_stands_in_place_of_a_file(start, name):
    found = foreign(start)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("start", [b"{}", b"\x08\x09", b"PK\x03\x04", b"hello", b"\0\0\1"])
def test_what_may_be_right(start):
    assert foreign(start) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"", "is empty"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number that is too long"),
    ],
)
def test_json_that_is_none(content, said, tmp_path):
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(InvalidInputError, match=said):
        read_json(tmp_path / "f.json")


def test_a_home_that_is_not_there(monkeypatch):
    """A container with a user that has no entry."""
    monkeypatch.delenv("HOME")

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert str(home()) == os.sep


def test_names_of_any_bytes(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.onnx")
    assert shown(path).endswith(r"\xff.onnx")
    code = "import sys; from deploynas.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", path, "--json"], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert r"\xff.onnx does not exist" in done.stderr
    assert "Traceback" not in done.stderr
