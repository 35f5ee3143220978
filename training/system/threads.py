"""With how many threads a run computes after its training: [Hardware] NUM_THREADS, in llama.cpp's processes as in our own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from training.system import this_machine

# Ours, for llama.cpp's processes; torch reads the other when it is loaded.
MOST, OPENMP = "FINETUNE_MOST_THREADS", "OMP_NUM_THREADS"


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """Within it torch in this process, and llama.cpp in those that it starts, compute with so many threads."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    values = {MOST: str(count)} if torch else {MOST: str(count), OPENMP: str(count)}
    with this_machine.variables(values):
        if torch:
            torch.set_num_threads(count)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)


def allowed(count: int) -> int:
    """As many of `count` threads as this process may compute with."""
    most = os.environ.get(MOST, "")
    return min(count, int(most)) if most.isdecimal() and int(most) else count


def variables() -> dict[str, str]:
    """What a process that has another's environment must be told of it."""
    return {MOST: os.environ[MOST]} if MOST in os.environ else {}
