"""Rows that are nearly the same as earlier ones, and questions that two rows answer differently: told before training.

What makes two texts alike is the share of their runs of characters that they have in common (Jaccard), which needs no words
and so serves Chinese as well. It is estimated from the least of many hashes of each row's runs (MinHash), so that no pair
is compared that has nothing in common: 100,000 rows take well under a minute.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from training.system import pool

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    Numbers = array[int] | NDArray[np.uint64]

RUN = 6  # characters of a run
HASHES, BANDS = 64, 16  # of a sketch, and into how many groups those are put to find who shares one
ALIKE = 0.8  # share of equal hashes from which on two rows are nearly the same: but for a word in a sentence, a name
SHORTEST, LONGEST = 40, 4000  # characters of a row: a short one is like others by chance; of a long one its beginning
MOST_ROWS = 200_000  # that are looked at
BATCH = 1000
MANY_ROWS = 10_000  # from which on several processes are worth their start
EMPTY = 0xFFFFFFFF
MIXER = 0x9E3779B1  # an odd number that spreads the bits of what it is multiplied with


def near_duplicates(rows: datasets.Dataset, normalised: array[int]) -> list[tuple[int, int]]:
    """Rows (by their numbers) that are nearly as an earlier one, each with that one, in order.

    normalised: a number for each row that is the same for rows that are equal but for white space: those are no such pair.
    Nor are two questions with the very same answers: to ask in other words is a way to teach.
    """
    import numpy as np

    count = min(len(rows), MOST_ROWS)
    if count < 2:
        return []
    sketches = np.empty((count, HASHES), dtype=np.uint32)
    answers = np.empty(count, dtype=np.int64)
    ranges = ((start, min(start + BATCH, count)) for start in range(0, count, BATCH))
    processes = pool.cores() if count >= MANY_ROWS and pool.copied() else 1
    held = rows.with_format("arrow").select_columns(["messages", "text"])
    for start, made, said in pool.in_order(_sketched, ranges, processes, (held,), "looking for rows that are alike"):
        sketches[start : start + len(made)] = made
        answers[start : start + len(made)] = said
    same = np.asarray(normalised)[:count]
    found: dict[int, int] = {}
    for later, earlier in _candidates(sketches):
        alike = (sketches[later] == sketches[earlier]).mean(axis=1) >= ALIKE
        alike &= (same[later] != same[earlier]) & (answers[later] != answers[earlier])
        for row, first in zip(later[alike].tolist(), earlier[alike].tolist(), strict=True):
            found[row] = min(first, found.get(row, first))
    return sorted(found.items())


def _sketched(rows: datasets.Dataset, start: int, end: int) -> tuple[int, NDArray[np.uint32], NDArray[np.int64]]:
    """The number of the first of these rows, the sketch of each, and a number for its answers.

    Texts have the same numbers in this process and its copies only, as Python hashes them.
    """
    import numpy as np

    sketches = np.full((end - start, HASHES), EMPTY, dtype=np.uint32)
    answers = np.empty(end - start, dtype=np.int64)
    for at, (text, answer) in enumerate(_texts(rows[start:end])):
        sketch(text, sketches[at])
        answers[at] = hash(answer)
    return start, sketches, answers


def sketch(text: str, into: NDArray[np.uint32]) -> None:
    """Write the sketch of a text: the least of HASHES hashes over its runs. A short text has none."""
    import numpy as np

    signs = " ".join(text[:LONGEST].casefold().split())
    if len(signs) < SHORTEST:
        return
    points = np.frombuffer(signs.encode("utf-32-le", "replace"), dtype=np.uint32)
    length = len(points) - RUN + 1
    # Products modulo 2^32, of which a CPU makes many at once; their upper bits, which decide which is the least, are well
    # mixed. Each hash has a line of its own, so that the least of it is found in one go.
    mixer = np.uint32(MIXER)
    runs = points[:length] * mixer
    for place in range(1, RUN):
        runs += points[place : place + length]
        runs *= mixer
    runs ^= runs >> np.uint32(15)
    first, second = _factors()
    hashes = first * runs
    hashes += second
    hashes.min(axis=1, out=into)


@lru_cache(maxsize=1)
def _factors() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The numbers that make HASHES hashes of one, the same in every run; as columns."""
    import numpy as np

    random = np.random.default_rng(20240313)
    first = random.integers(0, 1 << 32, (HASHES, 1), dtype=np.uint32) | np.uint32(1)
    return first, random.integers(0, 1 << 32, (HASHES, 1), dtype=np.uint32)


