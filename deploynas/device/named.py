"""Devices that the user named, in one small file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import ClassVar

from deploynas.artifacts import Artifact, unchanged
from deploynas.contents import home
from deploynas.errors import InvalidInputError, UnknownNameError

NUM_TYPED = 50


class NamedDevices(Artifact):
    """The user's devices. Format 1: first version; 2 (0.1.0): a digest.

    Attributes:
        devices: Name -> how it is reached: ``exec:COMMAND`` or ``ssh:HOST``.
        typed: What was reached without a name: a profile may ask for it again.
    """

    SCHEMA: ClassVar[str] = "deploynas-devices"
    VERSION: ClassVar[int] = 2
    ANEW: ClassVar[str] = "delete it and name the devices again: deploynas devices add"
    MIGRATIONS = {1: unchanged}

    devices: dict[str, str] = {}
    typed: tuple[str, ...] = ()

    @classmethod
    def load(cls) -> NamedDevices:
        """Those of this user; none where there is no file."""
        path = devices_file()
        return cls.read(path) if path.exists() else cls()

    def with_device(self, name: str, reached: str) -> NamedDevices:
        """With one more, or another in its place.

        Raises:
            InvalidInputError: The name could not be told from something else.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@-]*", name):
            raise InvalidInputError(f"a device's name is letters, digits, . _ @ -, got {name!r}")
        return self.model_copy(update={"devices": {**self.devices, name: reached}})

    def with_typed(self, reached: str) -> NamedDevices:
        """With one more that a person typed."""
        return self.model_copy(update={"typed": (*self.typed, reached)[-NUM_TYPED:]})

    def without(self, name: str) -> NamedDevices:
        """With one less.

        Raises:
            UnknownNameError: There is no such device.
        """
        if name not in self.devices:
            raise UnknownNameError("device", name, self.devices)
        left = {n: r for n, r in self.devices.items() if n != name}
        return self.model_copy(update={"devices": left})

    def save(self) -> Path:
        """Write the file; returns where."""
        path = devices_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write(path)
        return path


def devices_file() -> Path:
    """Where the names are kept."""
    base = os.environ.get("XDG_CONFIG_HOME") or home() / ".config"
    return Path(base) / "deploynas" / "devices.json"
