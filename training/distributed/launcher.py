"""The other processes of a training on this machine: rank 0, which owns the run, starts them, watches them, ends them.

Each is a worker.py in a session of its own: a terminal's Ctrl-C is for rank 0, which tells them when to stop. Its stdin
brings what it is to do, and closes with rank 0, however that ended; the worker then ends too. What it says comes back in
a pipe, into the run's log.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from loguru import logger

from training import runs
from training.distributed import rendezvous
from training.errors import RunError
from training.runs import Run, checkpoint
from training.settings.table import Hardware
from training.system import forkserver, shared_secret, this_machine
from training.train import Order, Place, Team, meeting, team
from training.train.meeting import Key
from training.train.team import JOINING

if TYPE_CHECKING:
    from torch.distributed import Store

    # The other processes have no use for all that makes a plan.
    from training.plan import Plan

WORKER = Path(__file__).with_name("worker.py")
READY = b"@ready\n"  # a worker's line: its model is loaded
# Lines of a worker's last words that a message has.
LAST = 3
# Seconds in which a worker ends by itself after the training.
ENDING = 10.0
# Seconds after a worker's end in which rank 0 must have noticed.
STUCK = 60.0


def send(order: Order, stream: IO[bytes]) -> None:
    """Write an order to a worker's stdin."""
    data = pickle.dumps(order)  # between this program's own processes, and never on a disk
    rest = memoryview(struct.pack("!Q", len(data)) + data)
    while rest:  # an unbuffered pipe may take a part only
        rest = rest[stream.write(rest) :]
    stream.flush()


def receive(stream: IO[bytes]) -> Order | None:
    """Read it there; None when rank 0 has gone."""
    head = stream.read(8)
    data = stream.read(struct.unpack("!Q", head)[0]) if len(head) == 8 else b""
    order: Order | None = pickle.loads(data) if data else None
    return order


class Worker:
    """One of the other ranks: its process, and what it last said."""

    def __init__(self, order: Order, on_end: Callable[[Worker], None]) -> None:
        self.rank, self.size = order.place.rank, order.place.size
        self.ready = threading.Event()
        self.pid: int | None = None  # known once it runs
        self.code: int | None = None
        self._last: deque[str] = deque(maxlen=LAST)
        on_cpu = order.settings.hardware.device == "cpu"
        # Neither a card nor its environment variables may be touched before a fork.
        card = {} if on_cpu else this_machine.card(order.place.local_rank)
        self.process = forkserver.popen(WORKER, [], card, fork=on_cpu)
        self._thread = threading.Thread(target=self._attend, args=(order, on_end), daemon=True)
        self._thread.start()

    def _attend(self, order: Order, on_end: Callable[[Worker], None]) -> None:
        """Give it its order, listen until it has nothing more to say, and note how it ended."""
        self.pid = self.process.pid
        with suppress(OSError):  # it has ended already; the exit code says how
            send(order, self.process.stdin)
        for line in self.process.stdout:
            if line == READY:
                logger.debug("process {} of {} (pid {}) has its model", self.rank, self.size, self.pid)
                self.ready.set()
            elif words := line.decode("utf-8", "replace").rstrip():
                self._last.append(words)
                logger.debug("process {}: {}", self.rank, words)
        self.code = self.process.wait()
        on_end(self)

    def end(self) -> None:
        """Let it end, or make it; returns when it has."""
        with suppress(OSError, ValueError):
            self.process.stdin.close()
        self._thread.join(ENDING)
        if self.code is None and self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._thread.join(ENDING)

    def words(self) -> str:
        """How it ended, for a person."""
        who = f"process {self.rank} of {self.size} (NUM_PROCESSES)"
        if self.code is not None and self.code < 0:
            return f"{who} was killed by {signal.Signals(-self.code).name}"
        last = "\n  ".join(self._last)
        return f"{who} ended with exit code {self.code}" + (f"; its last words:\n  {last}" if last else "")


