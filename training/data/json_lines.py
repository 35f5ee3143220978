"""One row from the bytes of a JSON object, and files with such an object on every line."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from training.data.raw_lines import numbered
from training.data.record import BadRow, Record, describe
from training.system.wording import shorten


class _NotJSON(ValueError):
    """Valid for Python's JSON reader, but not for JSON (a key twice, NaN)."""


def lines(file: io.BufferedIOBase, path: Path, before: int = 0) -> Iterator[Record | BadRow]:
    """Each line as a row; the first is line `before` + 1."""
    for item in numbered(file, path, before):
        if isinstance(item, BadRow):
            yield item
            continue
        line, raw = item
        if raw.strip():
            found = parse(raw, path, line)
            if isinstance(found, BadRow) and EXTRA in found.reason:
                yield from glued(raw, path, line, found)
            else:
                yield found


EXTRA = "not JSON: Extra data"
GLUED = "that stand on one line with another, each an object of its own"
COMMA = "with a comma behind them"
BARE = "that are a bare list of messages"


def glued(raw: bytes, path: Path, line: int, whole: BadRow) -> Iterator[Record | BadRow]:
    """The objects on one line, with or without commas between them and behind the last; else `whole`, why it is no row."""
    text = raw.decode("utf-8").strip()
    values: list[dict[str, object]] = []
    place = 0
    try:
        while place < len(text):
            value, place = DECODER.raw_decode(text, place)
            if not isinstance(value, dict):
                raise ValueError
            values.append(value)
            between = BETWEEN.match(text, place)
            place = between.end() if between else place
    except (ValueError, RecursionError):
        yield whole
        return
    for value in values:
        yield Record(line, value, (COMMA if len(values) == 1 else GLUED,))


def parse(raw: bytes, path: Path, line: int) -> Record | BadRow:
    """One row from the bytes of a JSON object that starts on `line`."""
    try:
        value = DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError:  # an opened file is UTF-8, unless it is a damaged gzip file, or was changed since
        return BadRow(str(path), line, "not UTF-8", fatal=True)
    except json.JSONDecodeError as error:
        return BadRow(str(path), line, _not_json(raw, error, line))
    except _NotJSON as error:
        return BadRow(str(path), line, str(error))
    except RecursionError:
        return BadRow(str(path), line, "nested too deep: a row is one object with text in it")
    except ValueError:  # an integer of more than 4,300 digits
        return BadRow(str(path), line, "not JSON: a number with too many digits")
    if isinstance(value, list) and value and all(map(is_message, value)):
        return Record(line, {"messages": value}, (BARE,))
    if not isinstance(value, dict):
        return BadRow(str(path), line, f'is {describe(value)}, not an object like {{"prompt": ..., "completion": ...}}')
    return Record(line, value)


def is_message(value: object) -> bool:
    """Whether a value is one message of a conversation."""
    return isinstance(value, dict) and (("role" in value and len(value) > 1) or ("from" in value and "value" in value))


def _object_without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            break
        seen.add(name)
    raise _NotJSON(f"the key {shorten(name)!r} stands twice in one object")


def _refuse_constant(name: str) -> NoReturn:
    raise _NotJSON(f"not JSON: {name} is not a JSON value")


# Between two objects on a line, or behind one: white space, one comma.
BETWEEN = re.compile(r"\s*,?\s*")
# Made once: json.loads makes one for every row that it reads with hooks.
DECODER = json.JSONDecoder(object_pairs_hook=_object_without_doubles, parse_constant=_refuse_constant)


def _not_json(raw: bytes, error: json.JSONDecodeError, line: int) -> str:
    if b"\0" in raw:
        return "not JSON: holds NUL bytes"
    where = f"column {error.colno}" if error.lineno == 1 else f"line {line + error.lineno - 1}, column {error.colno}"
    return f"not JSON: {error.msg} ({where}){_hint(raw, error)}"


def _hint(raw: bytes, error: json.JSONDecodeError) -> str:
    """What the writer of a row that is not JSON may have missed, for a message."""
    if raw.strip() in (b"{", b"["):
        return "; rows are whole objects, one a line, or a list of them in [ ]"
    if raw.lstrip()[:2] in (b"{'", b"{ '"):
        return "; JSON takes double quotes"
    if error.doc[error.pos : error.pos + 1] in ("\u201c", "\u201d", "\u2018", "\u2019"):
        return '; quotes are straight (") in JSON'
    if raw.lstrip().startswith((b"//", b"#", b"/*")):
        return "; JSON has no comments"
    if error.msg == "Extra data":
        return _after_a_row(error.doc[error.pos - 1 :], error.doc[error.pos :].strip())
    return ""


def _after_a_row(rest: str, more: str) -> str:
    """What may be meant by text behind a row, for a message."""
    if more.startswith(","):
        return "; no comma stands behind a row where rows are lines"
    return "; a comma or a line break is missing in front of it" if more.startswith("{") else ""
