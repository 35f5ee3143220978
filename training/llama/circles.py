"""An answer that goes round in circles: what greedy decoding of a small or hardly trained model comes to, and stays in."""

from __future__ import annotations

from collections.abc import Sequence

# The end of an answer is the same stretch of tokens over and over: so many times, and so many tokens, at least. A list or a
# table repeats less than that to the letter.
TIMES, TOKENS = 4, 64
LONGEST = 32  # tokens of a stretch that are looked for


def goes_round(ids: Sequence[int]) -> bool:
    """Whether an answer has come to repeat itself to the letter: it would do so up to its limit, and never stop."""
    if len(ids) < TOKENS:
        return False
    for length in range(1, LONGEST + 1):
        size = max(TIMES * length, -(-TOKENS // length) * length)
        # Most stretches differ in their last token already.
        if size <= len(ids) and ids[-1] == ids[-1 - length]:
            tail = list(ids[-size:])
            if tail[length:] == tail[:-length]:
                return True
    return False


def end(ids: Sequence[int]) -> int | None:
    """After how many tokens an answer has come to repeat itself; None where it does not."""
    return next((size for size in range(TOKENS, len(ids) + 1) if goes_round(ids[:size])), None)
