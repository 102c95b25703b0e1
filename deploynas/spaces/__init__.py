"""What can be chosen: choices, architectures, the one shape walk, costs. numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deploynas.errors import InvalidInputError, UnknownNameError
from deploynas.spaces.base import ArchRecord, Archs, Choice, Graphs, SearchSpace, Slot
from deploynas.spaces.candidates import (
    CANDIDATE_TABLES,
    ONE_SHOT_TABLES,
    CandidateSpace,
    OneShotSpace,
)
from deploynas.spaces.cells import CELL_TABLES, CellSpace, cell_space, operation
from deploynas.spaces.genotypes import genotype, parse_genotype
from deploynas.spaces.layers import Layer, Node
from deploynas.spaces.mobile import TABLES, MobileSpace
from deploynas.spaces.nasbench201 import NASBENCH_TABLES, StagedCellSpace, staged_cell_space
from deploynas.spaces.published import parse_net
from deploynas.spaces.staged import StagedSpace, StageTable

__all__ = [
    "ArchRecord",
    "Archs",
    "CandidateSpace",
    "CellSpace",
    "Choice",
    "Graphs",
    "Layer",
    "MobileSpace",
    "Node",
    "OneShotSpace",
    "SearchSpace",
    "Slot",
    "StagedCellSpace",
    "StagedSpace",
    "genotype",
    "is_known",
    "operation",
    "parse_genotype",
    "parse_net",
    "space",
    "space_names",
]


def space_names() -> list[str]:
    """Names that :func:`space` knows."""
    return [*TABLES, *CANDIDATE_TABLES, *ONE_SHOT_TABLES, *CELL_TABLES, *NASBENCH_TABLES]


def is_known(name: str) -> bool:
    """Whether :func:`space` knows a name, whatever is changed in it."""
    return name.partition(":")[0] in space_names()


def space(
    name: str,
    num_classes: int | None = None,
    in_channels: int = 3,
    resolutions: Sequence[int] | None = None,
    **changes: int | str | Sequence[str],
) -> SearchSpace:
    """Build a search space by name.

    Args:
        name: One of :func:`space_names`; of a cell space with changes, where there are any:
            ``darts:channels=8,cells=5,operations=skip_connect+sep_conv_3x3``.
        num_classes: Outputs of the classifier; by default the table's own.
        in_channels: Channels of the input image.
        resolutions: Input heights and widths in pixels; by default the table's own.
        changes: Of a cell space: ``channels``, ``cells``, and but for ``nasbench201`` ``nodes``
            and ``operations``.

    Raises:
        UnknownNameError: No such space; the message suggests the nearest name.
        InvalidInputError: A number that cannot be, or a change of a space of another kind.
    """
    base, _, text = name.partition(":")
    if base not in space_names():
        raise UnknownNameError("search space", base, space_names())
    parts = (part.partition("=") for part in text.split(",") if part)
    asked = {**{key: value for key, _, value in parts}, **changes}
    if base in CELL_TABLES or base in NASBENCH_TABLES:
        make = cell_space if base in CELL_TABLES else staged_cell_space
        return make(
            base,
            asked,
            num_classes=num_classes,
            in_channels=in_channels,
            resolutions=resolutions,
        )
    for key in asked:
        raise InvalidInputError(f"{base} has no argument {key!r}")
    kinds: tuple[tuple[Mapping[str, StageTable], type[StagedSpace]], ...] = (
        (TABLES, MobileSpace), (CANDIDATE_TABLES, CandidateSpace), (ONE_SHOT_TABLES, OneShotSpace),
    )  # fmt: skip
    tables, kind = next((tables, kind) for tables, kind in kinds if name in tables)
    return kind(
        name,
        tables[name],
        num_classes=num_classes,
        in_channels=in_channels,
        resolutions=resolutions,
    )
