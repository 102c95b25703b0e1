"""What can be chosen: choices, architectures, the one shape walk, costs. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploynas.errors import InvalidInputError
from deploynas.plugins import Plugins
from deploynas.spaces.base import (
    ArchRecord,
    Archs,
    Choice,
    Graphs,
    SearchSpace,
    Slot,
    SpaceRecord,
)
from deploynas.spaces.block_lists import parse_net
from deploynas.spaces.candidates import CandidateSpace
from deploynas.spaces.cells import CELL_TABLES, CellSpace, cell_space, operation
from deploynas.spaces.genotypes import genotype, parse_genotype
from deploynas.spaces.layers import Layer, Node
from deploynas.spaces.mobile import MobileSpace
from deploynas.spaces.nasbench201 import NASBENCH_TABLES, StagedCellSpace, staged_cell_space
from deploynas.spaces.resolution import Resolution, ResolutionLike, resolutions_of
from deploynas.spaces.staged import StagedSpace, StageTable
from deploynas.spaces.tables import (
    SUFFIX,
    parse_table,
    read_table,
    shipped_names,
    shipped_table,
)

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
    "Resolution",
    "ResolutionLike",
    "SearchSpace",
    "Slot",
    "SpaceRecord",
    "StageTable",
    "StagedCellSpace",
    "StagedSpace",
    "genotype",
    "is_known",
    "operation",
    "parse_genotype",
    "parse_net",
    "recorded_space",
    "resolutions_of",
    "space",
    "space_names",
    "staged_space",
]


PLUGINS: Plugins[Callable[..., SearchSpace]] = Plugins(
    "search space",
    "deploynas.spaces",
    dict.fromkeys([*shipped_names(), *CELL_TABLES, *NASBENCH_TABLES], "deploynas.spaces:space"),
)


def space_names() -> list[str]:
    """Names that :func:`space` knows, those of other packages included.

    Raises:
        InvalidInputError: Two packages bring a space of one name.
    """
    return PLUGINS.names()


def all_spaces() -> dict[str, SearchSpace]:
    """Name -> space, of all that can be made; why others cannot is in ``PLUGINS.broken``.

    Raises:
        InvalidInputError: Two packages bring a space of one name.
    """
    PLUGINS.broken.clear()
    found = {}
    for name in space_names():
        try:
            found[name] = space(name)
        except InvalidInputError as error:
            PLUGINS.broken[name] = str(error)
    return found


def is_known(name: str) -> bool:
    """Whether :func:`space` knows a name, whatever is changed in it."""
    return name.endswith(SUFFIX) or name.partition(":")[0] in space_names()


def space(
    name: str,
    num_classes: int | None = None,
    in_channels: int = 3,
    resolutions: Sequence[ResolutionLike] | None = None,
    *,
    table: str | None = None,
    **changes: int | str | Sequence[str],
) -> SearchSpace:
    """Build a search space by name.

    Args:
        name: One of :func:`space_names`; the path of a TOML file of one's own; of a cell space
            with changes, where there are any:
            ``darts:channels=8,cells=5,operations=skip_connect+sep_conv_3x3``.
        num_classes: Outputs of the classifier; by default the table's own.
        in_channels: Channels of the input image.
        resolutions: Of the input, each a side in pixels or ``"HEIGHTxWIDTH"``; by default the
            table's own.
        table: Of a space of one's own, as its ``spec`` holds it: no file is read.
        changes: Of a cell space: ``channels``, ``cells``, and but for ``nasbench201`` ``nodes``
            and ``operations``.

    Raises:
        UnknownNameError: No such space; the message suggests the nearest name.
        MissingFileError: No such file.
        InvalidInputError: A number that cannot be, a change of a space of another kind, or a file
            that is not the table of a space; its line and key are in the message.
    """
    base, _, text = (name, "", "") if name.endswith(SUFFIX) else name.partition(":")
    parts = (part.partition("=") for part in text.split(",") if part)
    asked = {**{key: value for key, _, value in parts}, **changes}
    made_for: dict[str, Any] = {
        "num_classes": num_classes, "in_channels": in_channels, "resolutions": resolutions
    }  # fmt: skip
    if base in CELL_TABLES:
        return cell_space(base, asked, **made_for)
    if base in NASBENCH_TABLES:
        return staged_cell_space(base, asked, **made_for)
    for key in asked:
        raise InvalidInputError(f"{base} has no argument {key!r}")
    if table is not None:
        return staged_space(base, parse_table(table), **made_for)
    if base.endswith(SUFFIX):
        path = Path(base)
        return staged_space(path.name, read_table(path), path=base, **made_for)
    if base in shipped_names():
        return staged_space(base, shipped_table(base), ships=True, **made_for)
    found = PLUGINS.load(base)(**made_for)
    if found.name != base:
        raise InvalidInputError(
            f"the space {base!r} of another package calls itself {found.name!r}"
        )
    return found


def recorded_space(spec: Mapping[str, Any]) -> SearchSpace:
    """The space that a file keeps as its ``spec``.

    Raises:
        UnknownNameError, InvalidInputError: See :func:`space`; or the file was edited.
    """
    try:
        return space(**spec)
    except (TypeError, AttributeError, KeyError, OverflowError):
        raise InvalidInputError(
            f"the file says of its space {spec!r:.200}, which describes none"
        ) from None


def staged_space(name: str, table: StageTable, **arguments: Any) -> StagedSpace:
    """The space of a table, of the family that it says.

    Args:
        name: Of the space.
        table: Its blocks are elastic, or have operators to choose from.
        arguments: Of :class:`StagedSpace`.
    """
    family: type[StagedSpace] = CandidateSpace if table.operators else MobileSpace
    return family(name, table, **arguments)
