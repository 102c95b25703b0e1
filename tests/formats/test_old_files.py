"""Files that earlier versions wrote are read, each kind of them, and say what they said.

``2026-11-27/`` holds one of each as a commit of that day wrote it, on digits and on a board's
profile; ``2026-11-28/`` the kind that came that day.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import shutil
from pathlib import Path

import pytest

import deploynas
from deploynas.artifacts import Artifact, read_json
from deploynas.check.verdict import load_target
from deploynas.errors import InvalidInputError
from deploynas.search import SearchResult
from deploynas.workflows.chosen import open_run
from deploynas.workflows.compare_table import Comparison
from deploynas.workflows.gradient import GradientRecord

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.glob("*/*.json"))


def kinds() -> dict[str, type[Artifact]]:
    """Schema -> what reads it, of everything in the package."""
    for module in pkgutil.walk_packages(deploynas.__path__, "deploynas."):
        if not module.name.endswith(("__main__", ".onboard.worker", ".onboard.agent")):
            importlib.import_module(module.name)
    found, todo = {}, [Artifact]
    while todo:
        for kind in todo.pop().__subclasses__():
            todo.append(kind)
            if kind.__module__.startswith("deploynas."):
                found[kind.SCHEMA] = kind
    return found


def document(file: Path) -> dict[str, object]:
    found = read_json(file)
    assert isinstance(found, dict)
    return found


def test_there_is_a_file_of_every_kind() -> None:
    shipped = {"deploynas-imagenet-predictor"}  # is in the package itself
    assert {str(document(file)["schema"]) for file in FILES} | shipped == set(kinds())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_read_and_keeps_what_it_said(file: Path, tmp_path: Path) -> None:
    old = document(file)
    kind = kinds()[str(old["schema"])]
    found = kind.read(file)
    again = found.write(tmp_path / "again.json")
    assert kind.read(again) == found
    new = json.loads(again.read_text())
    assert new["version"] == kind.VERSION >= int(str(old["version"]))
    same = {key for key in old if key in new and key not in ("version", "recipe")}
    assert len(same) >= len(old) - 3
    for key in same:
        assert contains(new[key], old[key]), key


def contains(new: object, old: object) -> bool:
    """Whether all that ``old`` holds is in ``new``, which may have more fields."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(key in new and contains(new[key], old[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(contains, new, old))
    return new == old


def test_what_was_moved_is_where_it_belongs() -> None:
    folder = FOLDER / "2026-11-27"
    old = document(folder / "gradient-proxyless.json")
    record = GradientRecord.read(folder / "gradient-proxyless.json")
    assert old["version"] == 1
    assert (
        record.recipe["architecture"]["share_weights"] is old["recipe"]["share_weights"] is False
    )
    assert "share_weights" not in record.recipe
    result = SearchResult.read(folder / "search-ofa.json")
    assert document(folder / "search-ofa.json")["version"] == 3
    assert result.measured == {}
    assert result.measured_latency_ms is None
    assert len(Comparison.read(folder / "comparison.json").winners) == 2


def test_a_migration_of_what_is_damaged_ends_in_a_line(tmp_path: Path) -> None:
    file = tmp_path / "search.json"
    for wrong in ({}, {"measured_latency_ms": "x"}):
        file.write_text(json.dumps({"schema": SearchResult.SCHEMA, "version": 3, **wrong}))
        with pytest.raises(InvalidInputError, match="is damaged or was edited"):
            SearchResult.read(file)
    file.write_text(json.dumps({"schema": SearchResult.SCHEMA, "version": [3]}))
    with pytest.raises(InvalidInputError, match="the other deploynas-search-result format"):
        SearchResult.read(file)


def test_what_an_old_search_says_of_its_network_is_derived_again(tmp_path: Path) -> None:
    old = document(FOLDER / "2026-11-27" / "search-ofa.json")
    file = tmp_path / "search.json"
    file.write_text(json.dumps(old))
    assert open_run(tmp_path, lambda picked: None)[1].best.macs == old["best"]["macs"]
    for name in ("macs", "params"):
        file.write_text(json.dumps(old | {"best": old["best"] | {name: 1000}}))
        with pytest.raises(InvalidInputError, match="not those of its architecture"):
            open_run(tmp_path, lambda picked: None)


def test_what_an_old_manifest_says_is_what_its_model_notes(tmp_path: Path) -> None:
    export = tmp_path / "export"
    shutil.copytree(FOLDER.parents[1] / "exports" / "fashion-mnist", export)
    file = export / "manifest.json"
    old = document(FOLDER / "2026-11-27" / "manifest.json")
    shipped = document(file)
    assert old["model_sha256"] == shipped["model_sha256"]
    file.write_text(json.dumps(old))
    assert load_target(export)[0].name == "model.onnx"
    other = old["preprocessing"] | {"mean": [0.0]}
    for change in ({"preprocessing": other}, {"classes": old["classes"][::-1]}):
        file.write_text(json.dumps(old | change))
        with pytest.raises(InvalidInputError, match=f"notes other {next(iter(change))}"):
            load_target(export)
    file.write_text(json.dumps(shipped | {"accuracy": 0.99}))
    with pytest.raises(InvalidInputError, match=r"was edited.*deploynas export"):
        load_target(export)
