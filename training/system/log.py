"""What people read: plain lines on stderr, in `training/finetune.log`, and in the run's own finetune.log.

stdout belongs to programs (DESIGN 4): `claim_stdout` keeps it for the one line of result and sends whatever a library
prints there to stderr, also from C code and child processes.

Rows, names and answers of servers come from elsewhere: what is written here goes through `privacy.shown`.
"""

from __future__ import annotations

import fcntl
import functools
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from loguru import logger

from training.system import files, listeners, paths, privacy

if TYPE_CHECKING:
    from loguru import Record

SHARED_LOG = paths.SHARED_LOG
ROTATE_AT = 10 * 1024 * 1024  # bytes; the older half of two files is kept as finetune.log.1
FILE_FORMAT = "{time:YYYY-MM-DD HH:mm:ss} {level:<7} {message}"
RECORD = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8} ([A-Z]+) ")  # how each begins; its other lines do not


_early: list[str] = []  # lines from before the run had a directory


def start(run_log: Path | None = None, terminal: bool = True) -> None:
    """Send log lines to stderr, to the shared log and, when given, to the run's own log."""
    logger.remove()
    _early.clear()
    # diagnose: a traceback must not print the values of variables, for the data is private. catch: these sinks
    # handle what they cannot write; the Interrupted of a signal that arrives while one is at work must get through.
    add = functools.partial(logger.add, backtrace=False, diagnose=False, catch=False)
    if terminal:
        add(_to_terminal, format=_terminal_format, level="INFO")
    for path in filter(None, (SHARED_LOG, run_log)):
        sink = _LockedFile(path, rotate=path == SHARED_LOG)
        add(sink.write, format=FILE_FORMAT, level="DEBUG")
    if run_log is None:
        add(_early.append, format=FILE_FORMAT, level="DEBUG")


def join_run(run_log: Path) -> None:
    """From now on write the run's own log too, beginning with what was said before it had a directory."""
    early = "".join(_early)
    start(run_log)
    sink = _LockedFile(run_log, rotate=False)
    sink.write(early)


def for_people() -> Callable[[str], bool]:
    """Whether a line of a log is for people, asked line by line: tracebacks, and what else was kept for us, are not."""
    kept_for_us = False

    def is_one(line: str) -> bool:
        nonlocal kept_for_us
        if begun := RECORD.match(line):
            kept_for_us = begun[1] == "DEBUG"
        return not kept_for_us

    return is_one


def _terminal_format(record: Record) -> str:
    prefix = "" if record["level"].no <= 20 else record["level"].name.lower() + ": "
    return prefix.replace("{", "{{") + "{message}\n{exception}"


def _to_terminal(message: str) -> None:
    """Write above a running progress bar, if there is one. A closed terminal (SIGHUP, closed pipe) stops nothing."""
    message = privacy.shown(message)
    try:
        bars = sys.modules.get("tqdm")
        if bars is not None:
            bars.tqdm.write(message, file=sys.stderr, end="")
        else:
            sys.stderr.write(message)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError) as error:
        listeners.bear(sys.stderr, error)


class _LockedFile:
    """A log file that several processes append to and that one of them at a time may rotate.

    loguru's own rotation renames under the feet of a second process, which then writes into the renamed file; here
    each line is one append under a lock on the file that the name stands for now.
    """

    def __init__(self, path: Path, rotate: bool) -> None:
        self.path, self.rotate, self.failed = path, rotate, False

    def write(self, message: str) -> None:
        try:
            self._append(privacy.shown(message).encode("utf-8"))
        except OSError as error:
            # A full disk or a read-only folder must not stop a night of training.
            if not self.failed:
                self.failed = True
                _to_terminal(f"warning: cannot write {self.path}: {error.strerror}; the log goes on without it\n")

    def _append(self, line: bytes) -> None:
        while True:
            with os.fdopen(files.open_private(self.path, os.O_WRONLY | os.O_APPEND), "ab", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                try:
                    named = self.path.stat()
                except FileNotFoundError:
                    continue  # rotated between open and lock
                if named.st_ino != os.fstat(file.fileno()).st_ino:
                    continue
                if self.rotate and named.st_size > ROTATE_AT:
                    self.path.replace(self.path.with_name(self.path.name + ".1"))
                    continue
                files.append_whole(file.fileno(), line)
                return


def claim_stdout() -> IO[str]:
    """Return a stream on the real stdout and point descriptor 1 at stderr for everybody else.

    A host may start us with stdout closed: the result then goes nowhere and nothing fails.
    """
    for descriptor in (1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    real = os.dup(1)
    os.set_inheritable(real, False)
    sys.stdout.flush() if sys.stdout else None
    os.dup2(2, 1)
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), encoding="utf-8", errors="backslashreplace")
    sys.stdout = sys.stderr
    return os.fdopen(real, "w", encoding="utf-8", errors="surrogateescape")


def say(stream: IO[str], line: str) -> None:
    """Print a line of result for people."""
    say_line(stream, privacy.shown(line))


def say_path(stream: IO[str], path: Path) -> None:
    """Print the name of a file or folder that was asked for."""
    say_line(stream, privacy.path_for(stream, path))


def say_json(stream: IO[str], value: object) -> None:
    """Print a value as one line of JSON, without secrets."""
    say_line(stream, privacy.as_json(privacy.hidden(value)))


def say_line(stream: IO[str], line: str) -> None:
    """Print one line as it is; a reader that has gone away (closed pipe) is not our failure."""
    listeners.tell(stream, line + "\n")
