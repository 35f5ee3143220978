"""Memory of a training on a CPU, kept from step to step.

Each step takes and frees the same gigabytes. glibc gives what is free at the heap's end back to the system at once, and the
next step would be handed it anew, zeroed page by page: a twentieth of its time (benchmarks/README.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of mallopt (malloc.h).
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
# Blocks beyond it are never part of the heap; glibc's largest, which it comes to by itself.
LARGEST = 32 * 2**20
# Free memory at the heap's end that stays, likewise; and in a training.
USUAL, ALL = 2 * LARGEST, 2**31 - 1


@contextmanager
def kept() -> Iterator[None]:
    """Keep what is freed for what comes; at the end it goes back to the system. Nothing where the C library is another."""
    libc = _glibc()
    if libc is not None:
        libc.mallopt(MMAP_THRESHOLD, LARGEST)
        libc.mallopt(TRIM_THRESHOLD, ALL)
    try:
        yield
    finally:
        if libc is not None:
            libc.mallopt(TRIM_THRESHOLD, USUAL)
            give_back()


def give_back() -> None:
    """Let the system have what is free."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(ctypes.c_size_t(0))


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    # Windows has no such thing.
    except (OSError, TypeError):
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
