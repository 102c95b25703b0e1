"""Journals: what long work has done so far, a record a line, whatever moment it ends at.

A journal belongs to one process at a time. Each line begins with a digest of itself and of that
before it. What a killed process left torn, what is no record and what was edited is cut off when
the journal is opened, so that all that is appended afterwards is read again. The first lines may
have no digest: an earlier deploynas wrote them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from deploynas.errors import OutputError

Entry = TypeVar("Entry", bound=BaseModel)
_SIGNED = re.compile(rb'\{"sha256":"([0-9a-f]{16})",')


class Journal(contextlib.AbstractContextManager[Any], Generic[Entry]):
    """An append-only file of records, one JSON document a line.

    Args:
        path: Created where it is not there.
        kind: What a line is: a record, or a union of several.
        owner: What errors call the work that writes it.

    Attributes:
        path: As given.
        entries: What was there when it was opened.
        num_cut: Lines that were cut off, a torn last one apart: from the first that is no record.

    Raises:
        OutputError: It cannot be written, or another process holds it.
    """

    def __init__(self, path: Path, kind: Any, owner: str) -> None:
        self.path = path
        self._adapter: TypeAdapter[Entry] = TypeAdapter(kind)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("a+b")
        except OSError as error:
            raise OutputError.from_os_error(path, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._is_in_place():
                raise BlockingIOError
        except BlockingIOError:
            self._file.close()
            raise OutputError(f"{owner} is being written by another deploynas process") from None
        self._last = b""  # digest of the last line
        self.entries, self.num_cut = self._read()

    def _is_in_place(self) -> bool:
        """Whether the locked file is the one at the path: who ends removes its journal."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def _read(self) -> tuple[list[Entry], int]:
        """All records up to the first line that is none; what follows is cut off."""
        self._file.seek(0)
        lines = self._file.readlines()
        entries: list[Entry] = []
        good = 0
        for line in lines:
            try:
                if not line.endswith(b"\n"):
                    break
                entries.append(self._adapter.validate_json(self._own(line), strict=True))
            except (ValidationError, ValueError, RecursionError):
                break
            good += len(line)
        cut = lines[len(entries) :]
        if cut:
            self._file.truncate(good)
        return entries, sum(line.endswith(b"\n") for line in cut)

    def _own(self, line: bytes) -> bytes:
        """What was to be written of a line that follows the last.

        Raises:
            ValueError: It was edited, or stands elsewhere than where it was written.
        """
        signed = _SIGNED.match(line)
        if not signed:
            if self._last:
                raise ValueError
            return line
        own = b"{" + line[signed.end() :]
        if signed[1] != _digest(self._last, own):
            raise ValueError
        self._last = signed[1]
        return own

    def append(self, entry: Entry, *, through: bool = False) -> None:
        """Write one line.

        Args:
            entry: The record.
            through: To the disk itself, so that a loss of power does not lose it either.
        """
        own = entry.model_dump_json().encode() + b"\n"
        mark = _digest(self._last, own)
        try:
            self._file.write(b'{"sha256":"%s",%s' % (mark, own[1:]))
            self._last = mark
            self._file.flush()
            if through:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError.from_os_error(self.path, error) from error

    def clear(self) -> None:
        """Forget all that was there."""
        self._file.truncate(0)
        self.entries, self._last = [], b""

    def remove(self) -> None:
        """Another file holds it all now."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release it."""
        with contextlib.suppress(OSError):  # a full disk was reported by append
            self._file.close()

    def __exit__(self, *exception: object) -> None:
        self.close()


def _digest(last: bytes, line: bytes) -> bytes:
    return hashlib.sha256(last + line).hexdigest()[:16].encode()
