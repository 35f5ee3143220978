"""Environment variables that torch and its libraries read when they are loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping

THREADS = {
    # Threads that wait for each other sleep instead of spinning: beside other programs, spinning made a step many times
    # slower, see benchmarks/.
    "OMP_WAIT_POLICY": "PASSIVE",
}
CACHES = {
    # oneDNN compiles a routine of about a megabyte for each new shape of a matrix product, and rows of text bring new ones at
    # every step. It and torch would keep 1024 each, which comes to gigabytes after some hundred steps.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
    "LRU_CACHE_CAPACITY": "256",
}


def settle(values: Mapping[str, str] = THREADS | CACHES) -> None:
    """Set them, before torch is imported, for this process and those that it starts; a value of the user's own stands."""
    for name, value in values.items():
        os.environ.setdefault(name, value)
