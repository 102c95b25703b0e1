"""Strict, versioned, atomically written JSON: the base of every file the tool writes.

An artefact is a pydantic model with a ``schema_name`` and a ``schema_version``. Reading
refuses unknown keys, other kinds of file, newer versions, NaN, truncated text and content that is
not what was written, each with one line that says what to do. Writing goes to a temporary file in
the same directory, is synced and renamed, so that a reader sees the old content or the new, never
half of it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from deploynas.contents import require_own
from deploynas.errors import InvalidInputError, MissingFileError, OutputError
from deploynas.onboard.folders import lock

# Where the verbs look for what earlier ones wrote, below the working directory.
PROFILES, RUNS, EXPORTS = Path("profiles"), Path("runs"), Path("exports")
DIGEST = "sha256"  # its key in an artefact
MAX_UNPACKED_BYTES = 512 << 20  # of a gzip file; a profile unpacks to a few MB


class Record(BaseModel):
    """An immutable part of an artefact: no unknown keys, no NaN, no infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Artifact(Record):
    """A file that the tool writes and reads back.

    Subclasses set ``SCHEMA`` (the kind of file) and ``VERSION`` (an integer, raised by one
    with every change of the format; the history stands in the subclass's docstring). A file of
    an older version is brought up to this one by ``MIGRATIONS``: version -> what makes the next
    version's document of one, whose own fields have defaults where nothing is to be done.

    The file holds the :func:`digest` of its content. One of the current version is refused
    without it; those of versions before the digest have none, and are believed. ``ANEW`` says how
    a file comes about that was edited.
    """

    SCHEMA: ClassVar[str]
    VERSION: ClassVar[int]
    ANEW: ClassVar[str]
    MIGRATIONS: ClassVar[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {}

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
        said = document.get(DIGEST)
        is_whole = version != cls.VERSION if said is None else said == digest(document)
        body = {k: v for k, v in document.items() if k not in ("schema", "version", DIGEST)}
        while isinstance(version, int) and version in cls.MIGRATIONS:
            try:
                body = cls.MIGRATIONS[version](body)
            except (AttributeError, KeyError, TypeError, ValueError):
                raise InvalidInputError(
                    f"{path} is damaged or was edited: it is no {cls.SCHEMA} of format {version}"
                ) from None
            version += 1
        if version != cls.VERSION:
            is_newer = isinstance(version, int) and version > cls.VERSION
            age = "newer" if is_newer else "other"
            raise InvalidInputError(
                f"{path} has the {age} {cls.SCHEMA} format {version!r}, this deploynas reads "
                f"{cls.VERSION}",
                "upgrade deploynas" if is_newer else "make it anew with this deploynas",
            )
        try:
            read = cls.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InvalidInputError(
                f"{path} is damaged or was edited: {where}: {first['msg']}"
            ) from None
        if not is_whole:
            raise InvalidInputError(
                f"{path} was edited or damaged: its content is not what deploynas wrote",
                f"undo the edit, or {cls.ANEW}",
            )
        return read

    def document(self) -> dict[str, object]:
        """The JSON document: schema, version, digest, then the fields."""
        head: dict[str, object] = {"schema": self.SCHEMA, "version": self.VERSION}
        fields = self.model_dump(mode="json")
        return {**head, DIGEST: digest(head | fields), **fields}

    @property
    def content(self) -> bytes:
        """The file."""
        return _as_json(self.document())

    def write(self, path: Path) -> Path:
        """Write atomically; returns ``path``."""
        return write_json(path, self.document())


def digest(document: Mapping[str, object]) -> str:
    """SHA-256 of what a document says, its own digest apart: indents and order do not count."""
    content = {key: value for key, value in document.items() if key != DIGEST}
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        return "nested too deeply to be one of our files"
    return hashlib.sha256(text.encode()).hexdigest()


def unchanged(document: dict[str, Any]) -> dict[str, Any]:
    """A migration where a version differs by fields alone that have a default."""
    return document


def read_json(path: Path) -> object:
    """Parse a JSON file, plain or gzip (by its content, whatever its suffix).

    Raises:
        MissingFileError: There is no such file.
        InvalidInputError: It is truncated or foreign, or unpacks to more than
            ``MAX_UNPACKED_BYTES``.
    """
    finish_writing(path)
    try:
        text = _unpacked(path.read_bytes(), path).decode("utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise InvalidInputError(f"{path} is a directory, not a file") from None
    except UnicodeDecodeError:
        require_own(path, "a JSON file")
        raise InvalidInputError(f"{path} is not a JSON file") from None
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        require_own(path, "a JSON file")
        raise InvalidInputError(
            f"{path} is truncated or not JSON (line {error.lineno}: {error.msg})"
        ) from None
    except ValueError:  # Python reads no integer of thousands of digits
        raise InvalidInputError(f"{path} holds a number that is too long") from None
    except RecursionError:
        raise InvalidInputError(f"{path} is nested too deeply to be one of our files") from None


def _unpacked(content: bytes, path: Path) -> bytes:
    """``content``, unpacked where it is gzip."""
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        with gzip.open(io.BytesIO(content)) as file:
            unpacked = file.read(MAX_UNPACKED_BYTES + 1)
    except EOFError:
        raise InvalidInputError(f"{path} is a truncated gzip file") from None
    except (gzip.BadGzipFile, zlib.error):
        raise InvalidInputError(f"{path} is a damaged gzip file") from None
    if len(unpacked) > MAX_UNPACKED_BYTES:
        raise InvalidInputError(
            f"{path} unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB: it is none of our files"
        )
    return unpacked


def write_json(path: Path, document: object) -> Path:
    """Write a JSON document atomically; returns ``path``."""
    with open_atomic(path) as file:
        file.write(_as_json(document))
    return path


def _as_json(document: object) -> bytes:
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n"


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing: the content appears whole, or not at all.

    What writers of ``path`` that were killed have left beside it is removed first.

    Raises:
        OutputError: The place cannot be written or the disk is full; the old file stays.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary, file = _open_locked(path)
        with file:
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


def _open_locked(path: Path) -> tuple[Path, IO[bytes]]:
    """A new temporary file beside ``path``, locked for as long as it is open."""
    while True:
        descriptor, name = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
        file = os.fdopen(descriptor, "wb")
        lock(file, wait=True)
        if os.fstat(descriptor).st_nlink:
            return Path(name), file
        file.close()  # a sweeper came between


def _sweep(path: Path) -> None:
    """Remove the temporary files of ``path`` whose lock is free: their writer was killed."""
    own = re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}\.tmp")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if own.fullmatch(entry.name):
                with contextlib.suppress(OSError), Path(entry).open("rb+") as file:
                    if lock(file):
                        Path(entry).unlink()


def write_together(folder: Path, files: Mapping[str, bytes], first: str) -> None:
    """Write several files of a folder as one step: whatever ends it, all are old or all are new.

    The new contents are written beside the files, then a note that all of them are there, then
    they take the files' places. Who reads ``first`` meets the note, and ends what was begun.

    Args:
        folder: Created where it is not there.
        files: Name -> content.
        first: The name of them that is read first: an artefact.

    Raises:
        OutputError: The place cannot be written; the old files stay.
    """
    finish_writing(folder / first)
    for name, content in files.items():
        with open_atomic(folder / f".{name}.next") as file:
            file.write(content)
    write_json(_note_of(folder / first), {"files": list(files)})
    finish_writing(folder / first)


def finish_writing(first: Path) -> None:
    """End what :func:`write_together` began before its process was killed; mostly nothing.

    Raises:
        OutputError: The place cannot be written.
    """
    note = _note_of(first)
    try:
        files = json.loads(note.read_text())["files"]
        if any(Path(name).name != name or "\0" in name for name in files):
            raise ValueError
    except OSError:  # none is there; where nothing can be read, reading the file itself says so
        return
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidInputError(f"{note} is damaged", f"delete {note}") from None
    try:
        for name in files:
            with contextlib.suppress(FileNotFoundError):  # it took its place already
                (first.parent / f".{name}.next").replace(first.parent / name)
        note.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError.from_os_error(first, error) from error


def exists(path: Path) -> bool:
    """Whether an artefact is there, one included whose writing was cut off when it was whole."""
    finish_writing(path)
    return path.is_file()


def _note_of(first: Path) -> Path:
    return first.with_name(f".{first.name}.whole")


def ensure_writable(directory: Path) -> Path:
    """Create ``directory`` and prove that a file can be written there, before long work."""
    with open_atomic(directory / ".write-test") as file:
        file.write(b"deploynas")
    (directory / ".write-test").unlink(missing_ok=True)  # another process does the same
    return directory


def newest(pattern: str, root: Path, what: str, hint: str) -> Path:
    """The newest file under ``root`` that matches.

    Raises:
        MissingFileError: There is none; ``hint`` is what to type.
    """
    for note in root.glob(str(_note_of(Path(pattern)))):
        finish_writing(note.with_name(note.name[1 : -len(".whole")]))
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
