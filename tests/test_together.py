"""Several files as one step: whatever ends the writer, all are old or all are new."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploynas.artifacts import exists, finish_writing, newest, read_json, write_together
from deploynas.errors import InvalidInputError

WRITER = """
import itertools, json, sys
from pathlib import Path
from deploynas.artifacts import write_together
folder = Path(sys.argv[1])
print("ready", flush=True)
for number in itertools.count():
    weights = bytes([number % 256]) * 300_000
    record = json.dumps({"number": number % 256}).encode()
    write_together(folder, {"w.bin": weights, "r.json": record}, "r.json")
"""


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


def content(number: int) -> dict[str, bytes]:
    return {"w.bin": bytes([number]) * 10, "r.json": json.dumps({"number": number}).encode()}


@pytest.mark.parametrize("step", range(6))
def test_ended_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The five renames of it: two new contents, the note, and the two files."""
    write_together(tmp_path, content(1), "r.json")
    replace, calls = Path.replace, []

    def ends(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) > step:
            raise Killed
        return replace(self, target)

    ending = pytest.raises(Killed) if step < 5 else contextlib.nullcontext()
    with monkeypatch.context() as patch, ending:
        patch.setattr(Path, "replace", ends)
        write_together(tmp_path, content(2), "r.json")
    number = read_json(tmp_path / "r.json")["number"]  # type: ignore[index]
    assert number == (1 if step < 3 else 2)
    assert (tmp_path / "w.bin").read_bytes() == content(number)["w.bin"]
    write_together(tmp_path, content(3), "r.json")
    assert (tmp_path / "w.bin").read_bytes() == content(3)["w.bin"]
    assert not [f for f in tmp_path.iterdir() if f.name.endswith((".whole", ".next"))]


def test_a_first_writing_that_was_whole_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def ends(self: Path, target: Path) -> Path:
        if not target.name.startswith("."):
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", ends)
        with pytest.raises(Killed):
            write_together(tmp_path / "run", content(1), "r.json")
    assert not (tmp_path / "run" / "r.json").exists()
    assert newest("*/r.json", tmp_path, "record", "make one") == tmp_path / "run" / "r.json"
    assert exists(tmp_path / "run" / "r.json")
    assert not exists(tmp_path / "r.json")


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    random.seed(0)
    seen = set()
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=-1)
    for _ in range(12):
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.uniform(0.01, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if exists(tmp_path / "r.json"):
            number = read_json(tmp_path / "r.json")["number"]  # type: ignore[index]
            assert (tmp_path / "w.bin").read_bytes() == bytes([number]) * 300_000
            seen.add(number)
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=-1)
    process.kill()
    process.communicate()
    assert len(seen) > 1


def test_below_a_file_there_is_nothing_to_finish(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not exists(tmp_path / "file" / "r.json")
    with pytest.raises(InvalidInputError, match="Not a directory"):
        read_json(tmp_path / "file" / "r.json")


@pytest.mark.parametrize("files", ["null", "3", "[[]]", '["../a"]', '["\\u0000"]'])
def test_a_damaged_note_is_named(tmp_path: Path, files: str) -> None:
    note = tmp_path / ".a.json.whole"
    note.write_text(f'{{"files": {files}}}')
    with pytest.raises(InvalidInputError, match=r"whole is damaged .delete"):
        finish_writing(tmp_path / "a.json")
