"""The events of a run as server-sent events. The id of each is the place in events.jsonl behind it: a client whose line
broke names the last one it has (Last-Event-ID), and gets the next.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from training import runs
from training.errors import UserError
from training.service.jobs import ACTIVE, Jobs
from training.system import events, foreign_json, privacy
from training.system.foreign_json import Damaged

EVERY = 0.5  # seconds between two looks
BEAT = 15.0  # seconds after which a line without a meaning shows both ends that the other is there
BLOCK = 1 << 18  # bytes that are read at once


def place(last: str | None, size: int) -> int:
    """Where a client goes on: behind the event that it names. What names no place in the file is the beginning."""
    if last is None or not last.isascii() or not last.isdigit() or len(last) > 18:
        return 0
    return int(last) if int(last) <= size else 0


def sent(event: str, data: object, number: int | None = None) -> str:
    """One event as the protocol has it."""
    head = f"id: {number}\n" if number is not None else ""
    return f"{head}event: {event}\ndata: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


def lines(path: Path | None, start: int) -> list[tuple[int, dict[str, Any]]]:
    """The events from a place on, each with the place behind it; a line that is being written is left for later."""
    found: list[tuple[int, dict[str, Any]]] = []
    if path is None:
        return found
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(BLOCK)
            if not content.endswith(b"\n") and b"\n" not in content:
                content += file.readline(events.MOST_LINE)
    except OSError:
        return found
    at = start
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        at += len(line)
        try:
            found.append((at, foreign_json.parse(line, runs.EVENTS, events.KINDS)))
        except Damaged:
            found.append((at, {}))
    return found


async def stream(jobs: Jobs, name: str, start: int) -> AsyncIterator[str]:
    """A run's events from a place on, and its status whenever that changes, until the run has ended and all was sent."""
    folder, told, quiet = jobs.find(name).path, "", 0.0
    yield "retry: 2000\n\n"
    while True:
        try:
            described = await asyncio.to_thread(lambda: jobs.described(jobs.find(name)))
        except (UserError, OSError):  # it was removed
            return
        ended, path = described["status"] not in ACTIVE, jobs.file(folder, runs.EVENTS)
        while found := await asyncio.to_thread(lines, path, start):
            for start, event in found:
                if event:
                    yield sent(str(event.get("event")), privacy.hidden(event), start)
            quiet = 0.0
        if described["status"] != told:
            told = described["status"]
            yield sent("status", described)
            quiet = 0.0
        if ended:
            return
        await asyncio.sleep(EVERY)
        quiet += EVERY
        if quiet >= BEAT:
            quiet = 0.0
            yield ": still here\n\n"
