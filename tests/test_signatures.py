"""What the package's shape promises: short signatures, and nobody asks a thing what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import deploynas

ROOT = Path(deploynas.__file__).parent
FILES = [path for path in sorted(ROOT.rglob("*.py")) if "cli" not in path.relative_to(ROOT).parts]
MOST_PARAMETERS = 8


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def test_no_function_has_many_parameters() -> None:
    """Outside the command line, whose parameters are its options."""
    long = {}
    for where, node in functions():
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        num = len([one for one in every if one.arg not in ("self", "cls")])
        if num > MOST_PARAMETERS:
            long[where] = num
    assert not long


FAMILIES = (
    "MobileSpace", "StagedSpace", "CandidateSpace", "CellSpace", "StagedCellSpace",
    "Supernet", "CellNetwork", "PathNetwork", "MixedNetwork", "MixedBlocks", "MixedCells",
    "ProxylessRecipe", "DartsRecipe", "GradientRecipe", "SupernetRecipe",
)  # fmt: skip


@cache
def questions() -> list[tuple[Path, int, str]]:
    """Every question for what a thing is: file, line, and of what kinds."""
    return [
        (path, node.lineno, ast.unparse(node.args[1]))
        for path in FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("isinstance", "issubclass")
    ]


def test_questions_are_found() -> None:
    assert len(questions()) > 20


@pytest.mark.parametrize("name", FAMILIES)
def test_nobody_asks_what_a_space_network_or_recipe_is(name: str) -> None:
    own = {path for path in FILES if f"class {name}(" in path.read_text(encoding="utf-8")}
    assert own  # the name is right
    asked = [
        f"{path.relative_to(ROOT)}:{line}"
        for path, line, kinds in questions()
        if name in kinds and path not in own
    ]
    assert not asked
