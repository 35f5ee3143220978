"""Files that are one JSON list of rows, read without holding more than one row."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from training.data import raw_lines
from training.data.json_lines import is_message, parse
from training.data.json_shapes import Shape
from training.data.opening import DAMAGE, damaged
from training.data.raw_lines import TOO_LONG
from training.data.record import BadRow, Record

# A string with its closing mark, where it is whole, or one of the other marks. The closing mark may be missing, so that
# each attempt matches: to insist on it would backtrack.
MOST_MESSAGES = 10_000  # of a file that is one conversation
NOT_CLOSED = "the list is not closed: ] is missing"
TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("?)|[\[\]{},]', re.DOTALL)


class JsonList:
    """Cuts a list into its rows by counting brackets outside of strings; each row is then parsed by itself.

    So a row that is not JSON is named by its line, and the next one is read all the same.
    """

    def __init__(self, file: io.BufferedIOBase, path: Path, shape: Shape) -> None:
        self._file, self._path, self._wrapper = file, path, shape.wrapper
        self._buffer = file.read(raw_lines.CHUNK)
        # Where the next row begins in the buffer, and on which line; and how far the buffer is looked through.
        self._start = self._position = shape.begin + (shape.kind == "list")
        self._line = 1 + self._buffer.count(b"\n", 0, self._start)
        self._depth = 0  # of open brackets within the row
        self._closed = False
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
            return self._broken(NOT_CLOSED)
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
                if not depth:
                    yield from self._after_value(token.end())
            elif not depth:
                yield from self._between(token.start(), token.end())
                if self._closed:
                    return
        self._depth, self._position = depth, len(self._buffer)

    def _after_value(self, end: int) -> Iterator[Record | BadRow]:
        """A value ends there. In [ ] its row ends with the comma or bracket behind it."""
        return iter(())

    def _between(self, start: int, end: int) -> Iterator[Record | BadRow]:
        """A mark of JSON that stands between values."""
        mark = self._buffer[start:end]
        if mark in (b",", b"]"):
            self._closed = mark == b"]"
            yield from self._row(start, end)

    def _row(self, end: int, next_start: int) -> Iterator[Record | BadRow]:
        """The row up to `end` in the buffer. In [ ] there is none."""
        row = self._buffer[self._start : end]
        line = self._place(_first_line(row, self._line))
        if len(row) > raw_lines.MAX_ROW_BYTES:
            yield BadRow(str(self._path), line, TOO_LONG)
        elif row.strip():
            yield self._parsed(row.strip(), line)
        elif not self._closed:  # one comma behind the last row is what many programs write
            yield BadRow(str(self._path), line, "not JSON: a comma without a row")
        self._line += self._buffer.count(b"\n", self._start, next_start)
        self._start = next_start
        self._row_number += self._row_number > 0

    def _parsed(self, row: bytes, line: int) -> Record | BadRow:
        found = parse(row, self._path, line)
        if self._wrapper and isinstance(found, Record):
            return replace(found, read_as=(*found.read_as, f"that stand in a list named {self._wrapper}"))
        return found

    def _rest(self) -> Iterator[BadRow]:
        """Nothing but white space may follow the list; behind one in an object, what the object holds besides."""
        rest = self._buffer[self._start :]
        if self._wrapper:
            yield from self._rest_of_object(rest)
            return
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

    def _rest_of_object(self, rest: bytes) -> Iterator[BadRow]:
        try:
            rest += self._file.read(raw_lines.MAX_ROW_BYTES)
            held = json.loads(b'{"":0' + rest)
        except DAMAGE as error:
            yield BadRow(str(self._path), self._place(self._line), damaged(error), fatal=True)
            return
        except (ValueError, RecursionError):
            yield self._broken(f"not JSON: text after the end of the list {self._wrapper}")
            return
        others = [name for name, value in held.items() if isinstance(value, (list, dict)) and value and name]
        if lists := [name for name in others if isinstance(held[name], list) and isinstance(held[name][0], dict)]:
            yield self._broken(
                f"the object holds several lists of rows, {', '.join([self._wrapper, *lists])}: write each into a file of its own"
            )

    def _broken(self, reason: str) -> BadRow:
        return BadRow(str(self._path), self._place(_first_line(self._buffer, self._line)), reason, fatal=True)

    def _place(self, line: int) -> int:
        """What a row on this line has as its Record's `line`."""
        return -self._row_number if self._row_number else line


class JsonObjects(JsonList):
    """Cuts objects that stand one after the other, each over any number of lines, with or without commas between them."""

    def _after_value(self, end: int) -> Iterator[Record | BadRow]:
        yield from self._row(end, end)

    def _between(self, start: int, end: int) -> Iterator[Record | BadRow]:
        if self._buffer[start:end] == b"," and not self._buffer[self._start : start].strip():
            self._line += self._buffer.count(b"\n", self._start, end)
            self._start = end
        return iter(())

    def fill(self) -> BadRow | None:
        """Read on; at the end of the file nothing may be left over."""
        found = super().fill()
        if found is not None and found.reason == NOT_CLOSED:
            self._closed = True
            return (
                None if not self._buffer.strip() else self._broken("not JSON: the object is not closed: } is missing")
            )
        return found


def conversation(found: Iterator[Record | BadRow], path: Path) -> Iterator[Record | BadRow]:
    """The rows of a list; a list of messages is one row."""
    first = next(found, None)
    if first is None or isinstance(first, BadRow) or not is_message(first.fields):
        yield from chain([first] if first is not None else [], found)
        return
    messages: list[object] = []
    for one in chain([first], found):
        if isinstance(one, BadRow):
            yield one
            return
        messages.append(one.fields)
        if len(messages) > MOST_MESSAGES:
            yield BadRow(
                str(path), first.line, f"a list of messages is one row, and has {MOST_MESSAGES:,} at most", fatal=True
            )
            return
    yield Record(first.line, {"messages": messages}, ("that are a bare list of messages",))


def _first_line(text: bytes, line: int) -> int:
    """The line of the first character of `text` that is not white space, when `text` begins on `line`."""
    return line + text.count(b"\n", 0, len(text) - len(text.lstrip()))
