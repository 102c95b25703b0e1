"""Where onnxruntime-web lives, and how it gets there: npm's ordinary client, pinned versions."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from deploynas.contents import home
from deploynas.errors import DeviceError, MissingDependencyError, OutputError
from deploynas.onboard.folders import temporary_folder

HERE = Path(__file__).parent
MIN_NODE = 18
INSTALL_HINT = "type: deploynas devices install web"


def runtime_version() -> str:
    """The pinned version of onnxruntime-web."""
    package = json.loads((HERE / "package.json").read_text())
    version: str = package["dependencies"]["onnxruntime-web"]
    return version


def runtime_folder() -> Path:
    """Where this user's copy of the pinned runtime is, or would be."""
    if sys.platform == "darwin":
        cache = home() / "Library" / "Caches"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache")
    return cache / "deploynas" / f"onnxruntime-web-{runtime_version()}"


def dist_folder() -> Path:
    """The installed runtime's files.

    Raises:
        MissingDependencyError: It is not installed; says what to type.
    """
    dist = runtime_folder() / "node_modules" / "onnxruntime-web" / "dist"
    if not dist.is_dir():
        raise MissingDependencyError(
            f"onnxruntime-web {runtime_version()} is not installed", INSTALL_HINT
        )
    return dist


def find_node() -> tuple[str, str]:
    """Node's path and version.

    Raises:
        MissingDependencyError: There is none, or it is too old.
    """
    path = shutil.which("node")
    hint = "on Debian and Ubuntu: apt-get install nodejs npm"
    if path is None:
        raise MissingDependencyError("the web device needs Node.js, which is not here", hint)
    version = version_of([path, "--version"]).lstrip("v")
    if int(version.split(".")[0]) < MIN_NODE:
        raise MissingDependencyError(f"Node.js {version} is older than {MIN_NODE}", hint)
    return path, version


def version_of(command: list[str]) -> str:
    """What a program says of its version.

    Raises:
        DeviceError: It does not run.
    """
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError(f"{command[0]} does not run: {error}") from None
    return answer.stdout.strip()


def install_runtime() -> tuple[Path, bool]:
    """Install the pinned runtime for this user.

    Returns:
        Its folder, and whether anything was installed.

    Raises:
        MissingDependencyError: Node or npm is missing.
        DeviceError: npm failed.
        OutputError: The cache cannot be written.
    """
    find_node()
    npm = shutil.which("npm")
    if npm is None:
        hint = "on Debian and Ubuntu: apt-get install npm"
        raise MissingDependencyError("npm is not here", hint)
    target = runtime_folder()
    if target.is_dir():
        return target, False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target.parent) as folder:
            staged = folder / "runtime"
            staged.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, staged)
            flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            done = subprocess.run([npm, "ci", *flags], cwd=staged, capture_output=True, text=True)
            if done.returncode:
                reason = reason_of(done.stderr or done.stdout)
                raise DeviceError(f"npm could not install onnxruntime-web: {reason}")
            staged.rename(target)
    except OSError as error:
        raise OutputError.from_os_error(target, error) from error
    return target, True


def reason_of(output: str) -> str:
    """The line of npm's output that says why, after those that only number the failure."""
    lines = [re.sub(r"^npm (error|ERR!)\s*", "", line) for line in output.splitlines()]
    lines = [line for line in lines if line]
    numbers = re.compile(r"(code|errno|syscall|path|dest) ")
    return next((x for x in lines if not numbers.match(x)), lines[0] if lines else "no message")
