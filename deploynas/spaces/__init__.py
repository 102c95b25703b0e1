"""What can be chosen: choices, architectures, the one shape walk, costs. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

from deploynas.errors import UnknownNameError
from deploynas.spaces.base import ArchRecord, Archs, Choice, SearchSpace, Slot
from deploynas.spaces.candidates import CANDIDATE_TABLES, CandidateSpace
from deploynas.spaces.layers import Layer, Node
from deploynas.spaces.mobile import TABLES, MobileSpace
from deploynas.spaces.published import parse_net
from deploynas.spaces.staged import StagedSpace

__all__ = [
    "ArchRecord",
    "Archs",
    "CandidateSpace",
    "Choice",
    "Layer",
    "MobileSpace",
    "Node",
    "SearchSpace",
    "Slot",
    "StagedSpace",
    "parse_net",
    "space",
    "space_names",
]


def space_names() -> list[str]:
    """Names that :func:`space` knows."""
    return [*TABLES, *CANDIDATE_TABLES]


def space(
    name: str,
    num_classes: int | None = None,
    in_channels: int = 3,
    resolutions: Sequence[int] | None = None,
) -> StagedSpace:
    """Build a search space by name.

    Args:
        name: One of :func:`space_names`.
        num_classes: Outputs of the classifier; by default the table's own.
        in_channels: Channels of the input image.
        resolutions: Input heights and widths in pixels; by default the table's own.

    Raises:
        UnknownNameError: No such space; the message suggests the nearest name.
    """
    if name not in space_names():
        raise UnknownNameError("search space", name, space_names())
    kind = MobileSpace if name in TABLES else CandidateSpace
    return kind(
        name,
        TABLES.get(name) or CANDIDATE_TABLES[name],
        num_classes=num_classes,
        in_channels=in_channels,
        resolutions=resolutions,
    )
