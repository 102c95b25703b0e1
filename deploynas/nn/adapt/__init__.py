"""A foreign network, read into what can be chosen in it."""

from __future__ import annotations

from deploynas.nn.adapt.reading import Frozen, Group, Reading, read

__all__ = ["Frozen", "Group", "Reading", "read"]
