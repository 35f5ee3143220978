"""The shapes that files of JSON come in: what the first bytes tell, and one object that holds the rows column by column."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.data import columns, raw_lines
from training.data.opening import DAMAGE
from training.data.record import BadRow, Record

# What a list of rows is called where it stands in an object.
WRAPPERS = [
    "data",
    "train",
    "training",
    "rows",
    "row",
    "examples",
    "samples",
    "items",
    "records",
    "dataset",
    "instances",
    "entries",
    "results",
    "list",
]
SCALAR = rb'(?:"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null)'
# A list or an object that holds no other, as facts about a file do.
FLAT = rb'[\[{][^\[\]{}"]*(?:"(?:[^"\\]|\\.)*"[^\[\]{}"]*)*[\]}]'
# An object with a list of rows; what stands in front of it holds no rows.
WRAPPED = re.compile(
    rb'\s*\{\s*(?:"(?:[^"\\]|\\.)*"\s*:\s*(?:'
    + SCALAR
    + rb"|"
    + FLAT
    + rb')\s*,\s*)*"('
    + "|".join(WRAPPERS).encode()
    + rb')"\s*:\s*\[',
    re.IGNORECASE,
)
FIRST_KEY = re.compile(rb'\s*(?:\{\s*"((?:[^"\\]|\\.)*)"|(\[)|(\]))')
# {"instruction": ["a", ...  and  {"instruction": {"0": "a", ...: datasets' and pandas' columns.
COLUMNS = re.compile(
    rb'\s*\{\s*"(?!messages"|conversations")(?:[^"\\]|\\.)*"\s*:\s*(?:\[\s*(?:"|null)|\{\s*"[0-9]+"\s*:)'
)
BY_COLUMN = "that stand column by column in one object"


@dataclass(frozen=True)
class Shape:
    """How the rows lie in a file: a line each, in one list that begins at byte `begin`, one object after the other, or column
    by column. `wrapper`: the name of the list, where it stands in an object."""

    kind: Literal["lines", "list", "objects", "columns"]
    begin: int = 0
    wrapper: str = ""


def shape(file: io.BufferedIOBase) -> Shape:
    """What the file's first bytes tell. Leaves the file where it stands."""
    start = file.tell()
    try:
        head = file.read(raw_lines.CHUNK)
    except DAMAGE:
        head = b""
    file.seek(start)
    bare = head.lstrip()
    if bare.startswith(b"["):
        return Shape("lines") if _is_line_of_list(bare) else Shape("list", len(head) - len(bare))
    if not bare.startswith(b"{"):
        return Shape("lines")
    if wrapped := _wrapped(head):
        return wrapped
    if COLUMNS.match(head) and not _is_followed(bare):
        return Shape("columns")
    return Shape("objects") if _is_over_lines(bare) else Shape("lines")


def _wrapped(head: bytes) -> Shape | None:
    """The shape of a file that is one object with a list of rows in it; None for all others."""
    wrapped = WRAPPED.match(head)
    first = FIRST_KEY.match(head, wrapped.end()) if wrapped else None
    if not wrapped or not first or first[1] in (b"role", b"from", b"content", b"value"):
        return None
    # A row may have a list of that name beside what it says, as may all those that follow it.
    if _is_followed(head.lstrip()) or _is_row(head[: wrapped.start(1) - 1] + b'"":0}') or _is_row(head):
        return None
    return Shape("list", wrapped.end() - 1, wrapped[1].decode("ascii"))


def _is_row(text: bytes) -> bool:
    """Whether a text is a whole object with the fields of a row."""
    try:
        return _has_fields(json.loads(text))
    except (ValueError, RecursionError):
        return False


def _has_fields(held: object) -> bool:
    return isinstance(held, dict) and (columns.is_whole(held) or bool(columns.usual(tuple(held)).fields))


def holds_rows(head: bytes) -> bool:
    """Whether a text is JSON with rows, whatever its file is called: its first object has the fields of one."""
    text = head.decode("utf-8", "ignore").lstrip().removeprefix("[").lstrip()
    if not text.startswith("{"):
        return False
    try:
        return _has_fields(json.JSONDecoder().raw_decode(text)[0])
    except (ValueError, RecursionError):
        return False


def _is_line_of_list(head: bytes) -> bool:
    """True when the first line is a complete list and further lines follow: a list is a row then."""
    first, _, rest = head.strip().partition(b"\n")
    return first.rstrip().endswith(b"]") and rest.lstrip().startswith((b"{", b"["))


def _is_followed(head: bytes) -> bool:
    """Whether the first line is a whole object, and a further one follows."""
    first, _, rest = head.partition(b"\n")
    return first.rstrip().endswith((b"}", b"},")) and rest.lstrip().startswith(b"{")


def _is_over_lines(head: bytes) -> bool:
    """Whether the first object goes over several lines."""
    first, line_break, _ = head.partition(b"\n")
    if not line_break:
        return False
    try:
        json.loads(first)
        return False
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return False
    except (ValueError, RecursionError):
        return False
    text = head.decode("utf-8", "replace")
    try:
        _, end = json.JSONDecoder().raw_decode(text)
        return "\n" in text[:end]
    except (ValueError, RecursionError):
        # Longer than what is looked at, or broken: a line that ends within an object is none by itself.
        return first.rstrip().endswith((b"{", b"[", b",", b":")) and len(head) > 1000 or first.strip() in (b"{", b"[")


def spread(found: Iterator[Record | BadRow], path: Path) -> Iterator[Record | BadRow]:
    """The rows of objects that hold them column by column: lists of equal length, or pandas' objects of equal keys."""
    for record in found:
        held = None if isinstance(record, BadRow) else _columns(record.fields)
        if isinstance(record, BadRow) or held is None:
            yield record
            continue
        if len({len(column) for column in held.values()}) > 1:
            counts = ", ".join(f"{name} {len(column)}" for name, column in held.items())
            yield BadRow(str(path), record.line, f"holds columns of different lengths: {counts}")
            continue
        for number, row in enumerate(zip(*held.values(), strict=True), 1):
            yield Record(-number, dict(zip(held, row, strict=True)), (BY_COLUMN,))


def _columns(fields: Mapping[str, object]) -> dict[str, list[object]] | None:
    """The columns that an object holds; None where it is a row."""
    keys = {tuple(value) for value in fields.values() if isinstance(value, dict)}
    lists = {name: list(value.values()) if isinstance(value, dict) else value for name, value in fields.items()}
    held = {name: value for name, value in lists.items() if isinstance(value, list)}
    # A column of texts at least: a question that is a list of messages is no column.
    texts = all(one is None or isinstance(one, str) for value in held.values() for one in value[:1])
    known = columns.is_whole(fields) or bool(columns.usual(tuple(fields)).fields)
    whole = len(fields) > 1 and len(held) == len(fields) and len(keys) < 2
    return held if whole and texts and known else None
