"""The ``cpu`` device: ONNX Runtime on this machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from functools import cached_property
from pathlib import Path

from deploynas.device import reference
from deploynas.device.base import Identity
from deploynas.errors import InvalidInputError, UnknownNameError

DEFAULT_PROVIDER = "CPUExecutionProvider"


class CpuDevice:
    """This machine through ONNX Runtime.

    Args:
        threads: Threads inside one operator.
        provider: An execution provider of the installed runtime.

    Raises:
        InvalidInputError: More threads than cores.
        UnknownNameError: The runtime has no such provider.
    """

    def __init__(self, threads: int = 1, provider: str = DEFAULT_PROVIDER) -> None:
        if not 1 <= threads <= len(available_cores()):
            raise InvalidInputError(
                f"--threads {threads}: this machine offers 1 to {len(available_cores())}"
            )
        if provider != DEFAULT_PROVIDER:
            import onnxruntime

            available = onnxruntime.get_available_providers()
            if provider not in available:
                raise UnknownNameError("execution provider", provider, available)
        self._threads = threads
        self._provider = provider

    @cached_property
    def identity(self) -> Identity:
        """Who measures."""
        version = importlib.metadata.version("onnxruntime")
        governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        return Identity(
            device="cpu",
            processor=processor_name(),
            runtime="onnxruntime " + ".".join(version.split(".")[:2]),
            provider=self._provider,
            threads=self._threads,
            session_options={
                "allow_spinning": "0",
                "execution_mode": "sequential",
                "reference_set": reference.VERSION,
            },
            recorded={
                "runtime_version": version,
                "system": platform.system(),
                "kernel": platform.release(),
                "python": platform.python_version(),
                "governor": governor.read_text().strip() if governor.exists() else "unknown",
                "cores": str(os.cpu_count()),
            },
        )

    def command(self, session: int) -> list[str]:
        """A worker pinned to ``threads`` of the fastest cores, another set each session."""
        cores = available_cores()
        first = session * self._threads % len(cores)
        chosen = [cores[(first + i) % len(cores)] for i in range(self._threads)]
        script = str(Path(__file__).with_name("worker.py"))
        pinned = ",".join(map(str, sorted(chosen)))
        # -I: a file of the current folder must not shadow a module of the worker.
        return [sys.executable, "-I", script, self._provider, str(self._threads), pinned]


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
