"""The rows of a CSV file with a header, whose names are the fields."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from training.data import raw_lines
from training.data.raw_lines import TOO_LONG, numbered
from training.data.record import BadRow, Record
from training.errors import UserError

DELIMITERS = ",;\t"
UNCLOSED = "unexpected end of data"  # in the error of Python's reader


def rows(file: io.BufferedIOBase, path: Path) -> Iterator[Record | BadRow]:
    """Each row by the names in the header. The delimiter is the one of DELIMITERS that the header holds most often."""
    csv.field_size_limit(raw_lines.MAX_ROW_BYTES)
    bad_lines: list[BadRow] = []
    lines = _lines(file, path, bad_lines)
    first = next(lines, "")
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            yield _bad(error, path, line)
            if UNCLOSED in str(error):
                return
            continue
        if bad_lines:
            yield bad_lines[0]
            return
        if values is None:
            return
        if not values:
            continue
        if header is None:
            header = _header(values, path, line)
        elif len(values) != len(header):
            yield BadRow(str(path), line, f"{len(values)} in the row, {len(header)} fields in the header")
        else:
            yield Record(line, dict(zip(header, values, strict=True)))


def _header(values: list[str], path: Path, line: int) -> list[str]:
    names = [name.strip() for name in values]
    if len(set(names)) != len(names):
        raise UserError(f"{path}:{line}: a column name stands twice in the header: {', '.join(names)}")
    return names


def _lines(file: io.BufferedIOBase, path: Path, bad: list[BadRow]) -> Iterator[str]:
    """Lines as text; an opened file is UTF-8, unless it is damaged or was changed since."""
    for item in numbered(file, path):
        if isinstance(item, BadRow):  # a row may go over several lines, so the reader has lost its place
            bad.append(BadRow(item.file, item.line, item.reason, fatal=True))
            return
        yield item[1].decode("utf-8", "surrogateescape") + "\n"


def _bad(error: csv.Error, path: Path, line: int) -> BadRow:
    if UNCLOSED in str(error):
        return BadRow(str(path), line, "not CSV: a quotation mark is opened here and never closed", fatal=True)
    if "field larger" in str(error):
        return BadRow(str(path), line, f"{TOO_LONG}: is a quotation mark not closed?")
    return BadRow(str(path), line, f"not CSV: {error}")
