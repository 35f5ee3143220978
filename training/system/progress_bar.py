"""How far a long piece of work is, and when it ends: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from training.system import privacy
from training.system.wording import clock

SILENT = 2.0  # seconds that a piece of work may take before a bar is shown
EVERY = 10.0  # seconds between two lines

Advance = Callable[[int, int], None]  # (of the whole, rows), both since the last call


@contextmanager
def gauge(what: str, total: int, say: Callable[[str], None], unit: str = "rows") -> Iterator[Advance]:
    """Give a function to be told of what is done; `total` is that of its first numbers, in any unit.

    `what` is done, for the user: "reading rows.jsonl"; `unit`: what its second numbers count. Short work is not spoken
    of; long work has the last word, too.
    """
    began = told = time.monotonic()
    done = rows = 0
    bar = _bar(privacy.shown(what), total)

    def advance(more: int, more_rows: int) -> None:
        nonlocal done, rows, told
        done, rows = done + more, rows + more_rows
        bar.set_postfix_str(f"{rows:,} {unit}", refresh=False)
        bar.update(more)
        now = time.monotonic()
        if bar.disable and now - told >= EVERY and 0 < done < total:
            told = now
            left = (now - began) / done * (total - done)
            say(f"{what}: {rows:,} {unit}, {100 * done / total:.0f} %, eta {clock(left)}")

    try:
        yield advance
    finally:
        bar.close()
    took = time.monotonic() - began
    if took >= EVERY:
        say(f"{what}: {rows:,} {unit} in {clock(took)}, {rows / took:,.0f} a second")


def _bar(what: str, total: int) -> Any:
    from tqdm import tqdm

    shown = sys.stderr.isatty()
    columns = rows = 0
    # A terminal that does not know its size says 0; one that was closed a moment ago says nothing.
    with suppress(OSError):
        columns, rows = os.get_terminal_size(sys.stderr.fileno()) if shown else (0, 0)
    return tqdm(
        total=total,
        desc=what,
        bar_format="{desc}: {percentage:3.0f}%|{bar}|{postfix}, eta {remaining}",
        delay=SILENT,
        leave=False,
        disable=not shown,
        file=sys.stderr,
        ncols=(columns or 80) - 1,
        nrows=rows or 24,
    )
