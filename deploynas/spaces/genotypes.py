"""Cells as the published code of DARTS writes them (Liu, Simonyan and Yang 2019)."""

from __future__ import annotations

import ast

from deploynas.errors import InvalidInputError
from deploynas.spaces.base import ArchDict
from deploynas.spaces.cells import KINDS, NUM_INPUTS, parse_edge


def genotype(arch: ArchDict) -> str:
    """A cell architecture as the published code of DARTS writes it.

    Args:
        arch: Dict form.
    """
    parts = []
    for kind, short in zip(KINDS, ("normal", "reduce"), strict=True):
        edges = [parse_edge(edge) for edge in arch[kind]]  # type: ignore[attr-defined]
        concat = f"range({NUM_INPUTS}, {NUM_INPUTS + len(edges) // NUM_INPUTS})"
        parts += [f"{short}={edges}", f"{short}_concat={concat}"]
    return f"Genotype({', '.join(parts)})"


def parse_genotype(text: str) -> dict[str, object]:
    """``Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=..., ...)`` -> dict form.

    The resolution is not in it. What the operations and the edges are is checked by
    :meth:`CellSpace.encode`; nothing is evaluated.

    Raises:
        InvalidInputError: Not a genotype, or not all of a cell's nodes are its output.
    """
    example = "it is written like Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=...)"
    found: dict[str, object] = {}
    left_out_of: dict[str, list[int]] = {}
    try:
        call = ast.parse(text.strip(), mode="eval").body
        assert isinstance(call, ast.Call)
        values = {word.arg: word.value for word in call.keywords}
        for kind, short in zip(KINDS, ("normal", "reduce"), strict=True):
            edges = ast.literal_eval(values[short])
            found[kind] = [f"{name}<{int(source)}" for name, source in edges]
            nodes = range(NUM_INPUTS, NUM_INPUTS + len(edges) // NUM_INPUTS)
            concat = values.get(f"{short}_concat")
            left_out = set(nodes) - set(nodes if concat is None else _numbers(concat))
            left_out_of[kind] = sorted(left_out)
    except (SyntaxError, ValueError, TypeError, KeyError, AssertionError):
        raise InvalidInputError("not a genotype", example) from None
    for kind, left in left_out_of.items():
        if left:
            raise InvalidInputError(
                f"the {kind} cell's output leaves out node {left[0]}",
                "only cells whose nodes are all put out are known here",
            )
    return found


def _numbers(value: ast.expr) -> list[int]:
    if isinstance(value, ast.Call):  # range(2, 6)
        return list(range(*(int(ast.literal_eval(argument)) for argument in value.args)))
    return [int(number) for number in ast.literal_eval(value)]