def _candidates(sketches: NDArray[np.uint32]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows that share a band of their sketches, each with the first row that has it: arrays of their numbers."""
    import numpy as np

    there = np.flatnonzero((sketches != EMPTY).any(axis=1))
    width = HASHES // BANDS
    for band in range(BANDS):
        part = sketches[there, band * width : (band + 1) * width].astype(np.uint64)
        key = np.zeros(len(there), dtype=np.uint64)
        for column in part.T:
            key = key * np.uint64(0x9E3779B97F4A7C15) + column
        _, first, group = np.unique(key, return_index=True, return_inverse=True)
        earlier = there[first[group.reshape(-1)]]
        later = earlier != there
        yield there[later], earlier[later]


def _texts(batch: pa.Table) -> Iterator[tuple[str, str]]:
    """Of each row all that it says, and what of that answers."""
    messages, texts = (batch[name].combine_chunks() for name in ("messages", "text"))
    turns = messages.flatten()
    roles, contents = (turns.field(name).to_pylist() for name in ("role", "content"))
    at = 0
    for count, text in zip(messages.value_lengths().to_pylist(), texts.to_pylist(), strict=True):
        if count is None:
            yield text, text
            continue
        end = at + count
        answers = (contents[one] for one in range(at, end) if roles[one] == "assistant")
        yield "\n".join(contents[at:end]), "\n".join(answers)
        at = end


def contradictions(rows: datasets.Dataset, prompts: Numbers, normalised: Numbers) -> list[tuple[int, int]]:
    """Rows whose first question an earlier one asks as well, in the same words, under the same system text and with the same
    tools, and answers otherwise; each with the first such row. Rows whose first answer is not learned are no such ones.

    `prompts`: a number for each row that is the same for equal questions.
    """
    import numpy as np

    asked, whole = np.asarray(prompts), np.asarray(normalised)
    order = np.lexsort((whole, asked))
    again = np.flatnonzero(asked[order][1:] == asked[order][:-1])
    numbers = np.unique(np.concatenate((order[again], order[again + 1])))[:MOST_ROWS]
    if not len(numbers):
        return []
    first: dict[tuple[str, ...], tuple[int, str]] = {}
    found = []
    at = 0
    for batch in rows.select(numbers).select_columns(["messages", "more"]).iter(batch_size=BATCH):
        for messages, more in zip(batch["messages"], batch["more"], strict=True):
            number, at = int(numbers[at]), at + 1
            exchange = _first_exchange(messages or (), json.loads(more) if more else {})
            if exchange is None:
                continue
            question, answer = exchange
            earlier, said = first.setdefault(question, (number, answer))
            if said != answer:
                found.append((number, earlier))
    return found


def _first_exchange(
    messages: Sequence[Mapping[str, str]], more: Mapping[str, Any]
) -> tuple[tuple[str, ...], str] | None:
    """What stands in front of the first answer, and that answer, with white space made alike; None where a greeting comes
    first or the answer is not learned. `more`: as parallel_reading.schema has it, read."""
    system = ""
    for number, turn in enumerate(messages):
        said = " ".join(turn["content"].split())
        if turn["role"] == "system":
            system += said
        elif turn["role"] == "user" and number + 1 < len(messages) and messages[number + 1]["role"] == "assistant":
            besides = more.get("turns", {}).get(str(number + 1), {})
            if not besides.get("trained", True):
                return None
            answer = " ".join(messages[number + 1]["content"].split()) + besides.get("more", "")
            return (more.get("tools", ""), system, said), answer
        else:
            return None
    return None
