"""A process of a session of tests that has imported torch and its libraries: programs begin in forks of it, seconds sooner.

tests/support/adopted.py starts them. A program is the real one, from its first line to its exit code, with its own
arguments, environment and folder; only what it imports from outside is there already.
"""

from __future__ import annotations

import atexit
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from unittest import mock

from training.system import before_torch, forkserver
from training.system.forkserver import OFFLINE

# What a training imports besides.
PRELOADED = (*forkserver.PRELOADED, *forkserver.LATER, "datasets", "accelerate", "trl.trainer.sft_trainer")
# Read when a library is loaded, or when Python starts: whoever changes them gets a process that does both anew.
READ_AT_START = re.compile(
    "ACCELERATE|CUDA|DYLD|GOMP|HF_|HIP|HUGGING|KMP|LD_|LRU|MALLOC|MKL|OMP|ONEDNN|OPENBLAS|PYTHON|PYTORCH|ROCR|TOKENIZERS|"
    "TORCH|TRANSFORMERS|TRL"
)
# In the environment of whoever has compiled a function with it.
SET_BY_TORCH = {"TORCHINDUCTOR_CACHE_DIR"}
# By a program itself, before it loads torch.
SETTLED = OFFLINE.keys() | before_torch.THREADS.keys() | before_torch.CACHES.keys() | before_torch.ALLOCATOR.keys()
# As it is before any test changes it.
BEFORE = dict(os.environ)


@dataclass(frozen=True)
class Warmed:
    """A fork server of this test process, which is not the one that the package asks, and what its forks have by themselves."""

    server: forkserver.Server
    environment: dict[str, str]


@cache
def warmed() -> Warmed:
    """Started when a test first asks for it; its first fork waits for the imports."""
    aside, forkserver.server = forkserver.server, None
    with mock.patch.dict(os.environ, BEFORE, clear=True):
        before_torch.settle()  # as a program that starts one has done
        environment = {**os.environ, **OFFLINE}
        try:
            forkserver.start(PRELOADED)
            server = forkserver.server
        finally:
            forkserver.server = aside
    atexit.register(forget, server)
    return Warmed(server, environment)


def forget(server: forkserver.Server) -> None:
    """It ends when its stdin closes."""
    with suppress(OSError):
        server.process.stdin.close()
    server.process.wait()
    server.requests.close()
