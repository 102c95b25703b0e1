"""What the package's shape promises: short signatures, and nobody asks a thing what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import deploynas

ROOT = Path(deploynas.__file__).parent
FILES = [path for path in sorted(ROOT.rglob("*.py")) if "cli" not in path.relative_to(ROOT).parts]
MOST_PARAMETERS = 8


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
    "MobileSpace", "StagedSpace", "CandidateSpace", "CellSpace", "NasBench201Space",
    "Supernet", "CellNetwork", "PathNetwork", "MixedNetwork", "MixedBlocks", "MixedCells",
    "ProxylessRecipe", "DartsRecipe", "GradientRecipe", "SupernetRecipe",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_nobody_asks_what_a_space_network_or_recipe_is(name: str) -> None:
    asked = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if f"class {name}(" in text:
            continue  # its own module
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                is_question = node.func.id in ("isinstance", "issubclass")
                if is_question and name in ast.unparse(node.args[1]):
                    asked.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not asked
