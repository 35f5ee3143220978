"""Work of several processes on one long piece of data: results come back in order, and memory holds only those in flight."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from training.errors import MachineError
from training.system import foreign_code, this_machine

Result = TypeVar("Result")

AHEAD = 2  # tasks for each process that wait or are done before they are asked for

_shared: tuple[object, ...] = ()  # in a worker: what all tasks have in common


def cores() -> int:
    """How many processes can run at the same time."""
    return len(this_machine.processors())


def copied() -> bool:
    """Whether a process is made by copying this one, as Linux does it; elsewhere it starts anew, and takes seconds."""
    return sys.platform == "linux"


def in_order(
    work: Callable[..., Result],
    tasks: Iterable[tuple[object, ...]],
    processes: int,
    shared: tuple[object, ...] = (),
    what: str = "work",
) -> Iterator[Result]:
    """`work(*shared, *task)` of every task, in order, in `processes` processes; by this one alone when it is one.

    `what` the processes do, for the message of the MachineError when one was ended from outside.
    """
    if processes == 1:
        for task in tasks:
            yield work(*shared, *task)
        return
    context = multiprocessing.get_context("fork" if copied() else None)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(os.getpid(), shared)) as pool:
        ahead: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                ahead.append(pool.submit(_do, work, task))
                if len(ahead) >= AHEAD * processes:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool:
            raise MachineError(f"{what}: a process was ended from outside; too little memory, most likely") from None
        finally:
            for waiting in ahead:
                waiting.cancel()


def _begin(parent: int, shared: tuple[object, ...]) -> None:
    """Signals are the business of the process that asked; when it is killed, its workers go with it."""
    global _shared
    _shared = shared
    foreign_code.keep_out()
    # What was there before is never collected here: looking through it would copy all of its memory.
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before this line
            os._exit(1)


PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _do(work: Callable[..., Result], task: tuple[object, ...]) -> Result:
    return work(*_shared, *task)
