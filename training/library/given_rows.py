"""Rows that a program holds in memory become a data file that the run, its checks and a later --resume can read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Union

from training.errors import MachineError, UserError
from training.system import files, foreign_json

if TYPE_CHECKING:
    import datasets

Rows = Union[str, "os.PathLike[str]", Iterable[Mapping[str, object]], "datasets.Dataset"]
FOLDER = "data"  # in OUTPUT_DIR


def file_of(data: Rows, output_dir: Path) -> str | os.PathLike[str]:
    """The file with the rows: the one that was named; else they are written into OUTPUT_DIR/data, by their SHA-256.

    Raises UserError where they are no rows; what is in a row is looked at when the file is read.
    """
    if isinstance(data, (str, os.PathLike)):
        return data
    text = "".join(_lines(_records(data)))
    if not text:
        raise UserError("data_path=: there are no rows in it")
    folder = output_dir / FOLDER
    path = folder / f"rows-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
    if not path.is_file():
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            files.private_folder(folder)
            files.write_text(path, text)
        except OSError as error:
            raise MachineError(f"{path} cannot be written: {error.strerror}") from None
    return path


@contextmanager
def held(data: Rows, output_dir: Path) -> Iterator[str | os.PathLike[str]]:
    """`file_of` while the settings are looked at: where those are refused, what was written goes again."""
    folder = output_dir / FOLDER
    before, missing = set(folder.glob("rows-*")), [place for place in (folder, output_dir) if not place.exists()]
    path = file_of(data, output_dir)
    try:
        yield path
    except UserError:
        for new in set(folder.glob("rows-*")) - before:
            if new == path:
                files.remove(new)
        for place in missing:
            with suppress(OSError):  # somebody else has put something there
                place.rmdir()
        raise


def _records(data: object) -> Iterable[object]:
    """The rows of what was given: a list, a datasets.Dataset, or a table that knows its rows (pandas)."""
    if isinstance(data, Mapping):
        parts = ", ".join(map(str, list(data)[:5]))
        raise UserError(f"data_path=: takes rows, and this holds several things ({parts}); name one of them: data[...]")
    to_dict = getattr(data, "to_dict", None)
    if hasattr(data, "iloc") and callable(to_dict):
        return list(to_dict("records"))
    if not isinstance(data, Iterable):
        raise UserError(f"data_path=: takes a path, a list of dicts or a datasets.Dataset, not {type(data).__name__}")
    # A table fills the columns that a row has not with None.
    filled = hasattr(data, "column_names")
    return (_without_none(row) for row in data) if filled else data


def _without_none(row: object) -> object:
    return {key: value for key, value in row.items() if value is not None} if isinstance(row, Mapping) else row


def _lines(records: Iterable[object]) -> Iterator[str]:
    for number, row in enumerate(records, start=1):
        if not isinstance(row, Mapping):
            raise UserError(f"data_path=: row {number} is a {type(row).__name__}; a row is a dict")
        try:
            line = json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise UserError(f"data_path=: row {number} cannot be written as JSON: {error}") from None
        if not foreign_json.writable(line):
            raise UserError(f"data_path=: row {number} {foreign_json.HALF}")
        yield line
