"""The rows of a CSV file with a header, whose names are the fields."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from training.data import columns, raw_lines, tables
from training.data.opening import DAMAGE
from training.data.raw_lines import TOO_LONG, numbered
from training.data.record import BadRow, Record

DELIMITERS = ",;\t|"
UNCLOSED = "unexpected end of data"  # in the error of Python's reader
EXCEL = re.compile(r"sep=(.)\Z")  # the first line with which Excel is told the delimiter
ESCAPED = '\\"'
TABLE = "of a table in a TXT file"
MOST_ABOVE = 5  # lines above a header
MARKDOWN = "of a table as Markdown has it"
RULE = re.compile(r":?-+:?")  # the cells of the line between its header and its rows
BLANKS = "of a table with blanks in front of quotation marks, which are left out"


def is_header(line: str, between: str = "") -> bool:
    """Whether a line names columns that are known here. between: the only delimiter that counts, where there is one."""
    delimiter = between or _delimiter(line)
    names = tuple(name.strip(' "') for name in line.rstrip("\r").split(delimiter))
    return delimiter in line and columns.are_known(names)


def is_markdown(text: str) -> bool:
    """Whether a text begins with a table of Markdown whose columns have names that are known here."""
    first, _, rest = text.lstrip().partition("\n")
    second = rest.partition("\n")[0]
    return _is_rule(second) and is_header(first.strip().strip("|"), "|")


def _is_rule(line: str) -> bool:
    bare = line.strip()
    return "|" in bare and all(RULE.fullmatch(cell.strip()) for cell in bare.strip("|").split("|"))


def _above(sample: str) -> int:
    """How many lines of a title, a comment or nothing stand above the header."""
    lines = re.split(r"\r\n|\n|\r", sample, maxsplit=MOST_ABOVE + 1)[: MOST_ABOVE + 1]
    if EXCEL.match(lines[0]) or columns.are_known((lines[0].strip(' "'),)):
        return 0
    for number, line in enumerate(lines):
        delimiter = _delimiter(line)
        if is_header(line):
            above = [one for one in lines[:number] if not one.startswith("#")]
            return (
                number if all(sum(bool(cell.strip(' "')) for cell in one.split(delimiter)) < 2 for one in above) else 0
            )
    return 0


def rows(file: io.BufferedIOBase, path: Path) -> Iterator[Record | BadRow]:
    """Each row by the names in the header. The delimiter is the one of DELIMITERS that the header holds most often."""
    csv.field_size_limit(raw_lines.MAX_ROW_BYTES)
    sample = _sample(file)
    bad_lines: list[BadRow] = []
    last = [""]
    lines = _lines(file, path, bad_lines, last, "\n" not in sample and "\r" in sample)
    before = _above(sample)
    titled = (tables.TITLED,) if before else ()
    for _ in range(before):
        next(lines, "")
    first = next(lines, "")
    if told := EXCEL.match(first.rstrip("\r\n")):
        delimiter, first, before = told[1], next(lines, ""), 1
    else:
        delimiter = _delimiter(first)
    if delimiter == "|":
        second = next(lines, "")
        if _is_rule(second):
            yield from _markdown(chain([first], lines), path, before, (*titled, MARKDOWN))
            yield from bad_lines
            return
        lines = chain([second], lines)
    blanks = _has_blanks(sample, delimiter)
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True, skipinitialspace=blanks)
    names: list[str] | None = None
    said = (*titled, *((BLANKS,) if blanks else ()), *((TABLE,) if ".txt" in path.suffixes else ()))
    behind: tuple[str, ...] = ()
    while True:
        line = before + reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            yield _bad(error, path, line, last[0])
            if UNCLOSED in str(error):
                return
            continue
        if bad_lines:
            yield bad_lines[0]
            return
        if values is None:
            return
        if not any(values):  # an empty line, or a row of empty cells as Excel writes it
            behind = (tables.EMPTY,) if values else behind
            continue
        if names is None:
            names = tables.header(values, f"{path}:{line}")
        else:
            yield _row(names, values, path, line, (*said, *behind))
            behind = ()


def _markdown(lines: Iterable[str], path: Path, before: int, said: tuple[str, ...]) -> Iterator[Record | BadRow]:
    """The rows of a table in Markdown: with blanks around what cells hold, and a | within one behind a backslash. `lines`:
    the header, and what comes after the line below it; `before`: lines above."""
    names: list[str] | None = None
    for number, text in enumerate(lines, 1):
        bare = text.strip()
        if not bare:
            continue
        line = before + number + (names is not None)
        bare = bare.removeprefix("|")
        bare = bare[:-1] if bare.endswith("|") and not bare.endswith("\\|") else bare
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", bare)]
        if names is None:
            names = tables.header(cells, f"{path}:{line}")
        elif any(cells):
            yield _row(names, cells, path, line, said)


def _row(names: list[str], values: list[str], path: Path, line: int, said: tuple[str, ...]) -> Record | BadRow:
    if len(values) == len(names) and all(names):
        return Record(line, dict(zip(names, values, strict=True)), said)
    fields, extra = tables.named(names, values)
    if len(values) < len(names) or (extra and len(values) > len(names)):
        unnamed = "; the first line must name the columns" if len(names) == 1 else ""
        return BadRow(str(path), line, f"{len(values)} in the row, {len(names)} fields in the header{unnamed}")
    if extra:
        return BadRow(str(path), line, "holds a value in a column without a name")
    return Record(line, fields, said)


def _delimiter(first: str) -> str:
    return max(DELIMITERS, key=first.count)


def _sample(file: io.BufferedIOBase) -> str:
    start = file.tell()
    try:
        head = file.read(raw_lines.CHUNK)
    except DAMAGE:  # told when it is read
        head = b""
    file.seek(start)
    return head.decode("utf-8", "replace")


def _has_blanks(sample: str, delimiter: str) -> bool:
    """Whether blanks stand between delimiters and quotation marks: more rows have as many cells as the header without."""
    if not re.search(re.escape(delimiter) + ' +"', sample):
        return False
    lines = sample.splitlines(keepends=True)
    lines = lines[:-1] if len(lines) > 1 and len(sample.encode()) >= raw_lines.CHUNK else lines
    return _whole_rows(lines, delimiter, True) > _whole_rows(lines, delimiter, False)


def _whole_rows(lines: Iterable[str], delimiter: str, blanks: bool) -> int:
    """How many rows have as many cells as the header, less those that have not."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=blanks)
    sizes: list[int] = []
    while True:
        try:
            values = next(reader, None)
        except csv.Error:
            sizes.append(-1)
            continue
        if values is None:
            break
        sizes += [len(values)] if values else []
    return sum(1 if size == sizes[0] else -1 for size in sizes)


def _lines(
    file: io.BufferedIOBase, path: Path, bad: list[BadRow], last: list[str], returns: bool = False
) -> Iterator[str]:
    """Lines as text, the last of them also in `last`; an opened file is UTF-8, unless it is damaged or was changed since.

    returns: they end in CR alone, as Excel's "CSV (Macintosh)" has it.
    """
    for item in numbered(file, path):
        if isinstance(item, BadRow):  # a row may go over several lines, so the reader has lost its place
            bad.append(BadRow(item.file, item.line, item.reason, fatal=True))
            return
        for line in item[1].split(b"\r") if returns else (item[1],):
            last[0] = line.decode("utf-8", "surrogateescape") + "\n"
            yield last[0]


def _bad(error: csv.Error, path: Path, line: int, text: str) -> BadRow:
    if UNCLOSED in str(error):
        return BadRow(str(path), line, "not CSV: a quotation mark is opened here and never closed", fatal=True)
    if "field larger" in str(error):
        return BadRow(str(path), line, f"{TOO_LONG}: is a quotation mark not closed?")
    escaped = '; a quotation mark within quotes is written twice in CSV ("") and not with a backslash (\\")'
    return BadRow(str(path), line, f"not CSV: {error}{escaped if ESCAPED in text else ''}")
