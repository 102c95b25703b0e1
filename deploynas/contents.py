"""What a file is that is not what its name says: told before a reader stumbles over it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from deploynas.errors import InvalidInputError, MissingFileError

HEAD_BYTES = 512


class Foreign(NamedTuple):
    """What stands in place of a file, and what brings the file itself."""

    name: str
    hint: str | None = None


def foreign(start: bytes) -> Foreign | None:
    """What stands in place of models, weights and images when they went missing on their way.

    Args:
        start: The first :data:`HEAD_BYTES` of the file, or all.
    """
    if not start:
        return Foreign("empty")
    if start.startswith(b"version https://git-lfs"):
        return Foreign("a Git LFS pointer", "fetch what it stands for: git lfs pull")
    if start.startswith((b"/annex/objects/", b"../.git/annex/")):
        return Foreign("a git-annex pointer", "fetch what it stands for: git annex get")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:14].lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return Foreign("a web page", "a server answered with a page: download the file again")
    if not start.strip(b"\0"):
        return Foreign("nothing but zeros", "it was not written to its end: fetch it again")
    return None


def head(path: Path) -> bytes:
    """The first :data:`HEAD_BYTES` of a file.

    Raises:
        MissingFileError: There is no such file.
        InvalidInputError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise MissingFileError(f"{shown(path)} does not exist") from None
    except IsADirectoryError:
        raise InvalidInputError(f"{shown(path)} is a directory, not a file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(f"cannot read {shown(path)}: {reason}") from None


def require_own(path: Path, what: str) -> None:
    """Refuse a file in whose place something else stands.

    Args:
        path: The file.
        what: It should be, with an article.

    Raises:
        MissingFileError, InvalidInputError: See :func:`head`; or names what it is.
    """
    found = foreign(head(path))
    if found is not None:
        raise InvalidInputError(f"{shown(path)} is {found.name}, not {what}", found.hint)


def home() -> Path:
    """The user's folder; where a container has none, the root, in which nobody else can write."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(os.sep)


def shown(path: Path) -> str:
    """A path as any output can print it, whatever bytes are in its name."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
