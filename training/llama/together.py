"""Greedy answers to several prompts at once: a step for all of them takes little longer than for one.

The inner side of process.py, as model.py is. A small model's step is read of weights and start of threads, whoever waits
for it. Rounding may differ from an answer alone, where the first two choices are as good as equal.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.llama import circles

# Tokens of all prompts and answers that are held at once: what one answer to the longest prompt may take anyway.
TOKENS = 4096
MOST = 32  # answers at once: beyond it each takes time of its own


@dataclass
class Growing:
    """An answer as it grows. `most`: tokens that it may have; `at`: the position of the token that comes next."""

    at: int
    most: int
    began: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    stopped: bool = False
    # A character may span tokens.
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def take(self, token: int, ends: bool, piece: Callable[[int], bytes]) -> bool:
        """Add a token. Whether the answer goes on after it."""
        self.stopped = ends
        if not ends:
            self.ids.append(token)
            self.pieces.append(self.decoder.decode(piece(token)))
        if ends or len(self.ids) >= self.most or circles.goes_round(self.ids):
            self.pieces.append(self.decoder.decode(b"", final=True))
            self.seconds = time.perf_counter() - self.began
            return False
        return True

    def result(self) -> dict[str, Any]:
        """As `answer` of model.py gives one."""
        text = "".join(self.pieces)
        return {"text": text, "ids": self.ids, "stopped": self.stopped, "seconds": self.seconds, "unread": False}


def groups(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of neighbouring prompts that are answered together; `sizes`: tokens that each may come to.

    Each has a part of the memory as large as the largest's.
    """
    group: list[int] = []
    for number, size in enumerate(sizes):
        if group and (len(group) == MOST or (len(group) + 1) * max(size, *(sizes[one] for one in group)) > TOKENS):
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def grow(
    prompts: Sequence[Sequence[int]],
    most: Sequence[int],
    read: Callable[[int, Sequence[int]], np.ndarray],
    step: Callable[[Sequence[tuple[int, int, int]]], np.ndarray],
    ends: Callable[[int], bool],
    piece: Callable[[int], bytes],
) -> list[dict[str, Any]]:
    """The answers. `read` feeds sequence n a prompt and gives the logits after it; `step` feeds (sequence, token, position)s
    and gives theirs; `ends`: whether a token ends an answer."""
    after = [read(number, ids) for number, ids in enumerate(prompts)]
    answers = [Growing(len(ids), limit) for ids, limit in zip(prompts, most, strict=True)]
    going = list(range(len(prompts)))
    rows = after
    while going:
        fed = []
        for number, row in zip(going, rows, strict=True):
            one, token = answers[number], int(row.argmax())
            if one.take(token, ends(token), piece):
                fed.append((number, token, one.at))
                one.at += 1
        going = [number for number, _, _ in fed]
        if fed:
            rows = list(step(fed))
    return [one.result() for one in answers]
