"""Read a data file part by part, with all cores where it is long: each part's good rows are an Arrow batch."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from training.data import oddities, raw_lines, row_files, rows
from training.data.oddities import Seen
from training.data.opening import opened, position
from training.data.record import BadRow, Record
from training.data.rows import Row
from training.settings.prompt_template import PromptTemplate
from training.system import pool

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1000  # rows an Arrow batch
BLOCK = 2 << 20  # bytes that a process gets at a time
LONG = 2 * BLOCK  # bytes from which on several processes are worth their start
PACKED = 4  # times as long as a gzip file is what it holds, about


# What a process gets to read: records, or a block of whole lines and how many stand before it, or why there is no more.
Piece = list[Record | BadRow] | tuple[bytes, int] | BadRow


@dataclass(kw_only=True)
class Part:
    """Some rows of a file, in order: the good ones as Arrow, the bad ones, and what was noticed."""

    batch: pa.RecordBatch  # of schema()
    bad: list[BadRow] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)
    size: int = 0  # bytes of the file; good rows where a limit was given


def schema() -> pa.Schema:
    """messages: list of (role, content), or null; text: or null; file and line."""
    import pyarrow as pa

    turn = pa.struct([("role", pa.string()), ("content", pa.large_string())])
    return pa.schema(
        [("messages", pa.list_(turn)), ("text", pa.large_string()), ("file", pa.string()), ("line", pa.int64())]
    )


def parts(path: Path, format: str, template: PromptTemplate | None, limit: int = 0) -> Iterator[Part]:
    """All rows of `path`, in order; the first `limit` good ones, unless it is 0. UserError where it cannot be read.

    MachineError where a process that reads along was ended from outside.
    """
    kind = row_files.kind_of(path)
    with opened(path) as file:
        if limit:
            yield from _first(row_files.records_from(file, path, kind), path, format, template, limit)
            return
        processes = _processes(path)
        if processes > 1 and row_files.is_lined(file, path, kind):
            pieces: Iterator[Piece] = raw_lines.blocks(file, path, BLOCK)
        else:
            pieces = _batches(row_files.records_from(file, path, kind), file)
        yield from pool.in_order(
            _piece, _sized(pieces, file), processes, (path, kind, format, template), f"reading {path}"
        )


def whole(path: Path, limit: int = 0) -> int:
    """What the sizes of all `parts` add up to, about."""
    try:
        return limit or path.stat().st_size
    except OSError:  # the reader says what is wrong
        return 0


def _processes(path: Path) -> int:
    """Processes for this file. Only where they are made by copying this one: else they start slowly."""
    long = whole(path) * (PACKED if path.suffix.lower() == ".gz" else 1) >= LONG
    return pool.cores() if long and pool.copied() else 1


def _batches(records: Iterator[Record | BadRow], file: io.BufferedIOBase) -> Iterator[list[Record | BadRow]]:
    """Records of about BLOCK bytes, BATCH at most."""
    batch, start = [], position(file)
    for record in records:
        batch.append(record)
        if len(batch) == BATCH or position(file) - start > BLOCK:
            yield batch
            batch, start = [], position(file)
    if batch:
        yield batch


def _sized(pieces: Iterator[Piece], file: io.BufferedIOBase) -> Iterator[tuple[Piece, int]]:
    """Each piece with the bytes of the file that it took."""
    before = 0
    for piece in pieces:
        now = position(file)
        yield piece, now - before
        before = now


def _piece(path: Path, kind: str, format: str, template: PromptTemplate | None, piece: Piece, size: int) -> Part:
    """The part that a piece of the file is: records, a block of lines, or the end of a broken file."""
    if isinstance(piece, tuple):
        records = row_files.records_in(piece[0], kind, piece[1], path)
    else:
        records = iter([piece] if isinstance(piece, BadRow) else piece)
    return _part((_row(one, path, format, template) for one in records), size)


def _row(record: Record | BadRow, path: Path, format: str, template: PromptTemplate | None) -> Row | BadRow:
    return record if isinstance(record, BadRow) else rows.interpret(record, path, format, template)


def _first(
    records: Iterator[Record | BadRow], path: Path, format: str, template: PromptTemplate | None, limit: int
) -> Iterator[Part]:
    """The parts up to the first `limit` good rows."""
    while limit:
        found = []
        for record in records:
            found.append(_row(record, path, format, template))
            limit -= isinstance(found[-1], Row)
            if not limit or len(found) == BATCH:
                break
        if not found:
            return
        part = _part(found)
        part.size = part.batch.num_rows
        yield part


def _part(found: Iterable[Row | BadRow], size: int = 0) -> Part:
    """The Arrow batch of some rows, and the rest of what is known of them."""
    import pyarrow as pa

    bad, seen = [], Seen()
    columns: tuple[list[object], ...] = ([], [], [], [])
    for row in found:
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        oddities.remember(row, seen)
        messages = [{"role": turn.role, "content": turn.content} for turn in row.messages] if row.messages else None
        for column, value in zip(columns, (messages, row.text, row.file, row.line), strict=True):
            column.append(value)
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, schema(), strict=True)]
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema())
    return Part(batch=batch, bad=bad, seen=seen, size=size)
