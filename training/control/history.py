"""--history: all runs of OUTPUT_DIR, and how long each has worked."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import IO, Any

from training import runs
from training.control.resume import output_dir
from training.runs import Run, directory, working_time
from training.runs.working_time import WorkingTime
from training.settings.command_line import Arguments
from training.system import events, log
from training.system.wording import clock, columns

HEADINGS = ("run", "state", "started", "worked", "loss", "validation", "model")


def history(arguments: Arguments, stdout: IO[str]) -> int:
    """All runs of OUTPUT_DIR, oldest first."""
    rows = [_described(run) for run in runs.history(output_dir(arguments))]
    if arguments.json:
        log.say_json(stdout, rows)
        return 0
    if not rows:
        log.say(stdout, f"no runs under {output_dir(arguments)}")
        return 0
    for line in _table([HEADINGS, *map(_shown, rows)]):
        log.say(stdout, line)
    return 0


def _table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows of texts under each other."""
    rows = list(rows)
    widths = [max(columns(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = (cell + " " * (width - columns(cell)) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(padded).rstrip())
    return lines


def _shown(row: Mapping[str, Any]) -> tuple[str, ...]:
    sessions = f" in {row['sessions']} sessions" if row["sessions"] > 1 else ""
    return (
        row["run"],
        row["state"],
        datetime.fromtimestamp(row["started"]).strftime("%Y-%m-%d %H:%M") if row["started"] else "not started",
        "-" if row["seconds"] is None else clock(row["seconds"]) + sessions,
        "-" if row["loss"] is None else f"{row['loss']:.4f}",
        "-" if row["validation_loss"] is None else f"{row['validation_loss']:.4f}",
        row["model"],
    )


def _described(run: Run) -> dict[str, Any]:
    from training.report import curves

    loss = validation = None
    told = list(events.read(run.path / runs.EVENTS))
    for event in told:
        if event.get("event") == "step":
            loss = curves.finite(event.get("loss"))
        elif event.get("event") == "evaluation":
            validation = curves.finite(event.get("loss"))
    time_worked = _worked(run, told)
    return {
        "run": run.path.name,
        "state": directory.state(run),
        "progress": run.status.get("progress", 0),
        "started": run.status.get("started"),
        "seconds": round(time_worked.seconds, 1) if time_worked else None,
        "sessions": len(time_worked.sessions) if time_worked else 0,
        "loss": loss,
        "validation_loss": validation,
        "model": run.status.get("model", ""),
    }


def worked(run: Run) -> WorkingTime | None:
    """The working time of a run; None of one that has not begun."""
    return _worked(run, events.read(run.path / runs.EVENTS))


def _worked(run: Run, told: Iterable[Mapping[str, object]]) -> WorkingTime | None:
    now = time.time() if directory.state(run) == "running" else None
    found = working_time.working_time(told, directory.seconds_of_stages(run), now)
    return found if found.sessions else None
