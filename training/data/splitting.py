"""Deal the rows out to training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def split(
    prompts: Sequence[int], validation_share: float, test_share: float, seed: int
) -> tuple[list[NDArray[np.int64]], list[str]]:
    """Deal rows out to [train, validation, test]: three sorted integer arrays of row numbers, and notes on what was not possible.

    `prompts` holds one number a row; rows with the same number stay together. Seeded; never empties the training rows; a
    part that would hold no row, or no whole group of rows, is left empty, and a note says so.
    """
    import numpy as np

    total = len(prompts)
    numbers = np.asarray(prompts, dtype=np.uint64)
    _, first, group, sizes = np.unique(numbers, return_index=True, return_inverse=True, return_counts=True)
    by_place = np.argsort(first, kind="stable")  # groups in the order of the file, so that a hash does not choose
    order = by_place[np.random.default_rng(seed).permutation(len(sizes))]
    owner = np.zeros(len(sizes), dtype=np.int8)
    notes, left = [], len(sizes)
    for number, name, share in ((2, "TEST_SPLIT", test_share), (1, "VALIDATION_SPLIT", validation_share)):
        if not share:
            continue
        wanted, taken = int(total * share + 0.5), 0
        for index in order:
            if taken == wanted or left == 1:
                break
            if owner[index] == 0 and taken + sizes[index] <= wanted:
                owner[index] = number
                taken += int(sizes[index])
                left -= 1
        what = "validation" if number == 1 else "test"
        if not taken:
            reason = "too few" if wanted == 0 or total < 2 else "too alike (rows with equal prompts stay together)"
            notes.append(
                f"no {what} rows: {total} row{'s are' if total != 1 else ' is'} {reason} for {name} = {share:g}"
            )
    owners = owner[group.reshape(-1)]
    return [np.flatnonzero(owners == number) for number in (0, 1, 2)], notes


def deal(prompts: Sequence[int], validation: float, test: float, seed: int) -> NDArray[np.int8]:
    """The part of each row (0 train, 1 validation, 2 test; an int8 array): `split`, with no wanted part empty.

    A part that its share leaves without rows gets the smallest group of equal prompts, as long as a part has two groups.
    """
    import numpy as np

    numbers = np.asarray(prompts, dtype=np.uint64)
    parts, _ = split(prompts, validation, test, seed)
    owner = np.zeros(len(prompts), dtype=np.int8)
    for number, part in enumerate(parts):
        owner[part] = number
    for number, share in ((1, validation), (2, test)):
        if not share or (owner == number).any():
            continue
        for giver in (0, 1, 2):
            groups, first, sizes = np.unique(numbers[owner == giver], return_index=True, return_counts=True)
            if len(groups) > 1:
                smallest = groups[np.lexsort((first, sizes))[0]]  # the first one in the file of those of equal size
                owner[numbers == smallest] = number
                break
    return owner
