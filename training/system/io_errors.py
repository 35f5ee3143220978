"""A read or a write that the system refused, in words: the file, what happened, and what would do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

from training.system.wording import first_line

# What would do. Of other numbers the system's own words are told alone.
REMEDIES = {
    errno.EIO: "the drive, or the network that it hangs on, fails: `dmesg` tells more",
    errno.EDQUOT: "your quota is used up: make room first",
    errno.EROFS: "it can only be read: a drive that fails is made so by the system, `dmesg` tells more",
    errno.ENOENT: "another program has removed it",
    errno.ESTALE: "the network drive has forgotten it: mount it again",
    errno.EACCES: "give yourself the right to it",
    errno.EPERM: "give yourself the right to it",
    errno.EMFILE: "raise the limit of open files: `ulimit -n 4096`",
    errno.EFBIG: "raise the limit of a file's size: `ulimit -f unlimited`",
}
# What libraries say of it when they do not say it with an OSError: safetensors and tokenizers (Rust), torch.
_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]|unable to .*file <.*>.*: .* \((\d+)\)")
_WRITE_FAILED = ("file write failed", "unexpected pos", "PytorchStreamWriter failed")
_READ_FAILED = ("file read failed",)

# What a drive or a network drive says of itself, never of a file that a user has left out or spoiled.
_OF_DRIVES = (errno.EIO, errno.EDQUOT, errno.EROFS, errno.ESTALE)
# Its words, by which C++ says it. A program that was started ends its traceback with them, and with the file where a call
# was given a name: a read or a write was not.
_SAID = {os.strerror(code): code for code in _OF_DRIVES}
_QUOTED = re.compile(rf"({'|'.join(map(re.escape, _SAID))})(?:: '([^']+)')?")

# OSErrors that are about no file.
_OF_PROCESSES = (ConnectionError, BrokenPipeError, ChildProcessError, ProcessLookupError, BlockingIOError)


def number(error: BaseException) -> int | None:
    """The errno of a read or write that failed, as far as it can be known; None of anything else."""
    if isinstance(error, OSError):
        return error.errno
    if (found := _NUMBER.search(str(error))) and (code := int(found[1] or found[2] or found[3])) in (
        *REMEDIES,
        errno.ENOSPC,
    ):
        return code
    if found := _QUOTED.search(str(error)):
        return _SAID[found[1]]
    return errno.ENOSPC if "No space left" in str(error) else None


def is_one(error: BaseException) -> bool:
    """Whether an error is a read or write that the system refused, and no mistake of ours or a library's."""
    if isinstance(error, _OF_PROCESSES):
        return False
    return number(error) is not None or any(words in str(error) for words in (*_WRITE_FAILED, *_READ_FAILED))


def may_be_full(error: BaseException) -> bool:
    """Whether a disk without room is the reason, for all that is known: torch says that a write failed, and not why."""
    return number(error) == errno.ENOSPC or any(words in str(error) for words in _WRITE_FAILED)


def behind(error: BaseException) -> BaseException | None:
    """The failure of a drive that an error came of, whatever was made of it: a file that cannot be read is a damaged
    model to whoever reads models."""
    found: BaseException | None = error
    while found is not None:
        if is_one(found) and number(found) in _OF_DRIVES:
            return found
        found = found.__cause__ or found.__context__
    return None


def instead(message: str, error: BaseException) -> str:
    """The message of an error; that of the drive behind it where there is one, which the reader did not know."""
    refused = behind(error)
    remedy = REMEDIES.get(number(refused) or 0, "") if refused else ""
    if not refused or remedy in message:
        return message
    named = isinstance(refused, OSError) and refused.filename is not None
    return told(refused) if named else f"{message}; {remedy}"


def quoted(lines: Sequence[str]) -> OSError | None:
    """The failure of a drive that a program which was started has died of, by what it printed last of it.

    Without a file where it named none.
    """
    for line in reversed(lines):
        if found := _QUOTED.search(line):
            return OSError(_SAID[found[1]], found[1], found[2])
    return None


def told(error: BaseException, beside: Path | None = None) -> str:
    """FILE: what happened; what would do. `beside`: a folder on the same disk, for an error that names no file."""
    code, name = number(error), getattr(error, "filename", None)
    path = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else beside
    if code == errno.ENOSPC:
        return _no_room(path)
    if code is None and any(words in str(error) for words in _READ_FAILED):
        return f"a file under {beside} could not be read ({first_line(error)}): {REMEDIES[errno.EIO]}"
    if code is None:
        return f"a file under {beside} could not be written ({first_line(error)}): look whether the disk is full"
    what = os.strerror(code) if isinstance(error, OSError) else first_line(error)
    words = f"{path}: {what}" if path else what
    return f"{words}; {REMEDIES[code]}" if code in REMEDIES else words


def out_of_inodes(folder: Path) -> bool:
    """Whether a file system has room for bytes, but for no more files."""
    found = os.statvfs(nearest(folder))
    return found.f_files > 0 and found.f_favail == 0


def nearest(path: Path) -> Path:
    """The path, or the first folder above it that is there."""
    return next(one for one in (path, *path.absolute().parents) if one.exists())


def _no_room(path: Path | None) -> str:
    if path is None:
        return "the disk is full: make room first"
    try:
        if out_of_inodes(path):
            return f"{path}: no more files fit on this disk (no inodes are left, `df -i`): remove files first"
        found = os.statvfs(nearest(path))
    except OSError:
        return f"{path}: the disk is full; make room first"
    return f"{path}: the disk is full, {found.f_bavail * found.f_frsize:,} bytes are free; make room first"
