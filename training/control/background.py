"""A run that goes on when the terminal closes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from loguru import logger

from training.system import launchers, listeners, log, paths, privacy, shell

# Names the descriptor on which a detached run tells its parent that it has started.
PARENT = "FINETUNE_PARENT"
_kept = ""


def detach(argv: Sequence[str], stdout: IO[str]) -> int:
    """Start the run in a session of its own; print its directory once it has really started, or its error."""
    if (seat := launchers.seat()) is not None:
        words = (
            "each of its processes would start a run of its own; leave it out, and send the launcher to the background"
        )
        if seat.rank == 0:
            logger.error("--detach: this program was started by {}, and {}", seat.by, words)
        return 2
    rest = [word for word in argv if word.replace("_", "-") != "--detach"]
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as messages:
        child = subprocess.Popen(
            [sys.executable, str(paths.TRAINING / "finetune.py"), *rest],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            start_new_session=True,
            pass_fds=[writing],
            env={**os.environ, PARENT: str(writing)},
        )
        os.close(writing)
        logger.info(
            "process {} looks everything over first; the run's folder is printed once there is one. Ctrl-C gives up; "
            "a closed terminal does not", child.pid,
        )  # fmt: skip
        try:
            with os.fdopen(reading, encoding="utf-8") as pipe:
                path = pipe.readline().strip()
        except KeyboardInterrupt:
            # It came before the run has started. The child has a session of its own, and would go on.
            child.terminate()
            child.wait()
            return 130
        if path:
            log.say_path(stdout, Path(path))
            shows, ends = (shell.command("run.sh", flag, path) for flag in ("--follow", "--stop"))
            logger.info("running as process {}; {} shows it, {} ends it", child.pid, shows, ends)
            return 0
        code = child.wait()
        messages.seek(0)
        listeners.tell(sys.stderr, privacy.shown(messages.read().decode("utf-8", "replace")))
        return code


def serve(argv: Sequence[str]) -> int:
    """Become the server (./run.sh --serve). It is a program above this one, and holds nothing that trains."""
    os.execv(sys.executable, [sys.executable, str(paths.TRAINING / "service" / "server.py"), *argv])


def take_parent() -> None:
    """Keep to this process, of those that it starts, to tell a waiting parent."""
    global _kept
    _kept = os.environ.pop(PARENT, "")


def tell_parent(path: Path | None) -> None:
    """Tell a waiting parent the run directory (or, with None, that there will be none), once; then forget the terminal."""
    global _kept
    number, _kept = _pipe(_kept or os.environ.pop(PARENT, "")), ""
    if number is None:
        return
    with os.fdopen(number, "w", encoding="utf-8") as pipe:
        listeners.tell(pipe, f"{path or ''}\n")
    if path is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)  # the log files have everything
        os.close(null)


def _pipe(number: str) -> int | None:
    """The descriptor that a variable names, if it is a pipe: somebody else may use the same name for something else."""
    try:
        return int(number) if stat.S_ISFIFO(os.fstat(int(number)).st_mode) else None
    except (ValueError, OSError, OverflowError):
        return None
