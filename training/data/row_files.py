"""Read the rows of a data file one by one, with the line each one starts on: JSONL, JSON list, CSV, TXT, each also gzipped.

Standard library only. Memory holds one row, however large the file is. What a row *means* is the business of `rows.py`.
A further form of files is a reader in a module of its own, and an entry in FORMS.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from training.data import csv_rows, json_lines, text_rows
from training.data.json_list import JsonList, is_list
from training.data.opening import opened
from training.data.record import BadRow, Record
from training.errors import UserError


def _json(file: io.BufferedIOBase, path: Path) -> Iterator[Record | BadRow]:
    """JSON lines, or one list: people give either name to either, so the first bytes decide."""
    yield from JsonList(file, path).values() if is_list(file, path) else json_lines.lines(file, path)


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
        rows=_json,
        lines=json_lines.lines,
        is_lined=lambda file, path: not is_list(file, path),
    ),
    "csv": Form(suffixes=(".csv", ".tsv"), rows=csv_rows.rows),
    "txt": Form(suffixes=(".txt",), rows=text_rows.lines, lines=text_rows.lines),
}
KINDS = {suffix: kind for kind, form in FORMS.items() for suffix in form.suffixes}


def records(path: Path, kind: str | None = None) -> Iterator[Record | BadRow]:
    """Yield every row of `path` in order, good or bad. Blank lines are no rows.

    `kind` is one of FORMS; None takes it from the file's name.
    Raises UserError when the file as a whole is unfit: missing, a folder, not permitted, of an unknown kind, UTF-16.
    """
    kind = kind or kind_of(path)
    with opened(path) as file:
        yield from records_from(file, path, kind)


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


def kind_of(path: Path) -> str:
    """The kind of a file, one of FORMS, from its name. Lines or a list of JSON have one kind: the content tells."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in KINDS:
        raise UserError(f"{path}: unknown kind of file {suffix!r}; known are {', '.join(KINDS)}, each also with .gz")
    return KINDS[suffix]


def nothing(path: Path) -> str:
    """Why a file has no rows, good or bad."""
    return "there is nothing but a header, blank lines or [ ]" if path.stat().st_size else "the file is empty"
