"""The first rendering of a chat template that others wrote: in a process with a limit of memory and time."""

from __future__ import annotations

import multiprocessing
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from training.errors import UserError
from training.system import pool

SECONDS = 10  # of the processor: a busy machine is no fault of the template
PATIENCE = 60  # seconds by the clock, after which nothing is known of it
MEMORY = 1 << 30  # bytes that it may take besides what this process has
TOO_LONG, TOO_MUCH = "time", "memory"


def check(source: str, work: Callable[[], object]) -> None:
    """Do `work` in a copy of this process, of which nothing comes back. UserError where it would take too much.

    What `work` refuses is no business of this: it will refuse it again. Where processes are not made by copying
    (outside Linux) nothing is tried.
    """
    if not pool.copied():
        return
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_try, args=(theirs, work), daemon=True)
    process.start()
    theirs.close()
    told = ""
    try:
        if ours.poll(PATIENCE):
            told = ours.recv()
    except EOFError:
        process.join()
        told = TOO_LONG if process.exitcode == -signal.SIGXCPU else TOO_MUCH
    finally:
        ours.close()
        process.kill()
        process.join()
    if told == TOO_LONG:
        raise UserError(
            f"{source}: the chat template is not rendered within {SECONDS} seconds; CHAT_TEMPLATE names another"
        )
    if told == TOO_MUCH:
        raise UserError(
            f"{source}: a short chat takes more than {MEMORY >> 30} GB of memory to render, or ends the process that renders "
            "it; CHAT_TEMPLATE names another"
        )


def _try(told: Connection, work: Callable[[], object]) -> None:
    """The process that tries it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + MEMORY
    with suppress(ValueError, OSError):  # a lower limit holds already
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        work()
    except MemoryError:
        told.send(TOO_MUCH)
    except Exception:
        told.send("")
    else:
        told.send("")
