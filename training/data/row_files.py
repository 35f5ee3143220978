"""Read the rows of a data file one by one, with the line each one starts on: JSONL, JSON list, CSV, TXT, each also gzipped.

Standard library only. Memory holds one row, however large the file is. What a row *means* is the business of `rows.py`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from training.errors import UserError
from training.system.wording import shorten

MAX_ROW_BYTES = 16 << 20  # a row of 16 MiB is some four million tokens: no model takes it, and it is a broken file
CHUNK = 1 << 16
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)  # what reading a gzip file that is cut short or changed raises
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")


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
    fields: dict[str, Any]


class _NotJSON(ValueError):
    """Valid for Python's JSON reader, but not for JSON (a key twice, NaN)."""


def records(path: Path, kind: str | None = None) -> Iterator[Record | BadRow]:
    """Yield every row of `path` in order, good or bad. Blank lines are no rows.

    `kind` is "json" (lines or a list), "csv" or "txt"; None takes it from the file's name.
    Raises UserError when the file as a whole is unfit: missing, a folder, not permitted, of an unknown kind, UTF-16.
    """
    kind = kind or kind_of(path)
    with opened(path) as file:
        yield from records_from(file, path, kind)


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """The file's bytes, unpacked; UserError for all that goes wrong with it as a whole, also while it is read."""
    try:
        with _open(path) as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def records_from(file: io.BufferedIOBase, path: Path, kind: str) -> Iterator[Record | BadRow]:
    """The rows of an `opened` file, as `records` gives them."""
    return {"json": _json, "csv": _csv, "txt": _txt}[kind](file, path)


def nothing(path: Path) -> str:
    """Why a file has no rows, good or bad."""
    return "there is nothing but a header, blank lines or [ ]" if path.stat().st_size else "the file is empty"


def position(file: Any) -> int:
    """How many bytes of the file on the disk have been read: of the packed ones, where it is gzip."""
    return file.fileobj.tell() if isinstance(file, gzip.GzipFile) else file.tell()


def is_lined(file: io.BufferedIOBase, path: Path, kind: str) -> bool:
    """Whether each line is a row, so that `blocks` and `records_in` serve."""
    return kind == "txt" or (kind == "json" and not _is_list(file, path))


def blocks(file: io.BufferedIOBase, path: Path, size: int) -> Iterator[tuple[bytes, int] | BadRow]:
    """The file as blocks of whole lines, of about `size` bytes, for `records_in`: (bytes, lines before it).

    Where a packed file is damaged, the last is a BadRow that says so.
    """
    before = 0
    damage: Exception | None = None
    while damage is None:
        block, damage = _as_far_as(file, size)
        try:
            rest = file.readline(MAX_ROW_BYTES + 1) if damage is None else b""
            block += rest
            while len(rest) > MAX_ROW_BYTES and not block.endswith(b"\n"):  # too long a row: its end is left out
                if not (more := file.readline(CHUNK)) or more.endswith(b"\n"):
                    block += b"\n"
        except DAMAGE as error:
            damage = error
        if damage is not None:
            block = block[: block.rfind(b"\n") + 1]
        elif not block:
            return
        yield block, before
        before += block.count(b"\n")
    yield BadRow(str(path), before + 1, _damaged(damage), fatal=True)


def _as_far_as(file: io.BufferedIOBase, size: int) -> tuple[bytes, Exception | None]:
    """The next `size` bytes, or as many as come before the end or a damage, which is not raised."""
    parts: list[bytes] = []
    try:
        while size > 0 and (part := file.read1(size)):
            parts.append(part)
            size -= len(part)
    except DAMAGE as error:
        return b"".join(parts), error
    return b"".join(parts), None


def records_in(block: bytes, kind: str, before: int, path: Path) -> Iterator[Record | BadRow]:
    """The rows of one of `blocks`, as `records` gives them."""
    return (_txt if kind == "txt" else _json_lines)(io.BytesIO(block), path, before)


