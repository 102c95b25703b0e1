"""What CI installs: pinned, each file by its hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pins(text: str) -> dict[str, str]:
    """Package -> version."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^ ;\\\n]+)", text, re.MULTILINE)
    return {plain(name): version for name, version in found}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_pin_has_hashes_of_its_files() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert pins(lock) == pins((ROOT / "constraints.txt").read_text())
    for entry in re.split(r"\n(?=[A-Za-z])", lock):
        if "==" in entry:
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]
    assert "://" not in lock


def test_all_that_is_asked_for_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(one for extra in extras.values() for one in extra)]
    names = {plain(re.match(r"[A-Za-z0-9_.-]+", one)[0]) for one in asked}  # type: ignore[index]
    assert names - {"deploynas"} <= pins((ROOT / "requirements.lock").read_text()).keys()
