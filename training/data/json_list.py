"""Files that are one JSON list of rows, read without holding more than one row."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

from training.data import raw_lines
from training.data.json_lines import parse
from training.data.opening import DAMAGE, damaged
from training.data.raw_lines import TOO_LONG
from training.data.record import BadRow, Record
from training.errors import UserError

# A string with its closing mark, where it is whole, or one of the other marks. The closing mark may be missing, so that
# each attempt matches: to insist on it would backtrack.
TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("?)|[\[\]{},]', re.DOTALL)


def is_list(file: io.BufferedIOBase, path: Path) -> bool:
    """Whether one list is to come, and no lines. Leaves the file where it stands. UserError where it can be neither."""
    start = file.tell()
    try:
        head = file.read(raw_lines.CHUNK).lstrip()
    except DAMAGE:
        head = b""
    file.seek(start)
    # By hand: a pattern with one kind of white space in two places looks at each byte as often as there are bytes.
    after = head[1:].lstrip()
    between = head[1 : len(head) - len(after)]
    if head.startswith(b"{") and after.startswith(b'"') and (b"\n" in between or b"\r" in between):
        raise UserError(
            f"{path}: begins with an object over several lines; rows are whole objects, one a line, or a list of them in [ ]"
        )
    return head.startswith(b"[") and not after.startswith(b"[") and not _is_line_of_list(head)


def _is_line_of_list(head: bytes) -> bool:
    """True when the first line is a complete list and further lines follow: JSON lines with a bad first row."""
    first, _, rest = head.strip().partition(b"\n")
    return first.rstrip().endswith(b"]") and rest.lstrip().startswith((b"{", b"["))


class JsonList:
    """Cuts a list into its rows by counting brackets outside of strings; each row is then parsed by itself.

    So a row that is not JSON is named by its line, and the next one is read all the same.
    """

    def __init__(self, file: io.BufferedIOBase, path: Path) -> None:
        self._file, self._path = file, path
        self._buffer = file.read(raw_lines.CHUNK)
        # Where the next row begins in the buffer, and on which line; and how far the buffer is looked through.
        self._start = self._position = self._buffer.index(b"[") + 1
        self._line = 1 + self._buffer.count(b"\n", 0, self._start)
        self._depth = 0  # of open brackets within the row
        self._first, self._closed = True, False
        # No line break as far as can be seen: rows are told by their numbers.
        self._row_number = 0 if b"\n" in self._buffer.strip() else 1

    def fill(self) -> BadRow | None:
        """Read on, and forget what stands before the row; why that is not possible, where it is not."""
        self._buffer, self._position, self._start = self._buffer[self._start :], self._position - self._start, 0
        if len(self._buffer) > raw_lines.MAX_ROW_BYTES:
            return self._broken(f"{TOO_LONG}; what follows it is not read")
        try:
            # As much again as there is: an endless string is scanned in linear time.
            more = self._file.read(max(raw_lines.CHUNK, len(self._buffer)))
        except DAMAGE as error:
            line = self._place(self._line + self._buffer.count(b"\n"))
            return BadRow(str(self._path), line, damaged(error), fatal=True)
        if not more:
            return self._broken("the list is not closed: ] is missing")
        self._buffer += more
        return None

    def values(self) -> Iterator[Record | BadRow]:
        """The rows in order."""
        while not self._closed:
            yield from self._in_buffer()
            if not self._closed and (broken := self.fill()):
                yield broken
                return
        yield from self._rest()

    def _in_buffer(self) -> Iterator[Record | BadRow]:
        """The rows that end in what is there of the file."""
        depth = self._depth
        for token in TOKEN.finditer(self._buffer, self._position):
            mark, closing = token.group(0, 1)
            if closing is not None:
                if not closing:  # the string is not whole yet
                    self._depth, self._position = depth, token.start()
                    return
            elif mark in b"{[":
                depth += 1
            elif depth and mark in b"}]":
                depth -= 1
            elif not depth and mark in b",]":
                self._closed = mark == b"]"
                yield from self._row(token.start(), token.end())
                if self._closed:
                    return
        self._depth, self._position = depth, len(self._buffer)

    def _row(self, end: int, next_start: int) -> Iterator[Record | BadRow]:
        """The row up to `end` in the buffer. In [ ] there is none."""
        row = self._buffer[self._start : end]
        line = self._place(_first_line(row, self._line))
        if len(row) > raw_lines.MAX_ROW_BYTES:
            yield BadRow(str(self._path), line, TOO_LONG)
        elif row.strip():
            yield parse(row.strip(), self._path, line)
        elif not (self._closed and self._first):
            yield BadRow(str(self._path), line, "not JSON: a comma without a row")
        self._line += self._buffer.count(b"\n", self._start, next_start)
        self._start, self._first = next_start, False
        self._row_number += self._row_number > 0

    def _rest(self) -> Iterator[BadRow]:
        """Nothing but white space may follow the list."""
        rest = self._buffer[self._start :]
        while True:
            if rest.strip():
                line = _first_line(rest, self._line)
                yield BadRow(str(self._path), line, "not JSON: text after the end of the list", fatal=True)
                return
            self._line += rest.count(b"\n")
            try:
                rest = self._file.read(raw_lines.CHUNK)
            except DAMAGE as error:
                yield BadRow(str(self._path), self._line, damaged(error), fatal=True)
                return
            if not rest:
                return

    def _broken(self, reason: str) -> BadRow:
        return BadRow(str(self._path), self._place(_first_line(self._buffer, self._line)), reason, fatal=True)

    def _place(self, line: int) -> int:
        """What a row on this line has as its Record's `line`."""
        return -self._row_number if self._row_number else line


def _first_line(text: bytes, line: int) -> int:
    """The line of the first character of `text` that is not white space, when `text` begins on `line`."""
    return line + text.count(b"\n", 0, len(text) - len(text.lstrip()))