def kind_of(path: Path) -> str:
    """ "json" (lines or a list: the content tells), "csv" or "txt", from the file's name."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of file {suffix!r}; known are {', '.join(SUFFIXES)}, each also with .gz")
    return {".csv": "csv", ".tsv": "csv", ".txt": "txt"}.get(suffix, "json")


def _open(path: Path) -> io.BufferedIOBase:
    """The file's bytes, unpacked when it is gzip (told by its first bytes, not by its name), after the BOM."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file")
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not a file")
    if not path.is_file():  # a pipe or a device could make us wait for ever
        raise UserError(f"{path}: is not an ordinary file")
    file = path.open("rb")
    head = file.read(HEAD)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        file.close()
        file = gzip.open(path, "rb")  # noqa: SIM115 (the caller closes it)
        head = _head_of_gzip(file)
    if problem := _unfit(head):
        file.close()
        raise UserError(f"{path}: {problem}")
    file.seek(3 if head.startswith(b"\xef\xbb\xbf") else 0)
    return file


HEAD = 256  # bytes by which a file that is no text at all is known
CONTAINERS = {  # first bytes -> what such a file is
    b"PK\x03\x04": "a ZIP archive (an .xlsx or .docx file is one, too)",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"7z\xbc\xaf": "a 7z archive",
    b"%PDF": "a PDF file",
    b"SQLite format 3": "an SQLite database",
    b"\xd0\xcf\x11\xe0": "an old Office file (.xls, .doc)",
}


