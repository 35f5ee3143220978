"""Read a data file part by part, with all cores where it is long: each part's good rows are an Arrow batch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import noticed, row_files, rows
from training.errors import MachineError
from training.prompt_template import PromptTemplate
from training.rows import BadRow, Row

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1000  # rows an Arrow batch
BLOCK = 4 << 20  # bytes that a process gets at a time
LONG = 8 * BLOCK  # bytes from which on several processes are worth their start


@dataclass
class Part:
    """Some rows of a file, in order: the good ones as Arrow, the bad ones, and what was noticed."""

    batch: Any = None  # pyarrow.RecordBatch of schema()
    bad: list[BadRow] = field(default_factory=list)
    seen: noticed.Seen = field(default_factory=noticed.Seen)


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
    workers = _workers(path)
    blocks = row_files.blocks(path, BLOCK) if workers > 1 and not limit else None
    if blocks is not None:
        yield from _side_by_side(blocks, path, format, template, workers)
        return
    all_rows = rows.read(path, format, template)
    if limit:
        all_rows = _first(all_rows, limit)
    while batch := list(islice(all_rows, BATCH)):
        yield _part(batch)


def _workers(path: Path) -> int:
    """Processes for this file. Only where they are made by copying this one, as Linux does: else they start slowly."""
    try:
        long = path.stat().st_size >= LONG
    except OSError:  # the reader says what is wrong
        return 1
    return len(os.sched_getaffinity(0)) if long and sys.platform == "linux" else 1


def _first(all_rows: Iterator[Row | BadRow], limit: int) -> Iterator[Row | BadRow]:
    for row in all_rows:
        yield row
        limit -= isinstance(row, Row)
        if not limit:
            return


def _part(found: Iterable[Row | BadRow]) -> Part:
    """The Arrow batch of some rows, and the rest of what is known of them."""
    import pyarrow as pa

    part, columns = Part(), ([], [], [], [])
    for row in found:
        if isinstance(row, BadRow):
            part.bad.append(row)
            continue
        noticed.remember(row, part.seen)
        messages = [{"role": turn.role, "content": turn.content} for turn in row.messages] if row.messages else None
        for column, value in zip(columns, (messages, row.text, row.file, row.line), strict=True):
            column.append(value)
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, schema(), strict=True)]
    part.batch = pa.RecordBatch.from_arrays(arrays, schema=schema())
    return part


def _side_by_side(
    blocks: Iterator[tuple[bytes, str, int]], path: Path, format: str, template: PromptTemplate | None, workers: int
) -> Iterator[Part]:
    """The parts of all blocks, in order, while `workers` processes read ahead by a block or two."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet) as pool:
        ahead: deque[Future[Part]] = deque()
        try:
            for block in blocks:
                ahead.append(pool.submit(_block, *block, path, format, template))
                if len(ahead) > workers + 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool:
            raise MachineError(
                f"{path}: a process that read rows was ended from outside; too little memory, most likely"
            ) from None
        finally:
            for waiting in ahead:
                waiting.cancel()


def _quiet() -> None:
    """Signals are the business of the process that asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _block(block: bytes, kind: str, before: int, path: Path, format: str, template: PromptTemplate | None) -> Part:
    records = row_files.records_in(block, kind, before, path)
    return _part(one if isinstance(one, BadRow) else rows.interpret(one, path, format, template) for one in records)
