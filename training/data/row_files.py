"""Read the rows of a data file one by one, with the line each one starts on: JSON, CSV, TXT, each also packed; Parquet, XLSX.

Standard library only, but for what reads Parquet, XLSX and zstd. Memory holds one row, however large the file is. What a row *means* is the business of `rows.py`.
A further form of files is a reader in a module of its own, and an entry in FORMS.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from training.data import chat_exports, csv_rows, json_lines, json_list, json_shapes, raw_lines, tables, text_rows
from training.data.json_list import JsonList, JsonObjects
from training.data.opening import DAMAGE, opened
from training.data.record import BadRow, Record
from training.errors import UserError


def _json(file: io.BufferedIOBase, path: Path) -> Iterator[Record | BadRow]:
    """JSON lines, one list, or objects over several lines: people give any name to any, so the first bytes decide."""
    shape = json_shapes.shape(file)
    if shape.kind == "lines":
        yield from json_lines.lines(file, path)
    elif shape.kind == "list":
        yield from chat_exports.of_assistants(json_list.conversation(JsonList(file, path, shape).values(), path), path)
    else:
        found = JsonObjects(file, path, shape).values()
        yield from (
            json_shapes.spread(found, path) if shape.kind == "columns" else chat_exports.of_assistants(found, path)
        )


IN_TXT = "of JSON in a TXT file"


def _named_otherwise(found: Iterator[Record | BadRow], path: Path) -> Iterator[Record | BadRow]:
    """Rows of JSON, with a word on it where the file's name says that its lines are texts."""
    if ".txt" not in path.suffixes:
        return found
    return (one if isinstance(one, BadRow) else replace(one, read_as=(*one.read_as, IN_TXT)) for one in found)


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of files: the ends of their names, and what reads their rows.

    `lines` reads a part of the file that consists of whole lines, the first of which is line `before` + 1. It is there
    where a line may be a row, and used where `is_lined` says so: several processes read such a file.
    """

    suffixes: tuple[str, ...]
    rows: Callable[[io.BufferedIOBase, Path], Iterator[Record | BadRow]]
    lines: Callable[[io.BufferedIOBase, Path, int], Iterator[Record | BadRow]] | None = None
    is_lined: Callable[[io.BufferedIOBase, Path], bool] = lambda file, path: True


FORMS = {
    "json": Form(
        suffixes=(".jsonl", ".ndjson", ".json"),
        rows=lambda file, path: _named_otherwise(_json(file, path), path),
        lines=lambda file, path, before: _named_otherwise(json_lines.lines(file, path, before), path),
        is_lined=lambda file, path: json_shapes.shape(file).kind == "lines",
    ),
    "csv": Form(suffixes=(".csv", ".tsv"), rows=csv_rows.rows),
    "txt": Form(suffixes=(".txt",), rows=text_rows.lines, lines=text_rows.lines),
    "parquet": Form(suffixes=(".parquet", ".pq"), rows=tables.parquet),
    "xlsx": Form(suffixes=(".xlsx", ".xlsm"), rows=tables.xlsx),
}
KINDS = {suffix: kind for kind, form in FORMS.items() for suffix in form.suffixes}


def records(path: Path, kind: str | None = None, encoding: str = "auto") -> Iterator[Record | BadRow]:
    """Yield every row of `path` in order, good or bad. Blank lines are no rows.

    `kind` is one of FORMS; None takes it from the file's name, or from its content. encoding: ENCODING.
    Raises UserError when the file as a whole is unfit: missing, a folder, not permitted, of an unknown kind or encoding.
    """
    with opened(path, encoding) as file:
        yield from records_from(file, path, kind_of(path, file, kind))


def records_from(file: io.BufferedIOBase, path: Path, kind: str) -> Iterator[Record | BadRow]:
    """The rows of an `opened` file, as `records` gives them."""
    return FORMS[kind].rows(file, path)


def records_in(block: bytes, kind: str, before: int, path: Path) -> Iterator[Record | BadRow]:
    """The rows of one of the `raw_lines.blocks` of a file that `is_lined`, as `records` gives them."""
    lines = FORMS[kind].lines
    if lines is None:
        raise ValueError(f"a row of a {kind} file may go over several lines")
    return lines(io.BytesIO(block), path, before)


def is_lined(file: io.BufferedIOBase, path: Path, kind: str) -> bool:
    """Whether each line is a row, so that `raw_lines.blocks` and `records_in` serve."""
    form = FORMS[kind]
    return form.lines is not None and form.is_lined(file, path)


PACKED = (".gz", ".zst")


def kind_of(path: Path, file: io.BufferedIOBase, given: str | None = None) -> str:
    """The kind of an `opened` file, one of FORMS: what its content leaves no doubt of, else as given, else by its name.

    Lines or a list of JSON have one kind: the content tells. Leaves the file where it stands.
    """
    start = file.tell()
    try:
        head = file.read(raw_lines.CHUNK)
    except DAMAGE:  # told when it is read
        head = b""
    file.seek(start)
    if table := tables.kind_of(path, head):
        return table
    if given:
        return given
    chat_exports.refuse(path, head)
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    kind = KINDS.get(suffix) or _by_content(head)
    if kind == "txt" and json_shapes.holds_rows(head):
        return "json"
    if kind == "txt" and csv_rows.is_header(_first_line(head), "\t"):  # what Excel calls Unicode text is a table
        return "csv"
    if kind == "txt" and csv_rows.is_markdown(head.decode("utf-8", "ignore")):
        return "csv"
    if kind is None:
        raise UserError(
            f"{path}: unknown kind of file {suffix!r}, and its content does not tell; known are {', '.join(KINDS)}, "
            "each also with .gz or .zst"
        )
    return kind


def _by_content(head: bytes) -> str | None:
    """The kind of a text whose name does not tell it; None where it may be a table or lines of text."""
    if head.lstrip().startswith((b"{", b"[")):
        return "json"
    return "csv" if csv_rows.is_header(_first_line(head)) else None


def _first_line(head: bytes) -> str:
    return head.decode("utf-8", "ignore").lstrip().partition("\n")[0]


def nothing(path: Path) -> str:
    """Why a file has no rows, good or bad."""
    return "there is nothing but a header, blank lines or [ ]" if path.stat().st_size else "the file is empty"
