"""Tables that are no text: the rows of Parquet and Excel files."""

from __future__ import annotations

import io
import re
import shlex
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, time
from pathlib import Path

from training.data import columns
from training.data.record import BadRow, Record
from training.errors import MachineError, UserError
from training.system import paths, shell

BATCH = 1000  # rows of a Parquet file that are in memory together
PARQUET, ZIP = b"PAR1", b"PK\x03\x04"
# Unpacked bytes of an Excel file, and how many times as long as the file: more is no table of texts.
MOST_BYTES, MOST_TIMES = 4 << 30, 200
TITLED = "of a table below a title, which is left out"
HIDDEN = "of the sheet that is shown: hidden ones are left out"
# How a sheet keeps signs that XML has no place for, as the return that Windows puts before a line break.
KEPT_SIGN = re.compile(r"_x([0-9A-Fa-f]{4})_")
EMPTY = "behind an empty row, which is left out"


def kind_of(path: Path, head: bytes) -> str:
    """parquet or xlsx, where a file's first bytes are those of one; "" for all others."""
    if head.startswith(PARQUET):
        return "parquet"
    if head.startswith(ZIP):
        try:
            with zipfile.ZipFile(path) as held:
                return "xlsx" if "xl/workbook.xml" in held.namelist() else ""
        except (OSError, zipfile.BadZipFile, ValueError):
            return ""
    return ""


def parquet(file: io.BufferedIOBase, path: Path) -> Iterator[Record | BadRow]:
    """Each row by its columns, numbered from 1. UserError where the file is damaged."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise MachineError(
            f"pyarrow, which reads Parquet, is not installed in this Python: {shell.command('setup.sh')} makes .venv, and its Python has it"
        ) from None
    number = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH):
            for fields in batch.to_pylist():
                number += 1
                yield Record(-number, {name: _without_nulls(value) for name, value in fields.items()})
    except (pa.ArrowException, OSError, ValueError) as error:
        said = (str(error).splitlines() or ["unreadable"])[0]
        raise UserError(f"{path}: is no whole Parquet file, behind row {number} ({said})") from None


def _without_nulls(value: object) -> object:
    """What a field holds, without the nulls within it: each object has all fields that any row's has, as Arrow keeps them."""
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return value


def xlsx(file: io.BufferedIOBase, path: Path) -> Iterator[Record | BadRow]:
    """Each row of the only sheet that holds any, by the names in its first row. UserError where there are several."""
    try:
        import openpyxl
    except ModuleNotFoundError:
        pip = shlex.join([sys.executable, "-m", "pip", "install", "-r", str(paths.ROOT / "requirements/tables.txt")])
        raise MachineError(
            f"{path}: openpyxl, which reads Excel files, is not installed: {pip} installs it, or save the sheet as CSV UTF-8"
        ) from None
    _check_size(path)
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile, SyntaxError) as error:
        raise UserError(f"{path}: is no whole Excel file ({error})") from None
    try:
        sheets = [sheet for sheet in book.worksheets if any(any(row) for row in sheet.iter_rows(values_only=True))]
        shown = [sheet for sheet in sheets if sheet.sheet_state == "visible"]
        if len(shown or sheets) > 1:
            names = ", ".join(sheet.title for sheet in shown or sheets)
            raise UserError(f"{path}: holds several sheets ({names}): save the one to learn as a file of its own")
        said = (HIDDEN,) if len(sheets) > len(shown) > 0 else ()
        for sheet in shown or sheets:
            for row in _sheet(sheet.iter_rows(values_only=True), path):
                yield row if isinstance(row, BadRow) else replace(row, read_as=(*said, *row.read_as))
    except (KeyError, zipfile.BadZipFile, SyntaxError) as error:
        raise UserError(f"{path}: is damaged ({error})") from None
    finally:
        book.close()


def _sheet(rows: Iterator[Sequence[object]], path: Path) -> Iterator[Record | BadRow]:
    """The rows below the header, which is the first row that is not empty; or the second, below a title."""
    names: list[str] | None = None
    behind: tuple[str, ...] = ()
    titled: tuple[str, ...] = ()
    is_first = False  # whether the row before was the first one, and one cell over several columns
    for number, values in enumerate(rows, 1):
        if all(value is None or value == "" for value in values):
            behind = (EMPTY,) if names else ()
            continue
        cells = _cells(values) if names is None or is_first else []
        if names is None:
            names = header(cells, f"{path}, row {number}")
            is_first = sum(map(bool, cells)) == 1 < len(cells)
            continue
        if (
            is_first
            and columns.are_known(tuple(filter(None, cells)))
            and not columns.are_known(tuple(filter(None, names)))
        ):
            names, titled, behind = header(cells, f"{path}, row {number}"), (TITLED,), ()
            is_first = False
            continue
        is_first = False
        fields, extra = named(names, values)
        if extra:
            yield BadRow(str(path), -number, "holds a value in a column without a name")
        else:
            yield Record(-number, {name: _text(value) for name, value in fields.items()}, (*titled, *behind))
            behind = ()


def _cells(values: Sequence[object]) -> list[str]:
    return ["" if value is None else str(value) for value in values]


def _text(value: object) -> object:
    """A cell as text: a sheet has numbers and dates where a table of texts has what they look like."""
    if isinstance(value, str):
        if "_x" in value:
            value = KEPT_SIGN.sub(lambda found: chr(int(found[1], 16)), value)
        return value.replace("\r\n", "\n")
    if value is None or isinstance(value, bool):
        return "" if value is None else value
    if isinstance(value, datetime) and value.time() == time():  # what is shown of it has no hours
        return str(value.date())
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _check_size(path: Path) -> None:
    """UserError where what is packed in the file would fill the memory."""
    with zipfile.ZipFile(path) as held:
        whole = sum(one.file_size for one in held.infolist())
    if whole > MOST_BYTES or whole > MOST_TIMES * max(path.stat().st_size, 1 << 20):
        raise UserError(f"{path}: unpacks to {whole:,} bytes, which no table of texts does; save it as CSV UTF-8")


def header(values: Sequence[str], where: str) -> list[str]:
    """The names of the columns. Those without a name behind the last that has one are left out. UserError for doubles."""
    names = [name.strip() for name in values]
    while len(names) > 1 and not names[-1]:
        names.pop()
    named_twice = [name for name in names if name and names.count(name) > 1]
    if named_twice:
        raise UserError(f"{where}: a column name stands twice in the header: {', '.join(names)}")
    return names


def named(names: Sequence[str], values: Sequence[object]) -> tuple[dict[str, object], bool]:
    """A row by the names of its columns, without those that have none; whether one of those holds something.

    One column without a name in front is the number that pandas writes.
    """
    fields = {name: value for at, (name, value) in enumerate(zip(names, values)) if name or not at}  # noqa: B905 (a row may be shorter)
    beyond = values[len(names) :]
    unnamed = [value for name, value in zip(names[1:], values[1:]) if not name]  # noqa: B905
    return fields, any(value not in (None, "") for value in (*beyond, *unnamed))
