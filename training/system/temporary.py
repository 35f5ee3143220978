"""Temporary folders that do not outlive their process for long: what a kill -9 leaves, the next one removes.

Each is locked by the process that made it, and those that it started; a lock, other than a process's number, is also
right between containers that share the folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAME, END = "finetune-", ".held"
YOUNG = 60  # seconds in which a folder may have no lock yet


@contextmanager
def folder(what: str) -> Iterator[Path]:
    """A private folder in TMPDIR, named for `what` it is, that is gone after the block. Raises OSError."""
    remove_abandoned(Path(tempfile.gettempdir()))
    path = Path(tempfile.mkdtemp(prefix=f"{NAME}{what}-", suffix=END))
    handle = _held(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def remove_abandoned(beside: Path) -> None:
    """Remove those of this user whose process is gone. One that cannot be locked, or looked at, is left."""
    for path in beside.glob(f"{NAME}*{END}"):
        with suppress(OSError):
            found = path.lstat()
            mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
            if not mine or time.time() - found.st_mtime < YOUNG:
                continue
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)


def _held(path: Path) -> int | None:
    """The lock on a folder; None on a file system without locks, where nobody gets one."""
    handle = None
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def held(path: Path) -> bool:
    """Whether the process that has made a folder lives."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
