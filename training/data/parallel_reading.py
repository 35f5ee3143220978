"""Read a data file part by part, with all cores where it is long: each part's good rows are an Arrow batch."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data import oddities, raw_lines, row_files, rows
from training.data.oddities import Seen
from training.data.opening import opened, position
from training.data.reading import Reading
from training.data.record import BadRow, Record
from training.data.rows import Row
from training.data.turns import Turn
from training.system import pool

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1000  # rows an Arrow batch
BLOCK = 2 << 20  # bytes that a process gets at a time
LONG = 2 * BLOCK  # bytes from which on several processes are worth their start
PACKED = 4  # times as long as a packed file is what it holds, about


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
    """messages: list of (role, content), or null; text: or null; file and line; more: what few rows have besides
    (`_more`), or null."""
    import pyarrow as pa

    turn = pa.struct([("role", pa.string()), ("content", pa.large_string())])
    return pa.schema(
        [
            ("messages", pa.list_(turn)),
            ("text", pa.large_string()),
            ("file", pa.string()),
            ("line", pa.int64()),
            ("more", pa.large_string()),
        ]
    )


def parts(path: Path, reading: Reading, limit: int = 0) -> Iterator[Part]:
    """All rows of `path`, in order; the first `limit` good ones, unless it is 0. UserError where it cannot be read.

    MachineError where a process that reads along was ended from outside.
    """
    with opened(path, reading.encoding) as file:
        kind = row_files.kind_of(path, file)
        if limit:
            yield from _first(row_files.records_from(file, path, kind), path, reading, limit)
            return
        processes = _processes(path)
        if processes > 1 and row_files.is_lined(file, path, kind):
            pieces: Iterator[Piece] = raw_lines.blocks(file, path, BLOCK)
        else:
            pieces = _batches(row_files.records_from(file, path, kind), file)
        yield from pool.in_order(_piece, _sized(pieces, file), processes, (path, kind, reading), f"reading {path}")


def whole(path: Path, limit: int = 0) -> int:
    """What the sizes of all `parts` add up to, about."""
    try:
        return limit or path.stat().st_size
    except OSError:  # the reader says what is wrong
        return 0


def _processes(path: Path) -> int:
    """Processes for this file. Only where they are made by copying this one: else they start slowly."""
    long = whole(path) * (PACKED if path.suffix.lower() in row_files.PACKED else 1) >= LONG
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
        yield piece, max(0, now - before)  # what reads a Parquet file goes to and fro in it
        before = max(before, now)


def _piece(path: Path, kind: str, reading: Reading, piece: Piece, size: int) -> Part:
    """The part that a piece of the file is: records, a block of lines, or the end of a broken file."""
    if isinstance(piece, tuple):
        records = row_files.records_in(piece[0], kind, piece[1], path)
    else:
        records = iter([piece] if isinstance(piece, BadRow) else piece)
    return _part((_row(one, path, reading) for one in records), size)


def _row(record: Record | BadRow, path: Path, reading: Reading) -> Row | BadRow:
    return record if isinstance(record, BadRow) else rows.interpret(record, path, reading)


def _first(records: Iterator[Record | BadRow], path: Path, reading: Reading, limit: int) -> Iterator[Part]:
    """The parts up to the first `limit` good rows."""
    while limit:
        found = []
        for record in records:
            found.append(_row(record, path, reading))
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
    bad, good, seen = [], [], Seen()
    for row in found:
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        oddities.remember(row, seen)
        good.append(row)
    return Part(batch=_batch(good), bad=bad, seen=seen, size=size)


def _batch(good: list[Row]) -> pa.RecordBatch:
    """Rows as Arrow, column by column: a dictionary for each turn would take several times as long."""
    import pyarrow as pa

    kinds = schema()
    turns = [turn for row in good if row.messages is not None for turn in row.messages]
    each = pa.StructArray.from_arrays(
        [
            pa.array([turn.role for turn in turns], pa.string()),
            pa.array([turn.content for turn in turns], pa.large_string()),
        ],
        fields=list(kinds.field("messages").type.value_type),
    )
    ends = list(accumulate((len(row.messages or ()) for row in good), initial=0))
    empty = pa.array([row.messages is None for row in good], pa.bool_())
    messages = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), each, mask=empty) if good else None
    columns = [
        messages if messages is not None else pa.array([], kinds.field("messages").type),
        pa.array([row.text for row in good], pa.large_string()),
        pa.array([row.file for row in good], pa.string()),
        pa.array([row.line for row in good], pa.int64()),
        pa.array([_more(row) for row in good], pa.large_string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=kinds)


def _more(row: Row) -> str | None:
    """What few rows have besides the texts of their turns, as JSON: tools, and by the number of a turn its other fields."""
    if not row.has_aside():
        return None
    turns = {
        str(number): {"trained": turn.trained, "thoughts": turn.thoughts, "more": turn.more}
        for number, turn in enumerate(row.messages or ())
        if not turn.trained or turn.thoughts or turn.more
    }
    return json.dumps({"tools": row.tools, "turns": turns})


def row_of(record: Mapping[str, Any]) -> Row:
    """A Row again from a record of `schema`."""
    messages, text, file, line = (record[name] for name in ("messages", "text", "file", "line"))
    more = record.get("more")
    if messages is None:
        return Row(None, text, file, line)
    if more is None:
        return Row(tuple(Turn(turn["role"], turn["content"]) for turn in messages), None, file, line)
    held = json.loads(more)
    turns = (
        Turn(turn["role"], turn["content"], **held["turns"].get(str(number), {}))
        for number, turn in enumerate(messages)
    )
    return Row(tuple(turns), None, file, line, held["tools"])
