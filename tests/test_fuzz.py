"""Damaged files of every kind are refused in a line, or read right: a few of `make fuzz` each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fuzz
import pytest

LONG = ("results of a bundle", *(name for name in fuzz.MAKERS if "opened" in name))


@pytest.fixture
def at_home() -> Iterator[None]:
    """Readers are in a folder of their own."""
    before = Path.cwd()
    yield
    os.chdir(before)


@pytest.mark.slow
@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("name", [name for name in fuzz.MAKERS if name not in LONG])
def test_damaged(name: str, tmp_path: Path) -> None:
    found = list(fuzz.tries(name, tmp_path, 0, range(15)))
    assert [one for one in found if one["outcome"] == "failed"] == []
    assert len(found) == 15
