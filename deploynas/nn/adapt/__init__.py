"""A foreign network, read into what can be chosen in it."""

from __future__ import annotations

from deploynas.nn.adapt.cutting import Group
from deploynas.nn.adapt.reading import Frozen, Reading, read

__all__ = ["Frozen", "Group", "Reading", "read"]
