"""A browser's view of a network: onnxruntime-web, one thread with SIMD."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from functools import cached_property
from pathlib import Path

from deploynas.device import reference
from deploynas.device.base import Identity, LocalDevice
from deploynas.device.web.install import HERE, dist_folder, find_node, runtime_version, version_of
from deploynas.errors import InvalidInputError, MissingDependencyError
from deploynas.onboard.conversation import Examination
from deploynas.onboard.processor import available_cores, processor_name

HOSTS = {"web": "node", "web-chromium": "chromium"}
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


class WebDevice(LocalDevice):
    """This machine through onnxruntime-web.

    Args:
        name: ``web`` (Node) or ``web-chromium`` (a page in a headless browser).
        threads: Only 1: what a page without special headers gets.

    Raises:
        InvalidInputError: More than one thread.
        MissingDependencyError: Node, the browser or the runtime is missing; says what to type.
    """

    def __init__(self, name: str = "web", threads: int = 1) -> None:
        super().__init__()
        if threads != 1:
            raise InvalidInputError(f"--threads {threads}: the device {name} has one thread")
        self._name = name
        self._node, self._node_version = find_node()
        self._browser = find_browser() if HOSTS[name] == "chromium" else None
        self._dist = dist_folder()

    @cached_property
    def identity(self) -> Identity:
        """Who measures."""
        version = runtime_version()
        host = f"node {self._node_version}"
        if self._browser:
            host = version_of([self._browser, "--version"]).lower()
        program, number = host.split()[0], next(w for w in host.split() if w[0].isdigit())
        return Identity(
            device=self._name,
            processor=processor_name(),
            runtime="onnxruntime-web " + ".".join(version.split(".")[:2]),
            provider="wasm",
            threads=1,
            session_options={
                "host": f"{program} {number.split('.')[0]}",
                "reference_set": reference.VERSION,
                "simd": "1",
                "v8_flags": " ".join(V8_FLAGS),
            },
            recorded={
                "runtime_version": version,
                "host_version": host,
                "system": platform.system(),
                "kernel": platform.release(),
                "cores": str(os.cpu_count()),
            },
        )

    def examine(self, model: Path, session: int = 0) -> Examination:
        """See :class:`deploynas.device.base.Device`; a browser does not tell."""
        raise InvalidInputError(
            f"{self._name} tells neither the memory of a model nor the times of its nodes",
            "use --device cpu for these",
        )

    def command(self, session: int) -> list[str]:
        """A worker pinned to one core, another each session."""
        cores = available_cores()
        pinned = [sys.executable, "-I", "-c", _PINNED, str(cores[session % len(cores)])]
        if self._browser is None:
            return [*pinned, self._node, *V8_FLAGS, str(HERE / "node.mjs"), str(self._dist)]
        flags = [*_BROWSER_FLAGS, f"--js-flags={' '.join(V8_FLAGS)}"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags.append("--no-sandbox")  # the browser refuses to run as root with it
        relay = str(HERE / "chromium.mjs")
        return [*pinned, self._node, relay, str(self._dist), self._browser, *flags]


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
