"""Files that appear whole or not at all: written beside their place, flushed to the disk, then renamed into it.

They are their owner's alone, whatever the umask says, for they hold rows or what was learned from them. What is made to
be passed on (a model, its GGUF files, a Modelfile) is `shared`: its mode is what the umask gives it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.errors import MachineError
from training.system import privacy

PARTIAL = ".partial"  # what a file or folder that is still being written ends in
OWNER, OWNERS_FOLDER = 0o600, 0o700


@contextmanager
def whole_file(path: Path, shared: bool = False) -> Iterator[Path]:
    """Give a path to write to; rename it to `path` when the block ends well, remove it when it does not."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        if not shared:
            os.close(open_private(partial, os.O_WRONLY | os.O_TRUNC))
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        remove(partial)


@contextmanager
def whole_folder(path: Path, shared: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill; rename it to `path` (replacing an older one) when the block ends well.

    In a `shared` one the files keep the modes that the block gave them: a copy of a private file stays private.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if not shared:
        private(partial)
    try:
        yield partial
        if not shared:
            level(partial)
        for file in partial.rglob("*"):
            if file.is_file() and not file.is_symlink():
                sync(file)
        sync(partial)
        old = path.with_name(f"{path.name}.old.{os.getpid()}{PARTIAL}")
        if path.exists():
            path.replace(old)  # renamed, not removed: a kill between the two must not cost both
        try:
            partial.replace(path)
        except OSError:
            with suppress(OSError):  # there is none, or nothing can be renamed any more
                old.replace(path)
            raise
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder that is being made: another process would make the same. One that dies gives it back."""
    import fcntl

    with path.with_name(f".{path.name}.lock").open("w") as lock:
        # A file system without locks: what two have made in one place is noticed by whoever reads it.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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


def write_bytes(path: Path, content: bytes, shared: bool = False) -> None:
    """Write `content` to `path`, whole or not at all."""
    with whole_file(path, shared) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str, shared: bool = False) -> None:
    """Write `text` as UTF-8 with LF line ends, whole or not at all."""
    write_bytes(path, text.encode("utf-8"), shared)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN and infinity are refused: they are not JSON."""
    write_text(path, privacy.as_json(value, indent=2) + "\n")


def open_private(path: Path, flags: int) -> int:
    """A descriptor of a file that is its owner's alone; made where it is not there. `flags`: those of os.open."""
    handle = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, OWNER)
    # One from before, or a umask that leaves the owner less. A file system without modes refuses.
    if stat.S_IMODE(os.fstat(handle).st_mode) != OWNER and path != Path(os.devnull):
        with suppress(OSError):
            os.fchmod(handle, OWNER)
    return handle


def private_folder(path: Path) -> None:
    """Make a folder that is its owner's alone, or make an older one that."""
    path.mkdir(parents=True, exist_ok=True)
    private(path)


def private(path: Path) -> None:
    """Let a file or folder be its owner's alone."""
    change_mode(path, OWNERS_FOLDER if path.is_dir() else OWNER)


def change_mode(path: Path, mode: int) -> None:
    """Give a file or folder a mode, where it has another; somebody else's, or a file system without modes, is left alone."""
    if stat.S_IMODE(path.stat().st_mode) != mode:
        with suppress(OSError):
            path.chmod(mode)


def level(folder: Path) -> None:
    """Let all in a folder be as open as the folder itself is: libraries give the files that they write other modes."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    for file in folder.rglob("*"):
        if not file.is_symlink():
            change_mode(file, mode if file.is_dir() else mode & 0o666)


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


def remove(path: Path) -> None:
    """Remove a file that is of no use any more; one that cannot be removed is left, and spoils nothing that is done."""
    with suppress(OSError):
        path.unlink()


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left half-written under a folder that nobody else is writing to."""
    for leftover in [*folder.glob(f"*{PARTIAL}"), *folder.glob(f"*/*{PARTIAL}")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            remove(leftover)


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
