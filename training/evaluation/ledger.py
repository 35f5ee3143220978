"""The row ledger: what the training did to each row that was learned, so that the next version of the data is better."""

from __future__ import annotations

import csv
import io
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from training.data import Item
from training.data.dataset import Contradiction
from training.data.encoding import IGNORED
from training.data.held_out import LONGEST
from training.evaluation.generate import losses
from training.system import privacy

if TYPE_CHECKING:
    import datasets
    from peft import PeftModel

    from training.fast_cpu.decoder import Decoder

SEED = 3407
MOST, TOGETHER = 512, 4  # rows that are measured; at a time, between looks at the clock
LEAST_SECONDS, MOST_SECONDS, SHARE = 5.0, 60.0, 0.05  # of the training's time, within these bounds
NAMED = 5  # rows of each kind that the report names
CONTRADICTS, WORSE, KNOWN, STUCK = "contradicts another", "got worse", "known already", "never moved"
# Nats a token. 0.2: the base model gives each token of the answer 82 % in the mean, and has little to learn of it.
EASY, NOTICED = 0.2, 0.02
# A row that moved by less than a quarter of what half of the rows moved by did not learn with them.
BEHIND, LEARNED = 0.25, 0.05


@dataclass(frozen=True)
class Entry:
    """One row. Losses are means over `tokens` trained tokens of it, in nats; None where it was not measured.

    line: as a Record has it. other: the line of the row that it contradicts; other_file: where that is another file.
    """

    file: str
    line: int
    tokens: int = 0
    before: float | None = None
    after: float | None = None
    finding: str = ""
    other: int | None = None
    other_file: str = ""


@dataclass(frozen=True)
class Ledger:
    """What the report tells: the first rows of each kind, how many each has, and of how many rows."""

    measured: int = 0
    learned: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    named: tuple[Entry, ...] = ()


def take(
    model: PeftModel,
    rows: datasets.Dataset,
    contradictions: Sequence[Contradiction],
    seconds: float,
    tell: Callable[[float], None] = lambda share: None,
    layers: Decoder | None = None,
) -> list[Entry]:
    """Measure trained rows with the adapter off and on, as many as fit into `seconds`, and judge them.

    rows: tokenised, with file and line; those that contradict others come first, the rest by chance, which is seeded.
    layers: the hand-written layers for CPUs of a model that was trained with them.
    """
    began, longest = time.monotonic(), 0.0
    measured: dict[tuple[str, int], Entry] = {}
    numbers = _order(rows, contradictions)
    met: set[int] = set()
    for at in range(0, len(numbers), TOGETHER):
        spent = time.monotonic() - began
        if at and spent + longest > seconds:  # of long rows a few take seconds
            break
        tell(min(1.0, max(at / len(numbers), spent / seconds)))
        chosen = [rows[number] for number in numbers[at : at + TOGETHER]]
        for entry in _measured(model, [row for row in chosen if _is_new(row, met)], layers):
            place = (entry.file, entry.line)
            measured[place] = _both(measured[place], entry) if place in measured else entry
        longest = max(longest, time.monotonic() - began - spent)
    for one in contradictions:
        place = (one.file, one.line)
        elsewhere = one.other_file if one.other_file != one.file else ""
        entry = measured.get(place, Entry(one.file, one.line))
        measured[place] = replace(entry, other=one.other, other_file=elsewhere)
    return judged(list(measured.values()))


def budget(train_seconds: float) -> float:
    """The seconds that the ledger of a training of this length may take."""
    return min(MOST_SECONDS, max(LEAST_SECONDS, SHARE * train_seconds))


def _order(rows: datasets.Dataset, contradictions: Sequence[Contradiction]) -> list[int]:
    """Which sequences are measured, and in which order."""
    import numpy as np

    numbers = np.random.default_rng(SEED).permutation(len(rows))
    if contradictions:
        wanted = {place for one in contradictions for place in ((one.file, one.line), (one.other_file, one.other))}
        places = zip(rows["file"][:], rows["line"][:], strict=True)
        first = np.fromiter((place in wanted for place in places), dtype=bool, count=len(rows))[numbers]
        numbers = np.concatenate((numbers[first], numbers[~first]))
    found: list[int] = numbers[:MOST].tolist()
    return found


