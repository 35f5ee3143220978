"""Programs that begin in a fork of a process that has imported torch and its libraries: seconds less for each.

The program is the real one, from its first line to its exit code, with its own arguments, environment and folder; only
what it imports from outside is there already. Not for tests of that: of what is set before torch is loaded, of the start
or the end of a Python, of signals, or of how `ps` shows a program.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

from training.system import before_torch, forkserver
from training.system.forkserver import OFFLINE, Child, Request

# What a training imports besides.
PRELOADED = (*forkserver.PRELOADED, "datasets", "accelerate", "trl.trainer.sft_trainer")
# Read when a library is loaded, or when Python starts: whoever changes them gets a process that does both anew.
READ_AT_START = re.compile(
    "ACCELERATE|CUDA|DYLD|GOMP|HF_|HIP|HUGGING|KMP|LD_|LRU|MALLOC|MKL|OMP|ONEDNN|OPENBLAS|PYTHON|PYTORCH|ROCR|TOKENIZERS|"
    "TORCH|TRANSFORMERS|TRL"
)
# In the environment of whoever has compiled a function with it.
SET_BY_TORCH = {"TORCHINDUCTOR_CACHE_DIR"}
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


def run(
    script: Path, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path | None, timeout: float
) -> tuple[int, str, str] | None:
    """Run a script to its end, its stdin empty: exit code, stdout, stderr. None where a fork cannot have this environment."""
    more = _added(environment)
    if more is None:
        return None
    request = Request(
        script=str(script), arguments=list(arguments), extra=more, cwd=str(cwd or Path.cwd()), starter=os.getpid()
    )
    late = threading.Event()
    with tempfile.TemporaryFile() as errors, _asked(request, errors.fileno()) as child:

        def kill() -> None:
            late.set()
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)

        timer = threading.Timer(timeout, kill)
        timer.start()
        try:
            out, code = child.stdout.read(), child.wait()
        finally:
            timer.cancel()
        errors.seek(0)
        if late.is_set():
            raise subprocess.TimeoutExpired([str(script), *arguments], timeout, out, errors.read())
        return code, out.decode(), errors.read().decode()


def _asked(request: Request, errors: int) -> Child:
    """The fork for a request: `errors` is its stderr."""
    out_read, out_write = os.pipe()
    status_read, status_write = os.pipe()
    nothing = Path(os.devnull).open("r+b", buffering=0)  # noqa: SIM115 - the child closes it
    handles = [nothing.fileno(), out_write, errors, status_write]
    socket.send_fds(warmed().server.requests, [json.dumps(request).encode()], handles)
    os.close(out_write)
    os.close(status_write)
    child = Child(status_read, nothing, os.fdopen(out_read, "rb"))
    assert child.pid is not None, "the fork server has died"
    return child


def _added(environment: Mapping[str, str]) -> dict[str, str] | None:
    """What a fork is to have besides; None where it has what it cannot lose, or what is read too late."""
    own = warmed().environment
    settled = OFFLINE.keys() | before_torch.THREADS.keys() | before_torch.CACHES.keys() | before_torch.ALLOCATOR.keys()
    lost = own.keys() - environment.keys() - settled - {"PYTEST_CURRENT_TEST"}
    more = {name: value for name, value in environment.items() if own.get(name) != value}
    return None if lost or any(map(READ_AT_START.match, more.keys() - SET_BY_TORCH)) else more