class Crew:
    """All of them, and the order of the process that started them."""

    def __init__(
        self, orders: list[Order], server: Store | None, run: Run, give_up: Callable[[RunError], None]
    ) -> None:
        self.order = orders[0]
        self._server = server
        self._run = run
        self._give_up = give_up
        self._kills = this_machine.oom_kills()
        self._ended = threading.Event()  # by rank 0, or noticed by it
        self._lost: Worker | None = None
        self.workers = [Worker(order, self._on_end) for order in orders[1:]]

    def wait(self) -> None:
        """Until all, on every machine, have their models loaded. Raises RunError when one ends instead."""
        for worker in self.workers:
            while not worker.ready.wait(0.05):
                if lost := self.lost():
                    raise lost
        if self.order.place.machines > 1:
            self._server = rendezvous.meet(self.order.place, self._server, self.lost)

    def joined(self) -> AbstractContextManager[Team]:
        """This process as one of the ranks, once `wait` has returned."""
        return team.joined(self.order.place, self.order.settings, self._server, self.late)

    def lost(self, within: float = 0.0) -> RunError | None:
        """The error for a worker that has ended before its time, which may become known in so many seconds."""
        end = time.monotonic() + within
        while self._lost is None and time.monotonic() < end:
            time.sleep(0.05)
        if self._lost is None:
            return None
        self._ended.set()
        return self._error(self._lost)

    def late(self) -> None:
        """The ranks have met, and do not reach each other: end this process, which waits for them in a library."""
        words = f"the processes have met, and do not reach each other within {JOINING:.0f} s: is a port closed between them?"
        self._give_up(RunError("training", words, checkpoint.where(self._run.path / runs.CHECKPOINTS)))

    def end(self) -> None:
        """End what is still there."""
        self._ended.set()
        for worker in self.workers:
            worker.end()

    def _error(self, worker: Worker) -> RunError:
        words = worker.words()
        kills = this_machine.oom_kills()
        if worker.code == -signal.SIGKILL and kills is not None and self._kills is not None and kills > self._kills:
            words += (
                ": the kernel took its memory; set NUM_PROCESSES, MAX_SEQ_LENGTH or PER_DEVICE_TRAIN_BATCH_SIZE lower"
            )
        return RunError("training", words, checkpoint.where(self._run.path / runs.CHECKPOINTS))

    def _on_end(self, worker: Worker) -> None:
        """In the thread of a worker that has ended. Rank 0 notices by a connection that closes; a card may not let it."""
        if worker.code == 0 or self._ended.is_set() or self._lost is not None:
            return
        self._lost = worker
        if not self._ended.wait(STUCK):
            self._give_up(self._error(worker))


def order_of(plan: Plan, fingerprint: Mapping[str, object], run: Path, place: Place = team.ALONE) -> Order:
    """What the rank in a place must know of a plan to train."""
    return Order(
        place=place,
        settings=plan.settings,
        base=plan.base,
        train=plan.train,
        validation=plan.validation,
        longest=plan.summary.total.longest,
        steps=plan.steps,
        fingerprint=fingerprint,
        run=run,
    )


def started(
    plan: Plan, fingerprint: Mapping[str, object], run: Run, give_up: Callable[[RunError], None]
) -> AbstractContextManager[Crew | None]:
    """The other ranks of a training on this machine, loading their models; None where it has one process only, or is done.

    `give_up` ends this process with an error, where it hangs in a library.
    """
    if plan.settings.processes == 1 or run.stage("train") is not None:
        return nullcontext()
    return several(plan, fingerprint, run, give_up)


@contextmanager
def several(
    plan: Plan, fingerprint: Mapping[str, object], run: Run, give_up: Callable[[RunError], None]
) -> Iterator[Crew]:
    """The same of a training that has more processes than this one."""
    with _first_place(plan.settings.hardware, plan.settings.processes) as (first, server):
        places = [replace(first, rank=first.rank + n, local_rank=n) for n in range(first.local_size)]
        crew = Crew([order_of(plan, fingerprint, run.path, place) for place in places], server, run, give_up)
        try:
            yield crew
        finally:
            crew.end()


@contextmanager
def _first_place(hardware: Hardware, size: int) -> Iterator[tuple[Place, Store | None]]:
    """The place of this machine's first rank, and the store that it serves to other machines."""
    here = hardware.num_processes
    if hardware.num_machines == 1:
        with meeting.private_file() as file:
            yield Place(rank=0, local_rank=0, size=size, local_size=here, file=file), None
        return
    # Without the address the settings refuse several machines.
    address, port = rendezvous.address(hardware.main_process_address or "")
    server = rendezvous.serve(address, port, size) if hardware.machine_rank == 0 else None
    key, rank = Key(shared_secret.secret()), hardware.machine_rank * here
    yield Place(rank=rank, local_rank=0, size=size, local_size=here, port=port, address=address, key=key), server