def _unfit(head: bytes) -> str:
    """Why a file that begins like this holds no rows whatever follows, and what would do; "" for all others."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "is UTF-16; save it as UTF-8"
    for start, what in CONTAINERS.items():
        if head.startswith(start):
            return f"is {what}, not text; unpack it or save it as JSON lines or CSV (gzip is read as it is)"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself; git lfs pull fetches that"
    if re.match(rb"\s*<(!doctype|html)\b", head, re.IGNORECASE):
        return "is a web page, not rows: was it downloaded from the page that shows the file?"
    if len(head) >= 8 and abs(head[0::2].count(0) - head[1::2].count(0)) > 0.4 * len(head):
        return "is UTF-16 (every second byte is NUL); save it as UTF-8"
    return ""


def _head_of_gzip(file: gzip.GzipFile) -> bytes:
    try:
        head = file.read(HEAD)
        file.seek(0)
    except DAMAGE:
        file.seek(0)
        return b""  # reported with its line when it is read
    return head


def _lines(file: IO[bytes], path: Path, before: int = 0) -> Iterator[tuple[int, bytes] | BadRow]:
    """Number the lines from `before` + 1, without their ends. One longer than MAX_ROW_BYTES is a BadRow, and passed over."""
    number = before
    try:
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) <= MAX_ROW_BYTES:
                yield number, line.rstrip(b"\r\n")
                continue
            while line and not line.endswith(b"\n"):
                line = file.readline(CHUNK)
            yield BadRow(str(path), number, TOO_LONG)
    except DAMAGE as error:
        yield BadRow(str(path), number + 1, _damaged(error), fatal=True)


TOO_LONG = f"the row is longer than {MAX_ROW_BYTES >> 20} MiB"


def _damaged(error: Exception) -> str:
    return f"the gzip file is damaged or cut short here ({error})"


# JSON


def _json(file: io.BufferedIOBase, path: Path) -> Iterator[Record | BadRow]:
    """JSON lines, or one list: people give either name to either, so the first bytes decide."""
    yield from (_json_list if _is_list(file, path) else _json_lines)(file, path)


def _is_list(file: IO[bytes], path: Path) -> bool:
    """Whether one list is to come, and no lines. Leaves the file where it stands. UserError where it can be neither."""
    start = file.tell()
    try:
        head = file.read(CHUNK)
    except DAMAGE:
        head = b""
    file.seek(start)
    if re.match(rb'\s*\{\s*[\r\n]\s*"', head):
        raise UserError(
            f"{path}: begins with an object over several lines; rows are whole objects, one a line, or a list of them in [ ]"
        )
    return bool(re.match(rb"\s*\[\s*(\{|\]|$|//|[^\s\[])", head)) and not _is_line_of_list(head)


def _is_line_of_list(head: bytes) -> bool:
    """True when the first line is a complete list and further lines follow: JSON lines with a bad first row."""
    first, _, rest = head.strip().partition(b"\n")
    return first.rstrip().endswith(b"]") and rest.lstrip().startswith((b"{", b"["))


def _json_lines(file: IO[bytes], path: Path, before: int = 0) -> Iterator[Record | BadRow]:
    for item in _lines(file, path, before):
        if isinstance(item, BadRow):
            yield item
            continue
        line, raw = item
        if raw.strip():
            yield _parse(raw, path, line)


TOKEN = re.compile(rb'["\[\]{},]')
STRING = re.compile(
    rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL
)  # matches always: to ask for the closing mark here would backtrack


def _json_list(file: io.BufferedIOBase, path: Path) -> Iterator[Record | BadRow]:
    """Cut a JSON list into its rows by counting brackets outside of strings; each row is then parsed by itself.

    So a row that is not JSON is named by its line, and the next one is read all the same.
    """
    buffer = file.read(CHUNK)
    position = buffer.index(b"[") + 1
    line = 1 + buffer.count(b"\n", 0, position)  # of `start`
    start, depth, count = position, 0, 0
    while True:
        token = TOKEN.search(buffer, position)
        if token and token[0] == b'"':
            end = STRING.match(buffer, token.end()).end()
            if buffer[end : end + 1] == b'"':
                position = end + 1
                continue
        if token is None or token[0] == b'"':  # nothing more in here, or a string that is not whole yet
            position = token.start() if token else max(len(buffer), position)
            buffer, position, start = buffer[start:], position - start, 0
            if len(buffer) > MAX_ROW_BYTES:
                yield BadRow(
                    str(path), _first_line(buffer, line), f"{TOO_LONG}; what follows it is not read", fatal=True
                )
                return
            try:
                chunk = file.read(max(CHUNK, len(buffer)))  # doubling: an endless string is scanned in linear time
            except DAMAGE as error:
                yield BadRow(str(path), line + buffer.count(b"\n"), _damaged(error), fatal=True)
                return
            if not chunk:
                yield BadRow(str(path), _first_line(buffer, line), "the list is not closed: ] is missing", fatal=True)
                return
            buffer += chunk
            continue
        position = token.end()
        mark = token[0]
        if mark in (b"{", b"[") or (mark in (b"}", b"]") and depth):
            depth += 1 if mark in (b"{", b"[") else -1
        elif depth == 0 and mark in (b",", b"]"):
            row = buffer[start : token.start()]
            at = _first_line(row, line)
            if len(row) > MAX_ROW_BYTES:
                yield BadRow(str(path), at, TOO_LONG)
            elif row.strip():
                yield _parse(row.strip(), path, at)
            elif mark == b"," or count:
                yield BadRow(str(path), at, "not JSON: a comma without a row")
            count += 1
            line += buffer.count(b"\n", start, position)
            start = position
            if mark == b"]":
                yield from _after_list(buffer[start:], file, path, line)
                return


def _first_line(text: bytes, line: int) -> int:
    """The line of the first character of `text` that is not white space, when `text` begins on `line`."""
    return line + text.count(b"\n", 0, len(text) - len(text.lstrip()))


def _after_list(rest: bytes, file: io.BufferedIOBase, path: Path, line: int) -> Iterator[BadRow]:
    while True:
        if rest.strip():
            yield BadRow(str(path), _first_line(rest, line), "not JSON: text after the end of the list", fatal=True)
            return
        line += rest.count(b"\n")
        try:
            rest = file.read(CHUNK)
        except DAMAGE as error:
            yield BadRow(str(path), line, _damaged(error), fatal=True)
            return
        if not rest:
            return


def _parse(raw: bytes, path: Path, line: int) -> Record | BadRow:
    """One row from the bytes of a JSON object that starts on `line`."""
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_object_without_doubles, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        return BadRow(str(path), line, _not_utf8(raw, error))
    except json.JSONDecodeError as error:
        return BadRow(str(path), line, _not_json(raw, error, line))
    except _NotJSON as error:
        return BadRow(str(path), line, str(error))
    except RecursionError:
        return BadRow(str(path), line, "nested too deep: a row is one object with text in it")
    except ValueError:  # an integer of more than 4,300 digits
        return BadRow(str(path), line, "not JSON: a number with too many digits")
    if not isinstance(value, dict):
        return BadRow(str(path), line, f'is {describe(value)}, not an object like {{"prompt": ..., "completion": ...}}')
    return Record(line, value)


def _object_without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _NotJSON(f"the key {shorten(twice)!r} stands twice in one object")
    return fields


def _refuse_constant(name: str) -> Any:
    raise _NotJSON(f"not JSON: {name} is not a JSON value")


def _not_utf8(raw: bytes, error: UnicodeDecodeError) -> str:
    reason = f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start + 1}"
    try:
        raw.decode("gb18030")
    except UnicodeDecodeError:
        return reason
    return f"{reason}; it may be GBK: save the file as UTF-8"


def _not_json(raw: bytes, error: json.JSONDecodeError, line: int) -> str:
    if b"\0" in raw:
        return "not JSON: holds NUL bytes"
    where = f"column {error.colno}" if error.lineno == 1 else f"line {line + error.lineno - 1}, column {error.colno}"
    hint = ""
    if raw.strip() in (b"{", b"["):
        hint = "; rows are whole objects, one a line, or a list of them in [ ]"
    elif raw.lstrip()[:2] in (b"{'", b"{ '"):
        hint = "; JSON takes double quotes"
    elif error.doc[error.pos : error.pos + 1] in ("\u201c", "\u201d", "\u2018", "\u2019"):
        hint = '; quotes are straight (") in JSON'
    elif raw.lstrip().startswith((b"//", b"#", b"/*")):
        hint = "; JSON has no comments"
    elif error.msg == "Extra data":
        hint = _after_a_row(error.doc[error.pos - 1 :], error.doc[error.pos :].strip())
    return f"not JSON: {error.msg} ({where}){hint}"


def _after_a_row(rest: str, more: str) -> str:
    """What may be meant by text behind a row, for a message."""
    if rest.lstrip(" ").startswith("\r") or "\r" in rest[: len(rest) - len(rest.lstrip())]:
        return "; the lines end in CR alone: save the file with LF"
    if more.startswith(","):
        return "; no comma stands behind a row where rows are lines"
    return "; a comma or a line break is missing in front of it" if more.startswith("{") else ""


# CSV and TXT


def _csv(file: io.BufferedIOBase, path: Path) -> Iterator[Record | BadRow]:
    """Rows of a CSV file with a header. The delimiter is the one of , ; and tab that the header holds most often."""
    csv.field_size_limit(MAX_ROW_BYTES)
    bad_lines: list[BadRow] = []
    lines = _csv_lines(file, path, bad_lines)
    first = next(lines, "")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(_chain(first, lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            yield _bad_csv(error, path, line)
            if "unexpected end of data" in str(error):
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
            header = [name.strip() for name in values]
            if len(set(header)) != len(header):
                raise UserError(f"{path}:{line}: a column name stands twice in the header: {', '.join(header)}")
        elif len(values) != len(header):
            yield BadRow(str(path), line, f"{len(values)} in the row, {len(header)} fields in the header")
        else:
            yield Record(line, dict(zip(header, values, strict=True)))


def _chain(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def _csv_lines(file: io.BufferedIOBase, path: Path, bad: list[BadRow]) -> Iterator[str]:
    """Lines as text; bytes that are not UTF-8 become lone surrogates, so that their row can be named later."""
    for item in _lines(file, path):
        if isinstance(item, BadRow):  # a row may go over several lines, so the reader has lost its place
            bad.append(BadRow(item.file, item.line, item.reason, fatal=True))
            return
        yield item[1].decode("utf-8", "surrogateescape") + "\n"


def _bad_csv(error: csv.Error, path: Path, line: int) -> BadRow:
    if "unexpected end of data" in str(error):
        return BadRow(str(path), line, "not CSV: a quotation mark is opened here and never closed", fatal=True)
    if "field larger" in str(error):
        return BadRow(str(path), line, f"{TOO_LONG}: is a quotation mark not closed?")
    return BadRow(str(path), line, f"not CSV: {error}")


def _txt(file: IO[bytes], path: Path, before: int = 0) -> Iterator[Record | BadRow]:
    """A sample a line."""
    for item in _lines(file, path, before):
        if isinstance(item, BadRow):
            yield item
        elif item[1].strip():
            yield Record(item[0], {"text": item[1].decode("utf-8", "surrogateescape")})


# Words for messages


def describe(value: Any) -> str:
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
