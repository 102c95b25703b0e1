"""What ``--json`` prints, verb by verb: its keys and their types are frozen in ``shapes.json``.

A change there is a change of what scripts rely on: it belongs into the changelog, and the file is
written anew by ``DEPLOYNAS_FREEZE=1 make test PYTEST_ARGS=tests/cli/test_json.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deploynas as dn
from deploynas.profile import DeviceProfile
from deploynas.spaces import StagedSpace

FILE = Path(__file__).with_name("shapes.json")
ROOT = Path(dn.__file__).parents[1]
EXPORT = ROOT / "exports" / "fashion-mnist"
FREE = (  # keyed by what they hold, or empty at times
    "architecture",
    "budget",
    "costs",
    "device",
    "measured",
    "options",
    "space",
    "supernet_seconds",
    "notes",
    "slower_layers",
    "warnings",
)
FREEZE = os.environ.get("DEPLOYNAS_FREEZE") == "1"

pytestmark = pytest.mark.usefixtures("short_sessions")


def shape(value: object, name: str = "") -> object:
    """Keys and types; of a list that of its first member."""
    if name in FREE:
        return "list" if isinstance(value, list) else "object"
    if isinstance(value, dict):
        return {key: shape(one, key) for key, one in sorted(value.items())}
    if isinstance(value, list):
        return [shape(value[0])] if value and not isinstance(value[0], (int, float)) else ["..."]
    if value is None:
        return "null"
    kinds = {bool: "boolean", int: "number", float: "number", str: "string"}
    return kinds[type(value)]


def printed(folder: Path, *arguments: str) -> dict[str, object]:
    """The one document that a verb prints."""
    code = "from deploynas.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments, "--json"],
        capture_output=True, text=True, cwd=folder, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert isinstance(found, dict), done.stderr
    return found


def is_frozen(name: str, document: dict[str, object]) -> None:
    found = shape(document)
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    if FREEZE:
        known[name] = found
        FILE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    assert known[name] == found


QUICK = {
    "spaces": ("spaces",),
    "spaces show": ("spaces", "show", "mobile-plain"),
    "devices": ("devices",),
    "profiles list": ("profiles", "list"),
    "profiles show": ("profiles", "show", "xeon-onnxruntime"),
    "strategies": ("strategies",),
    "strategies show": ("strategies", "show", "evolution"),
    "inspect FILE": ("inspect", str(EXPORT / "model.onnx")),
    "inspect EXPORT": ("inspect", str(EXPORT)),
    "error": ("search", "--latency-ms", "nan"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_verb_that_reads(name: str, tmp_path: Path) -> None:
    is_frozen(name, printed(tmp_path, *QUICK[name]))


@pytest.mark.long
def test_check(tmp_path: Path) -> None:
    limits = ("--limit", "latency_ms=1000", "--limit", "file_bytes=5MB", "--limit", "macs=1G")
    found = printed(tmp_path, "check", str(EXPORT), *limits, "--record", "record.json")
    assert found["verdict"] == "pass"
    assert found["taken"]["file_bytes"] == (EXPORT / "model.onnx").stat().st_size
    for key in ("accuracy", "preprocessing"):
        found.pop(key, None)  # where the images are
    is_frozen("check", found)
    found = printed(tmp_path, "check", str(EXPORT / "model.onnx"), "--baseline", "record.json")
    is_frozen("check --baseline", found)


@pytest.mark.long
def test_from_images_to_an_export(
    board_profile: Callable[[StagedSpace], DeviceProfile], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for name, low in (("bright", 150), ("dark", 0)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(60):
            pixels = rng.integers(low, low + 100, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i:03}.png")
    for space in ("mobile-plain", "proxyless-small"):
        own = dn.space(space, num_classes=2, resolutions=[24])
        board_profile(own).write(tmp_path / "profiles" / f"{space}.json")
    where = ("--data", "images", "--epochs", "0.3", "--latency-ms", "1000")
    plain = ("--space", "mobile-plain", "--profile", "profiles/mobile-plain.json")
    chain = ("--space", "proxyless-small", "--profile", "profiles/proxyless-small.json")
    is_frozen("train", printed(tmp_path, "train", *plain[:2], *where[:4], "--output", "runs/t"))
    found = printed(
        tmp_path, "search", *plain, *where[:2], *where[4:], "--supernet", "runs/t",
        "--evaluations", "4", "--output", "runs/s",
    )  # fmt: skip
    is_frozen("search", found)
    found = printed(
        tmp_path, "search", *chain, *where, "--strategy", "proxyless", "--evaluations", "4",
        "--output", "runs/g",
    )  # fmt: skip
    is_frozen("search --strategy proxyless", found)
    is_frozen("retrain", printed(tmp_path, "retrain", "runs/s", "--epochs", "0.3"))
    is_frozen("export", printed(tmp_path, "export", "runs/s"))
    is_frozen("inspect RUN", printed(tmp_path, "inspect", "runs/s"))
    found = printed(
        tmp_path, "compare", *plain, "--strategies", "random", "--data", "images", "--seeds", "1",
        "--latency-ms", "1000", "--search-epochs", "0.3", "--epochs", "0.3", "--evaluations", "4",
    )  # fmt: skip
    is_frozen("compare", found)


@pytest.mark.long
def test_devices_and_profiles(tmp_path: Path, small_table: Callable[[list[int]], Path]) -> None:
    here = ("--exec", sys.executable)
    is_frozen("devices add", printed(tmp_path, "devices", "add", "pi", *here))
    is_frozen("devices remove", printed(tmp_path, "devices", "remove", "pi"))
    few = ("--space", small_table([1, 2]).name, "--budget-minutes", "0.2", "--output", "p.json")
    is_frozen("profile", printed(tmp_path, "profile", *few))
