"""The artefact base, on real files in a temporary directory."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import deploynas
from deploynas import artifacts
from deploynas.artifacts import (
    Artifact,
    Record,
    ensure_writable,
    open_atomic,
    read_json,
    sha256,
    unchanged,
    write_json,
)
from deploynas.errors import InvalidInputError, MissingFileError, OutputError


class Part(Record):
    value: float


class Sheet(Artifact):
    SCHEMA = "deploynas-sheet"
    VERSION = 2
    ANEW = "draw it again"
    MIGRATIONS = {1: unchanged}

    title: str
    parts: list[Part]


SHEET = Sheet(title="größe", parts=[Part(value=0.1), Part(value=1e300)])


def refuse(path, kind=InvalidInputError):
    """The message of the one-line error that reading ``path`` raises."""
    with pytest.raises(kind) as caught:
        Sheet.read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def edited(tmp_path, **changes):
    path = tmp_path / "sheet.json"
    path.write_text(json.dumps(SHEET.document() | changes))
    return path


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "folder" / "sheet.json"
    assert SHEET.write(path) == path
    assert Sheet.read(path) == SHEET
    assert list(json.loads(path.read_text("utf-8")))[:2] == ["schema", "version"]
    assert [p.name for p in path.parent.iterdir()] == ["sheet.json"]


def test_equal_content_is_equal_bytes(tmp_path):
    first, second = SHEET.write(tmp_path / "a"), SHEET.write(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert sha256(first) == sha256(second)


def test_sha256_of_known_bytes(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256(path).startswith("ba7816bf8f01cfea")


def test_mode_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        path = SHEET.write(tmp_path / "sheet.json")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_missing(tmp_path):
    assert "does not exist" in refuse(tmp_path / "nothing.json", MissingFileError)


def test_directory(tmp_path):
    assert "is a directory" in refuse(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated(tmp_path, share):
    path = SHEET.write(tmp_path / "sheet.json")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "truncated" in refuse(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00binary", b"\x89PNG\r\n\x1a\n"])
def test_binary(tmp_path, content):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    assert "not a JSON file" in refuse(path)


@pytest.mark.parametrize("document", [[], 3, None, {}, {"schema": "other", "version": 2}])
def test_foreign(tmp_path, document):
    path = write_json(tmp_path / "other.json", document)
    assert "is not a deploynas-sheet file" in refuse(path)


def test_newer_version(tmp_path):
    message = refuse(edited(tmp_path, version=3))
    assert "newer" in message
    assert "upgrade deploynas" in message


@pytest.mark.parametrize("version", [1, "2", None])
def test_other_version(tmp_path, version):
    message = refuse(edited(tmp_path, version=version))
    assert repr(version) in message
    assert "upgrade" not in message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_not_finite(tmp_path, number):
    path = edited(tmp_path)
    path.write_text(path.read_text().replace("0.1", number))
    assert "parts.0.value" in refuse(path)


def test_unknown_key(tmp_path):
    assert "colour" in refuse(edited(tmp_path, colour="red"))


def test_unknown_key_inside(tmp_path):
    assert "parts.0.unit" in refuse(edited(tmp_path, parts=[{"value": 1.0, "unit": "ms"}]))


def test_missing_key(tmp_path):
    path = edited(tmp_path)
    document = json.loads(path.read_text())
    del document["parts"]
    write_json(path, document)
    assert "parts" in refuse(path)


def test_wrong_type(tmp_path):
    assert "title" in refuse(edited(tmp_path, title=[1]))


def test_nan_is_never_written(tmp_path):
    path = write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, [float("nan")])
    assert read_json(path) == 1


def test_records_refuse_nan_and_are_frozen():
    with pytest.raises(ValueError, match="finite"):
        Part(value=float("inf"))
    with pytest.raises(ValueError, match="frozen"):
        SHEET.parts[0].value = 2.0


def test_parent_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=re.escape(str(tmp_path / "file" / "a.json"))):
        SHEET.write(tmp_path / "file" / "a.json")
    assert (tmp_path / "file").read_text() == "x"


def test_target_is_a_directory(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        SHEET.write(target)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only directories")
def test_read_only_directory(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            SHEET.write(tmp_path / "a.json")
        with pytest.raises(OutputError, match="Permission denied"):
            ensure_writable(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_old_content_survives_an_exception(tmp_path):
    path = write_json(tmp_path / "a.json", "old")

    def interrupted():
        with open_atomic(path) as file:
            file.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read_json(path) == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_old_content_survives_a_full_disk(tmp_path):
    """A limit on the size of files fails the way a full disk does: inside write()."""
    path = write_json(tmp_path / "a.json", "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(OutputError, match="File too large"):
            write_json(path, "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_json(path) == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_reader_sees_old_until_the_end(tmp_path):
    path = write_json(tmp_path / "a.json", "old")
    with open_atomic(path) as file:
        file.write(b'"new"')
        file.flush()
        assert read_json(path) == "old"
    assert read_json(path) == "new"


def test_ensure_writable(tmp_path):
    assert ensure_writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_several_processes_ensure_the_same_folder(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from deploynas.artifacts import ensure_writable\n"
        "for number in range(150):\n"
        "    ensure_writable(Path(sys.argv[1]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(deploynas.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["sheet.json.gz", "sheet.json"])
def test_gzip_is_known_by_its_content(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(json.dumps(SHEET.document()).encode()))
    assert Sheet.read(path) == SHEET
    plain = tmp_path / "plain.json.gz"
    SHEET.write(plain)
    assert Sheet.read(plain) == SHEET


def test_a_broken_gzip_is_one_line(tmp_path):
    path = tmp_path / "sheet.json.gz"
    whole = gzip.compress(json.dumps(SHEET.document()).encode())
    for length in (2, 10, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:length])
        assert "truncated gzip" in refuse(path)
    for place in (2, 14, len(whole) - 6):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        assert "damaged gzip" in refuse(path)
    path.write_bytes(whole + b"more")
    assert "damaged gzip" in refuse(path)
    path.write_bytes(gzip.compress(b"no JSON"))
    assert "not JSON" in refuse(path)
    path.write_bytes(gzip.compress(b"\xff\xfe"))
    assert "not a JSON file" in refuse(path)


def test_a_gzip_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "MAX_UNPACKED_BYTES", 1 << 20)
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b" " * (8 << 20)))
    assert "unpacks to more than 1 MiB" in refuse(path)


def writer(path, *, until_killed):
    """Another process that writes ``path``: for ever, or 100 times."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from deploynas.artifacts import open_atomic, write_json\n"
        "if sys.argv[2] == 'True':\n"
        "    with open_atomic(Path(sys.argv[1])) as file:\n"
        "        file.write(b'half')\n"
        "        print('half', flush=True)\n"
        "        time.sleep(60)\n"
        "for number in range(100):\n"
        "    write_json(Path(sys.argv[1]), number)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(deploynas.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(path), str(until_killed)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    others = [".b.json.abcdefgh.tmp", ".a.json.b.abcdefgh.tmp", ".a.json.original"]
    for name in others:
        (tmp_path / name).touch()
    with writer(tmp_path / "a.json", until_killed=True) as process:
        assert process.stdout.readline() == "half\n"
        write_json(tmp_path / "a.json", "new")  # it lives: its file stays
        left = {p.name for p in tmp_path.iterdir()} - {*others, "a.json"}
        assert len(left) == 1
        process.kill()
    assert left < {p.name for p in tmp_path.iterdir()}
    write_json(tmp_path / "a.json", "newer")
    assert {p.name for p in tmp_path.iterdir()} == {*others, "a.json"}


