"""A browser's view of a network: onnxruntime-web, one thread with SIMD."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from deploynas.errors import InvalidInputError, MissingDependencyError, UnknownNameError
from deploynas.onboard.processor import pinned, processor_name
from deploynas.onboard.runtime import Runtime
from deploynas.runtimes.web.install import (
    HERE,
    dist_folder,
    find_node,
    install_runtime,
    runtime_version,
    version_of,
)

PROVIDER = "wasm"
# WebAssembly compiled once, by the optimising compiler: V8's baseline code and its later
# replacement would make the first hundreds of runs slower, and repeats disagree.
V8_FLAGS = ("--no-liftoff", "--no-wasm-dynamic-tiering")
_BROWSER_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--no-first-run",
    # a page in the background must not be slowed down
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
)
# Pins itself to the cores of its first argument, then becomes the rest of the command.
_PINNED = (
    "import os, sys; cores = sys.argv[1]; "
    "hasattr(os, 'sched_setaffinity') and os.sched_setaffinity(0, map(int, cores.split(','))); "
    "os.execvp(sys.argv[2], sys.argv[2:])"
)


class OnnxRuntimeWeb(Runtime):
    """See :class:`~deploynas.onboard.runtime.Runtime`."""

    name = "onnxruntime-web"
    devices: ClassVar[Mapping[str, str]] = {
        "web": "this machine through WebAssembly in Node",
        "web-chromium": "the same in a page of a headless browser",
    }
    examines = False
    installs = "onnxruntime-web, by npm (some 35 MB)"

    def launcher(self, device: str, threads: int, provider: str | None) -> WebLauncher:
        """See :class:`~deploynas.onboard.runtime.Runtime`.

        One thread, which is what a page without special headers gets.
        """
        if provider not in (None, PROVIDER):
            raise UnknownNameError("execution provider", str(provider), [PROVIDER])
        if threads != 1:
            raise InvalidInputError(f"--threads {threads}: the device {device} has one thread")
        return WebLauncher(device)

    def install(self) -> tuple[Path, bool]:
        """See :class:`~deploynas.onboard.runtime.Runtime`."""
        return install_runtime()


class WebLauncher:
    """See :class:`~deploynas.onboard.runtime.Launcher`."""

    def __init__(self, device: str) -> None:
        self._node, self._node_version = find_node()
        self._browser = find_browser() if device == "web-chromium" else None
        self._dist = dist_folder()

    def facts(self) -> dict[str, Any]:
        """See :class:`~deploynas.onboard.runtime.Launcher`."""
        version = runtime_version()
        host = f"node {self._node_version}"
        if self._browser:
            host = version_of([self._browser, "--version"]).lower()
        program, number = host.split()[0], next(w for w in host.split() if w[0].isdigit())
        return {
            "processor": processor_name(),
            "runtime": "onnxruntime-web " + ".".join(version.split(".")[:2]),
            "provider": PROVIDER,
            "threads": 1,
            "session_options": {
                "host": f"{program} {number.split('.')[0]}",
                "simd": "1",
                "v8_flags": " ".join(V8_FLAGS),
            },
            "recorded": {
                "runtime_version": version,
                "host_version": host,
                "system": platform.system(),
                "kernel": platform.release(),
                "cores": str(os.cpu_count()),
            },
        }

    def command(self, session: int) -> list[str]:
        """A worker pinned to one core, another each session."""
        (core,) = pinned(1, session)
        inside = [sys.executable, "-I", "-c", _PINNED, str(core)]
        if self._browser is None:
            return [*inside, self._node, *V8_FLAGS, str(HERE / "node.mjs"), str(self._dist)]
        flags = [*_BROWSER_FLAGS, f"--js-flags={' '.join(V8_FLAGS)}"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags.append("--no-sandbox")  # the browser refuses to run as root with it
        relay = str(HERE / "chromium.mjs")
        return [*inside, self._node, relay, str(self._dist), self._browser, *flags]


def find_browser() -> str:
    """The path of Chromium or Chrome.

    Raises:
        MissingDependencyError: There is none.
    """
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    for name in names:
        if path := shutil.which(name):
            return path
    for app in ("Chromium", "Google Chrome"):
        bundled = Path(f"/Applications/{app}.app/Contents/MacOS/{app}")
        if bundled.exists():
            return str(bundled)
    raise MissingDependencyError(
        "the device web-chromium needs Chromium or Chrome, which is not here",
        "on Debian: apt-get install chromium",
    )


RUNTIME = OnnxRuntimeWeb()
