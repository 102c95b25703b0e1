"""One family of typed errors: each owns its message and its exit code.

The command line catches :class:`DeploynasError` once, prints one line and exits
with ``exit_code``. Library users catch the class they care about.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

EXIT_PASS = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_FAILED = 3
EXIT_INCONCLUSIVE = 4


class DeploynasError(Exception):
    """Base of every error that a user can cause or meet.

    Args:
        message: One line: what is wrong.
        hint: What to type next, where there is something to type.
        details: What the line sums up: files, mostly.
    """

    kind = "error"
    exit_code = EXIT_ERROR

    def __init__(self, message: str, hint: str | None = None, details: Sequence[str] = ()) -> None:
        super().__init__(message if hint is None else f"{message} ({hint})")
        self.details = tuple(details)


class InvalidInputError(DeploynasError, ValueError):
    """A value, a file's content or a data set that cannot be used."""

    kind = "invalid-input"


class MissingFileError(DeploynasError):
    """A file or artefact that is not there."""

    kind = "missing-file"


class OutputError(DeploynasError):
    """A place that cannot be written: read-only, not a directory, disk full."""

    kind = "output"

    @classmethod
    def from_os_error(cls, path: Path, error: OSError) -> OutputError:
        """Wrap an :class:`OSError` met while writing ``path``."""
        return cls(f"cannot write {path}: {error.strerror or error}")


class MissingDependencyError(DeploynasError):
    """A verb needs an extra that is not installed."""

    kind = "missing-dependency"


class InfeasibleBudgetError(DeploynasError):
    """No architecture of the space keeps the budget."""

    kind = "infeasible-budget"


class DeviceMismatchError(DeploynasError):
    """Samples of two different devices would be combined or compared."""

    kind = "device-mismatch"


class DeviceError(DeploynasError):
    """The device or its runtime failed while measuring."""

    kind = "device"


class ModelError(DeviceError):
    """A runtime cannot load or run a model.

    Attributes:
        runtime: Name and version.
        model: The model's name in the measurement.
        reason: The runtime's own.
    """

    def __init__(self, runtime: str, model: str, reason: str, hint: str | None = None) -> None:
        super().__init__(f"{runtime} failed with {model}: {reason}", hint)
        self.runtime, self.model, self.reason = runtime, model, reason


class MissingModuleError(DeviceError):
    """A device's Python lacks a package.

    Attributes:
        module: Its name.
    """

    def __init__(self, module: str) -> None:
        super().__init__(f"there is no {module}")
        self.module = module


class IncompleteProfileError(DeploynasError):
    """A device profile lacks a layer or a calibration that is needed."""

    kind = "incomplete-profile"


class ParityError(DeploynasError):
    """An exported model does not compute what the PyTorch network computes."""

    kind = "parity"


class UnknownNameError(DeploynasError):
    """A name that does not exist; the message suggests the nearest one, or tells all."""

    kind = "unknown-name"

    def __init__(
        self, what: str, name: str, known: Iterable[str], *, tells_all: bool = False
    ) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.6 if tells_all else 0.5)
        hints = [f"did you mean {one!r}?" for one in near]
        if tells_all or not near:
            hints.append(f"known: {', '.join(names)}")
        super().__init__(f"unknown {what} {name!r}", " ".join(hints))


def require_positive(value: float, what: str) -> float:
    """Return ``value`` if it is a positive finite number.

    Raises:
        InvalidInputError: It is zero, negative, NaN or infinite.
    """
    if not (math.isfinite(value) and value > 0):
        raise InvalidInputError(f"{what} must be a positive number, got {value:g}")
    return value


def one_line(error: Exception) -> str:
    """What a library said, which may quote a file's own line breaks."""
    return " ".join(str(error).split())
