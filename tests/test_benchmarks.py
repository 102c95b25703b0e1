"""Every benchmark still fits the package: it says what it takes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
FILES = sorted(FOLDER.glob("*.py"))


@pytest.mark.slow
def test_each_is_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    assert len(FILES) > 15
    for file in FILES:
        spec = importlib.util.spec_from_file_location(f"benchmark_{file.stem}", file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        assert module.__doc__, file
