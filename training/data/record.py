"""What reading a data file gives, row by row: the fields of a row, or why there are none."""

from __future__ import annotations

from dataclasses import dataclass

from training.system.wording import shorten


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be trained on. `fatal`: what follows it in the file cannot be read either, so it is never skipped."""

    file: str
    line: int
    reason: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Record:
    """The fields of one row as the file has them, and the line it starts on."""

    line: int
    fields: dict[str, object]


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
