"""Temporary folders that go with their owner, also where it was killed.

The owner holds a lock on a file in its folder for as long as it lives; the system frees the lock
of a process that ends, however it ends. A process that makes its first folder removes those whose
lock is free.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # no Unix: nothing is locked, and nothing swept
    fcntl = None  # type: ignore[assignment]

PREFIX = "deploynas-"
OWNER = ".owner"  # the file that is locked
OWNERLESS_SECONDS = 86_400.0  # a folder without that file may be in the making

_swept: set[Path] = set()
_mine: set[Path] = set()


@contextlib.contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder in ``parent``, by default the system's; removed on the way out."""
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    if parent not in _swept:
        _swept.add(parent)
        sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    _mine.add(folder)
    try:
        with own(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _mine.discard(folder)


@atexit.register
def _tidy_up() -> None:
    """Remove what a generator still holds that nobody has closed."""
    for folder in list(_mine):
        shutil.rmtree(folder, ignore_errors=True)


def own(folder: Path) -> IO[bytes]:
    """Make this process the owner of ``folder``, until the returned file is closed."""
    new = folder / f"{OWNER}.new"
    file = new.open("wb")
    lock(file)
    new.rename(folder / OWNER)  # locked before a sweeper can find it
    return file


def sweep(parent: Path) -> None:
    """Remove this user's folders in ``parent`` whose owner is dead."""
    if fcntl is None:
        return
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else was faster
            about = folder.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                continue
            try:
                file = (folder / OWNER).open("rb+")
            except FileNotFoundError:
                if time.time() - about.st_mtime > OWNERLESS_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            with file:
                if lock(file):
                    shutil.rmtree(folder, ignore_errors=True)


def lock(file: IO[bytes], wait: bool = False) -> bool:
    """Lock ``file`` until it is closed; returns whether it is.

    It is not where another holds it, unless we ``wait``, and where there are no locks at all.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def place(file: Path, where: Path) -> Path:
    """Make ``file`` be at ``where`` too; runtimes follow no links out of a model's folder."""
    where.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, where)
    except OSError:  # another disk
        shutil.copyfile(file, where)
    return where
