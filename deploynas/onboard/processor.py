"""The machine that this runs on: its processor, its cores and its load."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

SYS, PROC = Path("/sys"), Path("/proc")
BUSY_CORES = 0.3  # that others keep busy while we measure: a person should know


def machine() -> dict[str, str]:
    """What is merely recorded of this machine."""
    governor = SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor"
    kinds, quota = kinds_of_cores(), quota_of_cores()
    found = {
        "system": platform.system(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "governor": governor.read_text().strip() if governor.exists() else "unknown",
        "cores": str(os.cpu_count()),
    }
    if len(kinds) > 1:
        found["kinds"] = "+".join(str(len(kind)) for kind in kinds)
    if quota < math.inf:
        found["quota"] = f"{quota:g}"
    return found


def most_threads() -> int:
    """How many threads can have a core each, of whatever kind, within the quota."""
    cores = sum(map(len, kinds_of_cores()))
    return max(1, min(cores, math.floor(min(quota_of_cores(), cores))))


def pinned(threads: int, session: int) -> list[int]:
    """``threads`` of the fastest cores, another set each session.

    Where the fastest kind has too few all of these, and as many as it takes of the next.
    """
    found: list[int] = []
    for kind in kinds_of_cores():
        wanted = min(threads - len(found), len(kind))
        first = session * wanted % len(kind)
        found += [kind[(first + i) % len(kind)] for i in range(wanted)]
        if len(found) == threads:
            break
    return sorted(found)


def processor_name() -> str:
    """Vendor and model of the processor, as exact as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = {}
        for line in cpuinfo.read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
        if "model name" in fields and "cpu family" in fields:
            numbers = "/".join(fields.get(k, "?") for k in ("cpu family", "model", "stepping"))
            return f"{fields['model name']} ({numbers})"
        if "CPU part" in fields:
            name = fields.get("model name") or fields.get("Hardware") or platform.machine()
            return f"{name} ({fields.get('CPU implementer')}/{fields['CPU part']})"
    if sys.platform == "darwin":
        answer = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True
        )
        if answer.returncode == 0 and answer.stdout.strip():
            return answer.stdout.strip()
    return platform.processor() or platform.machine()


def kinds_of_cores() -> list[list[int]]:
    """The cores that this process may use, the fastest kind first.

    Kinds are told by their capacity (Arm's big, middle and little ones), and by what Intel's
    hybrid processors call performance and efficiency cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [list(range(os.cpu_count() or 1))]
    performance = _listed(SYS / "devices/cpu_core/cpus")
    by_speed: dict[tuple[int, bool], list[int]] = {}
    for core in sorted(os.sched_getaffinity(0)):
        try:
            path = SYS / f"devices/system/cpu/cpu{core}/cpu_capacity"
            capacity = int(path.read_text())
        except (OSError, ValueError):
            capacity = 0
        by_speed.setdefault((capacity, core in performance), []).append(core)
    return [by_speed[speed] for speed in sorted(by_speed, reverse=True)]


def _listed(path: Path) -> set[int]:
    """Numbers of a list as the kernel writes it: ``0-3,8``; none where there is no such file."""
    try:
        ranges = [part.split("-") for part in path.read_text().strip().split(",") if part]
        return {core for r in ranges for core in range(int(r[0]), int(r[-1]) + 1)}
    except (OSError, ValueError):
        return set()


def quota_of_cores() -> float:
    """How many cores' time a control group allows this process; infinite where none does.

    Both versions of Linux's control groups, and the groups around its own.
    """
    least = math.inf
    with contextlib.suppress(OSError, ValueError, IndexError):
        groups = [line.split(":", 2) for line in (PROC / "self/cgroup").read_text().splitlines()]
        own = {kind: path for _, kinds, path in groups for kind in kinds.split(",")}
        for line in (PROC / "self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            root, place = before.split()[3:5]
            system, _, options = after.split()[:3]
            kind = {"cgroup": "cpu", "cgroup2": ""}.get(system)
            if kind is None or kind not in own or (kind and kind not in options.split(",")):
                continue
            inside = own[kind][len(root) :] if own[kind].startswith(root) else own[kind]
            top = Path(place)
            group = top / inside.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(top):
                    least = min(least, _quota_in(folder))
    return least


def _quota_in(group: Path) -> float:
    """Of one control group: ``cpu.max`` in version 2, two files in version 1."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
            return int(quota) / int(period) if int(quota) > 0 else math.inf
        except (OSError, ValueError):  # there is none, or it says "max"
            continue
    return math.inf


class BusyCores:
    """How many cores something else than this measurement keeps busy, from now on.

    Linux only. The time that a virtual machine's neighbours take from it counts as well.

    Args:
        pid: The worker's process, whose work, like this process's, is our own.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._start = self._read()

    def others(self) -> float:
        """Mean number of cores since the start; NaN where it cannot be told."""
        now = self._read()
        if now is None or self._start is None or now[0] - self._start[0] < 0.2:
            return math.nan
        (start, busy, own), (now_s, now_busy, now_own) = self._start, now
        return max(0.0, (now_busy - busy - (now_own - own)) / (now_s - start))

    def _read(self) -> tuple[float, float, float] | None:
        """Seconds: the clock, all cores' work, and our own."""
        try:
            ticks = os.sysconf("SC_CLK_TCK")
            stat = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
            # user, nice, system, idle, iowait, irq, softirq, steal
            busy = sum(int(v) for i, v in enumerate(stat) if i not in (3, 4))
            # after the name in parentheses: user and system time are fields 14 and 15
            fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
            worker = int(fields[11]) + int(fields[12])
        except (OSError, ValueError, IndexError):
            return None
        own = time.process_time() + worker / ticks
        return time.monotonic(), busy / ticks, own
