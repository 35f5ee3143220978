"""What reading a data file gives, row by row: the fields of a row, or why there are none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.system.wording import shorten

SHOWN = 5  # rows that a message names of each kind


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be trained on. `fatal`: what follows it in the file cannot be read either, so it is never skipped."""

    file: str
    line: int
    reason: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{place(self.file, self.line)}: {self.reason}"


@dataclass(frozen=True)
class Record:
    """The fields of one row as the file has them, and the line it starts on.

    In a list that stands on one line, each row would be on line 1: there, here and in all that is made of it, `line` is
    the row's number, negative, for `place` to tell. `read_as`: what its file's reader has to say of how it was found.
    """

    line: int
    fields: dict[str, object]
    read_as: tuple[str, ...] = ()


def place(file: str | Path, line: int) -> str:
    """Where a row stands, for a message: `a.json:3`, or `a.json, row 3` where the file has one line."""
    return f"{file}:{line}" if line >= 0 else f"{file}, row {-line}"


def places(lines: Sequence[int], count: int) -> str:
    """`lines 4, 9 and 5 more`, or rows by their numbers. `lines`: those of the first of `count` rows."""
    more = f" and {count - len(lines):,} more" if count > len(lines) else ""
    return f"{'lines' if lines[0] >= 0 else 'rows'} {', '.join(str(abs(line)) for line in lines)}{more}"


def grouped(bad: Iterable[BadRow], most: int) -> list[str]:
    """A line for each of the first `most` reasons: its first row, and how many more have it; then a count of the rest.

    Reasons that differ in a number or in a word that is quoted from the row are one.
    """
    found: dict[tuple[str, str], list[BadRow]] = {}
    for one in bad:
        found.setdefault((one.file, re.sub(r"\d[\d,.]*|'[^']*'|0x[0-9a-f]+", "#", one.reason)), []).append(one)
    told = []
    for rows in list(found.values())[:most]:
        lines = list(dict.fromkeys(row.line for row in rows))[:SHOWN]
        also = f"; {len(rows):,} such rows: {places(lines, len(rows))}" if len(rows) > 1 else ""
        told.append(f"{rows[0]}{also}")
    left = sum(map(len, list(found.values())[most:]))
    return told + ([f"and {left:,} more"] if left else [])


def describe(value: object) -> str:
    """What a JSON value is, for a message: `a number (4)`, `null`, `a list`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        try:
            return f"a number ({shorten(str(value))})"
        except ValueError:
            return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "an object"
