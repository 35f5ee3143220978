"""Rows that answer the same question differently: a model cannot learn both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.data import parallel_reading
from training.data.oddities import Seen
from training.data.rows import Row

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from numpy.typing import NDArray

# Rows that are looked at, of one prompt and in all: where a thousand begin with "Hello", their later turns may differ.
TOGETHER, LOOKED_AT = 50, 5000


@dataclass(frozen=True)
class Contradiction:
    """A row, and the line of an earlier one of the same file that has the same prompt and another answer."""

    file: str
    line: int
    other: int


def find(rows: datasets.Dataset, seen: Seen, chosen: NDArray[np.int64]) -> list[Contradiction]:
    """The contradictions among the chosen rows (numbers of them, ascending), as far as LOOKED_AT rows show them."""
    found: list[Contradiction] = []
    numbers = _alike(seen, chosen)
    first: dict[tuple[object, ...], tuple[str, int]] = {}
    for record in rows.select(numbers) if len(numbers) else ():
        row = parallel_reading.row_of(record)
        if row.messages is None or not row.messages[-1].trained:
            continue
        prompt, answer = _parts(row)
        answered, line = first.setdefault(prompt, (answer, row.line))
        if answered != answer:
            found.append(Contradiction(row.file, row.line, line))
    return found


def _alike(seen: Seen, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of the first rows that have a prompt in common, where they are not all the same row; ascending."""
    import numpy as np

    if not len(chosen):
        return chosen
    prompts, whole = np.asarray(seen.prompts)[chosen], np.asarray(seen.normalised)[chosen]
    order = np.argsort(prompts, kind="stable")
    starts = np.concatenate(([0], np.flatnonzero(np.diff(prompts[order])) + 1))
    sizes = np.diff(np.concatenate((starts, [len(order)])))
    place = np.arange(len(order)) - np.repeat(starts, sizes)  # of each row within its group
    differs = np.maximum.reduceat(whole[order] != np.repeat(whole[order][starts], sizes), starts)
    numbers: NDArray[np.int64] = np.sort(order[np.repeat(differs, sizes) & (place < TOGETHER)])
    return chosen[numbers[:LOOKED_AT]]


def _parts(row: Row) -> tuple[tuple[object, ...], str]:
    """All that stands in front of a row's last answer, and that answer, white space made alike."""
    turns = [(turn.role, " ".join(turn.content.split()), turn.more) for turn in row.messages or ()]
    return (row.tools, *turns[:-1]), " ".join(turns[-1][1:])
