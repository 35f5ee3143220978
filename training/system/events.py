"""events.jsonl: one JSON object a line, for programs that follow a run. The schema is in examples/go-host/README.md, "Events".

Every line carries v (schema version), event and time (seconds since 1970). Names of events: started, environment,
dataset, model, step, evaluation, sample, checkpoint, warning, stage, done, failed, interrupted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from training.system import files, foreign_json, privacy
from training.system.foreign_json import COUNT, NUMBER, TEXT, Damaged
from training.system.wording import counted

VERSION = 1
MOST_LINE = 1 << 24  # bytes
MOST_LEFT = 1 << 24  # bytes that wait for a disk which takes nothing
# Of the fields of all events: what the commands and the report take for granted.
KINDS = {
    "event": TEXT,
    **dict.fromkeys(("step", "at_step", "total"), COUNT.or_none()),
    "time": NUMBER.or_none(),
}


class Events:
    """Appends events to a file and, with --events, to stdout. A line is one write: whole, or not there.

    What the disk does not take is written with the next event: the losses of a report come from there.
    """

    def __init__(self, path: Path, stdout: IO[str] | None = None) -> None:
        self.path, self.stdout = path, stdout
        self._left, self._looked = b"", False
        with suppress(OSError):  # tried again with the first event: a finished run must not fail over it
            self._look()

    def _look(self) -> None:
        """Once, see to it that the next line begins on a line of its own."""
        if not self._looked:
            _drop_torn_line(self.path)
            self._looked = True

    def emit(self, event: str, **fields: object) -> None:
        """Write one event."""
        line = as_line(event, **fields)
        self._left += (line + "\n").encode("utf-8", "replace")
        try:
            self._look()
            handle = files.open_private(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                files.append_whole(handle, self._left)
                self._left = b""
            finally:
                os.close(handle)
        except OSError:  # a full disk is reported by the stage that needs the space, not by its log
            self._left = self._left if len(self._left) < MOST_LEFT else b""
        if self.stdout is not None:
            from training.system import log

            log.say_line(self.stdout, line)


def as_line(event: str, **fields: object) -> str:
    """One event as JSON on one line, without secrets. Numbers that JSON does not know (NaN, infinity) become null."""
    record = {"v": VERSION, "event": event, "time": round(time.time(), 3), **fields}
    return privacy.as_json(privacy.hidden(record), default=str)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a run in order; a torn last line (the machine stopped while writing) is left out.

    So are lines that are no events; how many is said, with the first of them and what is wrong with it.
    """
    if not path.is_file():
        return
    first, count = "", 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MOST_LINE), b""), 1):
            try:
                yield foreign_json.parse(line, f"{path}:{number}", KINDS)
            except Damaged as damage:
                if line.endswith(b"\n"):
                    first, count = first or str(damage), count + 1
    if count:
        from loguru import logger

        others = f" (and {counted(count - 1, 'line')} more)" if count > 1 else ""
        logger.warning("{}{}; left out", first, others)


def _drop_torn_line(path: Path) -> None:
    if not path.is_file():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
