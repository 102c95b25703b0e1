"""The machine that this runs on: its processor, its cores and its load."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

BUSY_CORES = 0.3  # that others keep busy while we measure: a person should know


def machine() -> dict[str, str]:
    """What is merely recorded of this machine."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "governor": governor.read_text().strip() if governor.exists() else "unknown",
        "cores": str(os.cpu_count()),
    }


def pinned(threads: int, session: int) -> list[int]:
    """``threads`` of the fastest cores, another set each session."""
    cores = available_cores()
    first = session * threads % len(cores)
    return sorted(cores[(first + i) % len(cores)] for i in range(threads))


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


def available_cores() -> list[int]:
    """The cores this process may use; on big.LITTLE systems only the fastest kind."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    cores = sorted(os.sched_getaffinity(0))

    def capacity(core: int) -> int:
        path = Path(f"/sys/devices/system/cpu/cpu{core}/cpu_capacity")
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            return 0

    best = max(capacity(core) for core in cores)
    return [core for core in cores if capacity(core) == best]


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
