"""What a training step grows a process by, at its peak. Shared by the benchmarks; Linux only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np


def grown_bytes(run: Callable[[], None]) -> int:
    """Peak resident bytes while ``run`` runs, over what was resident before.

    The kernel's own high-water mark, set back first: that of ``getrusage`` starts, in a child, at
    its parent's.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    run()
    return _peak() - before


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def median_of_children(option: str, value: str, num: int) -> float:
    """Run this script again with an option that makes it print bytes, each time from nothing."""
    command = [sys.executable, *sys.argv, option, value]
    return float(np.median([int(subprocess.check_output(command)) for _ in range(num)]))
