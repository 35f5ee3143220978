"""Files that appear whole or not at all: written beside their place, flushed to the disk, then renamed into it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.errors import MachineError

PARTIAL = ".partial"  # what a file or folder that is still being written ends in


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; rename it to `path` when the block ends well, remove it when it does not."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; rename it to `path` (replacing an older one) when the block ends well."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                sync(file)
        sync(partial)
        old = path.with_name(f"{path.name}.old.{os.getpid()}{PARTIAL}")
        if path.exists():
            path.replace(old)  # renamed, not removed: a kill between the two must not cost both
        partial.replace(path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def kept(path: Path) -> Iterator[Path]:
    """`whole_file` for what is kept beside a run: MachineError where it cannot be written, on a full disk for example."""
    try:
        with whole_file(path) as partial:
            yield partial
    except OSError as error:
        raise MachineError(
            f"{path.parent} cannot be written: {error.strerror or error}; rows are kept there, read and as tokens"
        ) from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with LF line ends, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def append_whole(handle: int, content: bytes) -> None:
    """Append `content` to an open file that nobody else writes to now, all of it or nothing. Raises OSError.

    On a disk that fills, a write takes what still fits and says so without an error: that half is cut off again.
    """
    before = os.fstat(handle).st_size
    done = 0
    try:
        while done < len(content):
            done += os.write(handle, content[done:])
    except OSError:
        if done:
            os.ftruncate(handle, before)
        raise


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left half-written under a folder that nobody else is writing to."""
    for leftover in [*folder.glob(f"*{PARTIAL}"), *folder.glob(f"*/*{PARTIAL}")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Ask the system to put a file or folder on the disk; a file system that cannot (EINVAL) is left alone."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (22, 95):  # EINVAL, EOPNOTSUPP: special file systems
            raise
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal text; memory does not grow with the file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
