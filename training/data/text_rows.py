"""The rows of a text file: a sample a line."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from training.data.raw_lines import numbered
from training.data.record import BadRow, Record


def lines(file: io.BufferedIOBase, path: Path, before: int = 0) -> Iterator[Record | BadRow]:
    """Each line as {text}. An opened file is UTF-8, unless it is damaged or was changed since."""
    for item in numbered(file, path, before):
        if isinstance(item, BadRow):
            yield item
        elif item[1].strip():
            yield Record(item[0], {"text": item[1].decode("utf-8", "surrogateescape")})