def test_several_writers_of_one_file(tmp_path):
    processes = [writer(tmp_path / "a.json", until_killed=False) for _ in range(3)]
    for process in processes:
        with process:
            assert process.wait() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert read_json(tmp_path / "a.json") == 99


def test_another_value_is_an_edit_and_another_form_is_none(tmp_path):
    path = SHEET.write(tmp_path / "sheet.json")
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document, sort_keys=True, separators=(",", ":")))
    assert Sheet.read(path) == SHEET
    for title, parts in (("grösse", document["parts"]), (document["title"], [])):
        path.write_text(json.dumps(document | {"title": title, "parts": parts}))
        assert refuse(path) == (
            f"{path} was edited or damaged: its content is not what deploynas wrote "
            "(undo the edit, or draw it again)"
        )
    del document["sha256"]
    path.write_text(json.dumps(document))
    assert "was edited or damaged" in refuse(path)


def test_files_of_before_the_digest_are_believed(tmp_path):
    path = tmp_path / "sheet.json"
    document = {k: v for k, v in SHEET.document().items() if k != "sha256"}
    path.write_text(json.dumps(document | {"version": 1}))
    assert Sheet.read(path) == SHEET
    path.write_text(json.dumps(document | {"version": 1, "sha256": "0" * 64}))
    assert "was edited or damaged" in refuse(path)
