"""Strict, versioned, atomically written JSON: the base of every file the tool writes.

An artefact is a pydantic model with a ``schema_name`` and a ``schema_version``. Reading
refuses unknown keys, other kinds of file, newer versions, NaN and truncated text, each with
one line that says what to do. Writing goes to a temporary file in the same directory, is
synced and renamed, so that a reader sees the old content or the new, never half of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from deploynas.errors import InvalidInputError, MissingFileError, OutputError

# Where the verbs look for what earlier ones wrote, below the working directory.
PROFILES, RUNS, EXPORTS = Path("profiles"), Path("runs"), Path("exports")


class Record(BaseModel):
    """An immutable part of an artefact: no unknown keys, no NaN, no infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Artifact(Record):
    """A file that the tool writes and reads back.

    Subclasses set ``SCHEMA`` (the kind of file) and ``VERSION`` (an integer, raised by one
    with every change of the format; the history stands in the subclass's docstring).
    """

    SCHEMA: ClassVar[str]
    VERSION: ClassVar[int]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and validate ``path``.

        Raises:
            MissingFileError: There is no such file.
            InvalidInputError: The file is truncated, of another kind, of a newer version,
                or holds a value that cannot be right.
        """
        return cls.parse(read_json(path), path)

    @classmethod
    def parse(cls, document: object, path: Path) -> Self:
        """Validate a parsed JSON document that was read from ``path``."""
        if not isinstance(document, dict) or document.get("schema") != cls.SCHEMA:
            raise InvalidInputError(f"{path} is not a {cls.SCHEMA} file")
        version = document.get("version")
        if version != cls.VERSION:
            is_newer = isinstance(version, int) and version > cls.VERSION
            age = "newer" if is_newer else "other"
            raise InvalidInputError(
                f"{path} has the {age} {cls.SCHEMA} format {version!r}, this deploynas reads "
                f"{cls.VERSION}",
                "upgrade deploynas" if is_newer else "make it anew with this deploynas",
            )
        body = {k: v for k, v in document.items() if k not in ("schema", "version")}
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InvalidInputError(
                f"{path} is damaged or was edited: {where}: {first['msg']}"
            ) from None

    def document(self) -> dict[str, object]:
        """The JSON document: schema, version, then the fields."""
        return {"schema": self.SCHEMA, "version": self.VERSION, **self.model_dump(mode="json")}

    def write(self, path: Path) -> Path:
        """Write atomically; returns ``path``."""
        return write_json(path, self.document())


def read_json(path: Path) -> object:
    """Parse a JSON file, with one-line errors for a missing, truncated or foreign file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise InvalidInputError(f"{path} is a directory, not a file") from None
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path} is not a JSON file") from None
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidInputError(
            f"{path} is truncated or not JSON (line {error.lineno}: {error.msg})"
        ) from None
    except RecursionError:
        raise InvalidInputError(f"{path} is nested too deeply to be one of our files") from None


def write_json(path: Path, document: object) -> Path:
    """Write a JSON document atomically; returns ``path``."""
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    with open_atomic(path) as file:
        file.write(text.encode() + b"\n")
    return path


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing: the content appears whole, or not at all.

    Raises:
        OutputError: The place cannot be written or the disk is full; the old file stays.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise OutputError.from_os_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def ensure_writable(directory: Path) -> Path:
    """Create ``directory`` and prove that a file can be written there, before long work."""
    with open_atomic(directory / ".write-test") as file:
        file.write(b"deploynas")
    (directory / ".write-test").unlink()
    return directory


def newest(pattern: str, root: Path, what: str, hint: str) -> Path:
    """The newest file under ``root`` that matches.

    Raises:
        MissingFileError: There is none; ``hint`` is what to type.
    """
    found = sorted(root.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise MissingFileError(f"there is no {what} in {root}/", hint)
    return found[-1]


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
