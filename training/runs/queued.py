"""Runs that wait to be started: put into the queue, and taken out of it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from training.errors import MachineError, UserError
from training.runs import directory
from training.runs.directory import CONFIG, STATUS, Run
from training.system import files

NEVER_STARTED = "stopped before it began"


def put(output_dir: Path, config: str, **known: object) -> Run:
    """A new run that waits to be started, by `./run.sh --resume`: its settings are the text `config`.

    Its directory is all that is known of it, so that it outlives whoever made it. Where the disk does not take all of it,
    nothing is left: half of it would count as a run at work. Raises OSError or MachineError.
    """
    run = directory.create(output_dir)
    whole = False
    try:
        files.write_text(run.path / CONFIG, config)
        whole = run.update(pid=None, pid_started=None, queued=round(time.time(), 3), **known)
    finally:
        directory.unlock(run)
        if not whole:
            shutil.rmtree(run.path, ignore_errors=True)
            _point_at_newest(output_dir)
    if not whole:
        raise MachineError(f"{run.path / STATUS} cannot be written, and the run was not queued; the log says why")
    return run


def _point_at_newest(output_dir: Path) -> None:
    """Let `latest` name the newest run that is left, once the one that it named was taken away."""
    for newest in directory.history(output_dir)[-1:]:
        directory.point_latest(newest.path)
        return
    if (output_dir / "latest").is_symlink():
        files.remove(output_dir / "latest")


def cancel(run: Run) -> None:
    """Take a run that waits out of the queue. UserError where somebody has just started it."""
    directory.lock(run)
    try:
        run.reload()
        if not directory.waiting(run):
            raise UserError(f"{run.path} has just been started")
        run.update(state="interrupted", error=NEVER_STARTED)
    finally:
        directory.unlock(run)