def _is_new(row: Mapping[str, Any], met: set[int]) -> bool:
    """Whether a sequence is none that was met: a row that is taken twice (mine.jsonl*2) is measured once."""
    mark = hash((row["file"], row["line"], *row["input_ids"], None, *row["labels"]))
    if mark in met:
        return False
    met.add(mark)
    return True


def _measured(model: PeftModel, rows: Sequence[Mapping[str, Any]], layers: Decoder | None) -> list[Entry]:
    pairs = [(row, item) for row in rows if (item := _item(row)) is not None]
    items = [item for _, item in pairs]
    with model.disable_adapter():
        before = losses(model, items, layers)
    after = losses(model, items, layers)
    return [
        Entry(row["file"], row["line"], item.tokens, privacy.finite(old), privacy.finite(new))
        for (row, item), old, new in zip(pairs, before, after, strict=True)
    ]


def _item(row: Mapping[str, Any]) -> Item | None:
    """A tokenised row as one to be measured: LONGEST tokens of it at most, with the beginning of what is trained."""
    ids, labels = row["input_ids"], row["labels"]
    first = next((at for at, label in enumerate(labels) if label != IGNORED), len(labels))
    start = max(0, min(first - LONGEST // 2, len(ids) - LONGEST))
    item = Item(ids[start : start + LONGEST], labels[start : start + LONGEST], "", "", [], 0)
    return item if item.tokens else None


def _both(one: Entry, other: Entry) -> Entry:
    """Two sequences of one row, as one."""
    tokens = one.tokens + other.tokens

    def mean(first: float | None, second: float | None) -> float | None:
        return None if first is None or second is None else (first * one.tokens + second * other.tokens) / tokens

    return replace(one, tokens=tokens, before=mean(one.before, other.before), after=mean(one.after, other.after))


def judged(entries: Sequence[Entry]) -> list[Entry]:
    """The rows with what is found of each: the contradicting first, then the worst, each kind by what it lost or kept."""
    falls = [fall for entry in entries if (fall := _fall(entry)) is not None]
    usual = statistics.median(falls) if falls else 0.0
    found = [replace(entry, finding=_finding(entry, usual)) for entry in entries]
    kinds = (CONTRADICTS, WORSE, STUCK, KNOWN, "")
    return sorted(found, key=lambda one: (kinds.index(one.finding), -(one.after or 0.0), one.file, abs(one.line)))


def _fall(entry: Entry) -> float | None:
    """The share of its loss that a row lost."""
    if entry.before is None or entry.after is None or not entry.before:
        return None
    return (entry.before - entry.after) / entry.before


def _finding(entry: Entry, usual: float) -> str:
    if entry.other is not None:
        return CONTRADICTS
    fall = _fall(entry)
    if fall is None or entry.before is None or entry.after is None:
        return ""
    if entry.after > entry.before * (1 + NOTICED) + NOTICED:
        return WORSE
    if entry.before < EASY:
        return KNOWN
    return STUCK if usual >= LEARNED and fall < BEHIND * usual else ""


def ledger(entries: Sequence[Entry], learned: int) -> Ledger:
    """What the report tells of judged rows. learned: how many rows there are."""
    if not entries:
        return Ledger()
    kinds = (CONTRADICTS, WORSE, STUCK, KNOWN)
    each = {kind: [entry for entry in entries if entry.finding == kind] for kind in kinds}
    return Ledger(
        measured=sum(entry.before is not None for entry in entries),
        learned=learned,
        counts={kind: len(found) for kind, found in each.items()},
        named=tuple(entry for found in each.values() for entry in found[:NAMED]),
    )


def table(entries: Sequence[Entry]) -> str:
    """The rows as CSV. `row` in place of `line` where a file is one line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("file", "line", "row", "tokens", "before", "after", "change", "finding", "other"))
    writer.writerows(map(_cells, entries))
    return out.getvalue()


def _cells(entry: Entry) -> Iterator[str]:
    yield privacy.redact(entry.file)
    yield str(entry.line) if entry.line >= 0 else ""
    yield "" if entry.line >= 0 else str(-entry.line)
    yield str(entry.tokens) if entry.tokens else ""
    change = None if entry.before is None or entry.after is None else entry.after - entry.before
    for number in (entry.before, entry.after, change):
        yield "" if number is None else f"{number:.4f}"
    yield entry.finding
    other = "" if entry.other is None else str(abs(entry.other))
    yield f"{privacy.redact(entry.other_file)}:{other}" if entry.other_file else other
