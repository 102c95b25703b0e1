"""The cores that a measurement may use: their kinds, and the quota of a control group."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploynas.device import LocalDevice
from deploynas.errors import InvalidInputError
from deploynas.onboard import processor
from deploynas.onboard.processor import (
    kinds_of_cores,
    machine,
    most_threads,
    pinned,
    quota_of_cores,
)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine of eight cores that tells nothing else yet."""
    monkeypatch.setattr(processor, "SYS", tmp_path)
    monkeypatch.setattr(processor, "PROC", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    return tmp_path


def capacities(system: Path, values: dict[int, int]) -> None:
    for core, capacity in values.items():
        folder = system / f"devices/system/cpu/cpu{core}"
        folder.mkdir(parents=True)
        (folder / "cpu_capacity").write_text(f"{capacity}\n")


def test_one_three_and_four(system):
    """A phone: four little cores, three middle ones, and a big one."""
    capacities(system, {**dict.fromkeys(range(4), 250), **dict.fromkeys((4, 5, 6), 700), 7: 1024})
    assert kinds_of_cores() == [[7], [4, 5, 6], [0, 1, 2, 3]]
    assert [pinned(1, session) for session in range(3)] == [[7]] * 3
    assert [pinned(2, session) for session in range(4)] == [[4, 7], [5, 7], [6, 7], [4, 7]]
    assert pinned(4, 1) == [4, 5, 6, 7]
    assert pinned(6, 0) == [0, 1, 4, 5, 6, 7]
    assert most_threads() == 8
    assert machine()["kinds"] == "1+3+4"


def test_efficiency_cores_are_the_slower_kind(system):
    (system / "devices/cpu_core").mkdir(parents=True)
    (system / "devices/cpu_core/cpus").write_text("0-2,6\n")
    assert kinds_of_cores() == [[0, 1, 2, 6], [3, 4, 5, 7]]
    assert [pinned(2, session) for session in range(3)] == [[0, 1], [2, 6], [0, 1]]


def test_equal_cores_rotate(system):
    assert kinds_of_cores() == [list(range(8))]
    assert [pinned(3, session) for session in range(3)] == [[0, 1, 2], [3, 4, 5], [0, 6, 7]]
    assert "kinds" not in machine()
    assert "quota" not in machine()


MOUNTS = {  # lines of /proc/self/mountinfo and /proc/self/cgroup, and the files of the group
    "version 2": ("rw - cgroup2 cgroup rw", "0::/a/b", {"cpu.max": "150000 100000\n"}),
    "version 2, none": ("rw - cgroup2 cgroup rw", "0::/a/b", {"cpu.max": "max 100000\n"}),
    "version 1": (
        "rw - cgroup cgroup rw,cpu,cpuacct", "4:cpu,cpuacct:/a/b\n0::/",
        {"cpu.cfs_quota_us": "150000\n", "cpu.cfs_period_us": "100000\n"},
    ),
    "version 1, none": (
        "rw - cgroup cgroup rw,cpu,cpuacct", "4:cpu,cpuacct:/a/b\n0::/",
        {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("inner", [True, False], ids=["its own", "the one around it"])
@pytest.mark.parametrize("name", MOUNTS)
def test_a_quota(name, inner, system):
    mount, group, files = MOUNTS[name]
    top = system / "groups"
    (top / "a/b").mkdir(parents=True)
    (system / "self").mkdir()
    (system / "self/mountinfo").write_text(f"31 23 0:28 / {top} {mount}\n")
    (system / "self/cgroup").write_text(group)
    for file, text in files.items():
        (top / ("a/b" if inner else "a") / file).write_text(text)
    allowed = not name.endswith("none")
    assert quota_of_cores() == (1.5 if allowed else math.inf)
    assert most_threads() == (1 if allowed else 8)
    assert machine().get("quota") == ("1.5" if allowed else None)


def test_a_group_that_is_mounted_from_inside(system):
    """In a container the mount's root is the container's own group."""
    (system / "groups").mkdir()
    (system / "self").mkdir()
    line = f"31 23 0:28 /docker/1 {system / 'groups'} rw - cgroup2 cgroup rw\n"
    (system / "self/mountinfo").write_text(line)
    (system / "self/cgroup").write_text("0::/docker/1")
    (system / "groups/cpu.max").write_text("50000 100000")
    assert quota_of_cores() == 0.5
    assert most_threads() == 1


@contextlib.contextmanager
def real_quota(cores: float) -> Iterator[Path]:
    """A real control group of this machine; skips where none can be made."""
    group = Path(f"/sys/fs/cgroup/cpu/deploynas-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control group can be made here")
    try:
        try:
            (group / "cpu.cfs_quota_us").write_text(str(int(cores * 100_000)))
        except OSError:
            pytest.skip("no control group of version 1 here")
        yield group
    finally:
        group.rmdir()


@pytest.mark.slow
def test_a_real_quota_is_known_and_refused():
    code = (
        "import os, sys\n"
        "open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "from deploynas.device import LocalDevice\n"
        "print(LocalDevice().identity.recorded['quota'])\n"
        "try:\n"
        "    LocalDevice(threads=2)\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    with real_quota(0.75) as group:
        done = subprocess.run(
            [sys.executable, "-c", code, str(group / "cgroup.procs")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert done.stdout.splitlines() == ["0.75", "--threads 2: this machine offers 1 to 1"]


def test_threads_beyond_the_quota_are_refused(monkeypatch):
    monkeypatch.setattr(processor, "quota_of_cores", lambda: 1.9)
    with pytest.raises(InvalidInputError, match="offers 1 to 1"):
        LocalDevice(threads=2)
