"""The lines of a data file as bytes, numbered and of bounded length; or blocks of them, for several processes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from training.data.opening import DAMAGE, damaged
from training.data.record import BadRow

MAX_ROW_BYTES = 16 << 20  # a row of 16 MiB is some four million tokens: no model takes it, and it is a broken file
CHUNK = 1 << 16
TOO_LONG = f"the row is longer than {MAX_ROW_BYTES >> 20} MiB"


def numbered(file: io.BufferedIOBase, path: Path, before: int = 0) -> Iterator[tuple[int, bytes] | BadRow]:
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
        yield BadRow(str(path), number + 1, damaged(error), fatal=True)


def blocks(file: io.BufferedIOBase, path: Path, size: int) -> Iterator[tuple[bytes, int] | BadRow]:
    """The file as blocks of whole lines, of about `size` bytes: (bytes, lines before it).

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
    yield BadRow(str(path), before + 1, damaged(damage), fatal=True)


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
