"""Rows that are nearly the same as earlier ones, and questions that two rows answer differently: told before training.

What makes two texts alike is the share of their runs of characters that they have in common (Jaccard), which needs no words
and so serves Chinese as well. It is estimated from the least of many hashes of each row's runs (MinHash), so that no pair
is compared that has nothing in common: 100,000 rows take well under a minute.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from numpy.typing import NDArray

    Numbers = array[int] | NDArray[np.uint64]

RUN = 6  # characters of a run
HASHES, BANDS = 64, 16  # of a sketch, and into how many groups those are put to find who shares one
ALIKE = 0.8  # share of equal hashes from which on two rows are nearly the same: but for a word in a sentence, a name
SHORTEST, LONGEST = 40, 4000  # characters of a row: a short one is like others by chance; of a long one its beginning
MOST_ROWS = 200_000  # that are looked at
BATCH = 1000
EMPTY = 0xFFFFFFFF


def near_duplicates(rows: datasets.Dataset, normalised: array[int]) -> list[tuple[int, int]]:
    """Rows (by their numbers) that are nearly as an earlier one, each with that one, in order.

    normalised: a number for each row that is the same for rows that are equal but for white space: those are no such pair.
    Nor are two questions with the very same answers: to ask in other words is a way to teach.
    """
    import numpy as np

    count = min(len(rows), MOST_ROWS)
    if count < 2:
        return []
    sketches = np.full((count, HASHES), EMPTY, dtype=np.uint32)
    # Only compared within this process, where equal texts have equal hashes.
    answers = np.zeros(count, dtype=np.int64)
    at = 0
    for batch in rows.select(range(count)).select_columns(["messages", "text"]).iter(batch_size=BATCH):
        for text, answer in _texts(batch):
            sketch(text, sketches[at])
            answers[at] = hash(answer)
            at += 1
    same = np.asarray(normalised)[:count]
    found: dict[int, int] = {}
    for later, earlier in _candidates(sketches):
        alike = (sketches[later] == sketches[earlier]).mean(axis=1) >= ALIKE
        alike &= (same[later] != same[earlier]) & (answers[later] != answers[earlier])
        for row, first in zip(later[alike].tolist(), earlier[alike].tolist(), strict=True):
            found[row] = min(first, found.get(row, first))
    return sorted(found.items())


def sketch(text: str, into: NDArray[np.uint32]) -> None:
    """Write the sketch of a text: the least of HASHES hashes over its runs. A short text has none."""
    import numpy as np

    signs = " ".join(text[:LONGEST].casefold().split())
    if len(signs) < SHORTEST:
        return
    points = np.frombuffer(signs.encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.uint64)
    length = len(points) - RUN + 1
    runs = np.zeros(length, dtype=np.uint64)
    for place in range(RUN):
        runs = runs * np.uint64(0x100000001B3) + points[place : place + length]
    first, second = _factors()
    # Multiply and shift: the upper half of a product is well mixed.
    into[:] = ((runs[:, None] * first + second) >> np.uint64(32)).min(axis=0)


def _factors() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The numbers that make HASHES hashes of one, the same in every run."""
    import numpy as np

    random = np.random.default_rng(20240313)
    first = random.integers(1, 1 << 63, HASHES, dtype=np.uint64) | np.uint64(1)
    return first, random.integers(0, 1 << 63, HASHES, dtype=np.uint64)


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


def _texts(batch: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Of each row all that it says, and what of that answers."""
    for messages, text in zip(batch["messages"], batch["text"], strict=True):
        if messages is None:
            yield text, text
        else:
            answers = (turn["content"] for turn in messages if turn["role"] == "assistant")
            yield "\n".join(turn["content"] for turn in messages), "\n".join(answers)


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
