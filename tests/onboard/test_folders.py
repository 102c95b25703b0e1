"""Temporary folders: those of the dead go, those of the living stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import deploynas
from deploynas.onboard import folders
from deploynas.onboard.folders import OWNERLESS_SECONDS, own, sweep, temporary_folder

PACKAGE = str(Path(deploynas.__file__).parents[1])
HOLD = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from deploynas.onboard.folders import temporary_folder\n"
    "with temporary_folder(Path(sys.argv[1])) as folder:\n"
    "    (folder / 'model.onnx').write_bytes(b'x' * 1000)\n"
    "    print(folder, flush=True)\n"
    "    time.sleep(60)\n"
)


@pytest.fixture
def held(tmp_path):
    """A folder of another process, and that process."""
    environment = {**os.environ, "PYTHONPATH": PACKAGE}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        yield Path(process.stdout.readline().strip()), process
        process.kill()


def test_the_folder_of_a_killed_process_goes_and_that_of_a_living_one_stays(held, tmp_path):
    folder, process = held
    sweep(tmp_path)
    assert (folder / "model.onnx").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert folder.exists()
    with temporary_folder(tmp_path) as mine:  # the first of this process there
        assert list(tmp_path.iterdir()) == [mine]
        sweep(tmp_path)
        assert mine.exists()
    assert not list(tmp_path.iterdir())


def test_it_sweeps_once_a_process(tmp_path, monkeypatch):
    swept = []
    monkeypatch.setattr(folders, "sweep", swept.append)
    for _ in range(3):
        with temporary_folder(tmp_path):
            pass
    assert swept == [tmp_path]


def test_what_is_not_ours_or_in_the_making_stays(tmp_path):
    young, old, foreign = (tmp_path / n for n in ("deploynas-a", "deploynas-b", "other-c"))
    dead = tmp_path / "deploynas-d"
    target = tmp_path / "target"
    for folder in (young, old, foreign, dead, target):
        folder.mkdir()
        (folder / "file").touch()
    (foreign / ".owner").touch()
    (dead / ".owner").touch()
    (tmp_path / "deploynas-link").symlink_to(target)
    (tmp_path / "deploynas-file").touch()
    long_ago = time.time() - OWNERLESS_SECONDS - 10
    for folder in (old, foreign, target):
        os.utime(folder, (long_ago, long_ago))
    sweep(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"deploynas-a", "other-c", "target", "deploynas-link", "deploynas-file"}
    assert (target / "file").exists()


def test_an_owner_without_a_context(tmp_path):
    folder = tmp_path / "deploynas-x"
    folder.mkdir()
    with own(folder):
        sweep(tmp_path)
        assert folder.exists()
    sweep(tmp_path)
    assert not folder.exists()


def test_many_sweepers_take_nobodys_folder(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from deploynas.onboard.folders import sweep, temporary_folder\n"
        "for _ in range(200):\n"
        "    with temporary_folder(Path(sys.argv[1])) as folder:\n"
        "        (folder / 'file').touch()\n"
        "        sweep(folder.parent)\n"
        "        assert (folder / 'file').exists()\n"
    )
    environment = {**os.environ, "PYTHONPATH": PACKAGE}
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert not list(tmp_path.iterdir())


def test_without_locks_nothing_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "fcntl", None)
    dead = tmp_path / "deploynas-d"
    dead.mkdir()
    (dead / ".owner").touch()
    with temporary_folder(tmp_path) as mine:
        assert mine.exists()
        assert dead.exists()
    assert list(tmp_path.iterdir()) == [dead]
