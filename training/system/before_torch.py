"""Environment variables that torch and its libraries read when they are loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata

from training.system import launchers

THREADS = {
    # Threads that wait for each other spin for a quarter of a millisecond, which most waits take, and then sleep. Asleep at
    # once (PASSIVE without the count) they are woken 2,700 times a step, which took a tenth of it and more; spinning on, as
    # is the default, they made a step beside other programs many times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "20000",
}
CACHES = {
    # oneDNN compiles a routine of about a megabyte for each new shape of a matrix product, and rows of text bring new ones at
    # every step. It and torch would keep 1024 each, which comes to gigabytes after some hundred steps. A step needs some forty.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}


# Of a CUDA card torch asks for memory in pieces that can grow, else what is freed in one size is lost for another: rows are
# of many lengths. Unsloth sets the same, but by then a card has been asked how much of it is free, and the allocator has
# read its settings. ROCm knows no such pieces.
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
OLDER = "PYTORCH_CUDA_ALLOC_CONF"


def settle(values: Mapping[str, str] = THREADS | CACHES | ALLOCATOR) -> None:
    """Set them, before torch is imported, for this process and those that it starts; a value of the user's own stands,
    but for those by which a launcher speaks to torch's libraries."""
    launchers.leave_out()
    given = set(os.environ)
    if "OMP_WAIT_POLICY" in given:  # which a count would overrule
        given.add("GOMP_SPINCOUNT")
    # torch's older name for the same.
    if OLDER in given or "+rocm" in metadata.version("torch"):
        given.add("PYTORCH_ALLOC_CONF")
    os.environ.update({name: value for name, value in values.items() if name not in given})
