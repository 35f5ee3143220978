"""The other ranks of this machine, for the first one: it tells them what to train, and hears how they end.

They were started with it, by this program's launcher, torchrun or srun, and wait for their order in a folder.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from training import runs
from training.distributed import heartbeat, notes, rendezvous
from training.errors import Interrupted, Lost, RunError
from training.runs import Run, checkpoint
from training.settings.table import Hardware
from training.system import launchers, shared_secret, this_machine
from training.system.launchers import Seat
from training.train import Order, Place, Team, meeting, team
from training.train.meeting import Key
from training.train.team import JOINING

if TYPE_CHECKING:
    from torch.distributed import Store

    # The other processes have no use for all that makes a plan.
    from training.plan import Plan

# Seconds after another rank's end in which this one must have noticed.
STUCK = 20.0
LISTENING = 0.3
# Seconds in which the other machines are back after a restart.
BACK = 600.0
# Seconds in which the other ranks have heard that they are not needed.
LEAVING = 60.0
STORE = "store"


class Crew:
    """The other ranks, and the order of all. `again`: all were started again."""

    def __init__(
        self,
        order: Order,
        folder: Path,
        server: Store | None,
        run: Run,
        give_up: Callable[[RunError | Interrupted], None],
        again: bool = False,
    ) -> None:
        self._waits_until = time.monotonic() + BACK if again else math.inf
        self.order, self.folder = order, folder
        self._server, self._run, self._give_up = server, run, give_up
        self._kills = this_machine.oom_kills()
        self._ended = threading.Event()  # by this rank, or noticed by it
        self._lost: notes.Lost | None = None
        self._heard: dict[int, int] = {}
        notes.give(folder, order)
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def wait(self) -> None:
        """Until all, on every machine, have their models loaded. Raises RunError when one ends instead."""
        place = self.order.place
        for number in range(1, place.local_size):
            while (pid := notes.pid(self.folder, number)) is None:
                time.sleep(0.05)
                if lost := self.lost():
                    raise lost
            logger.debug("process {} of {} (pid {}) has its model", place.rank + number, place.size, pid)
        if place.machines > 1:
            self._server = rendezvous.meet(place, self._server, self._lost_or_away)
            notes.met(self.folder)

    @contextmanager
    def joined(self) -> Iterator[Team]:
        """This process as one of the ranks, once `wait` has returned."""
        place = self.order.place
        with (
            heartbeat.watched(place, self._silent),
            team.joined(place, self.order.settings, self._server, self.late) as joined,
        ):
            yield joined

    def lost(self, within: float = 0.0) -> RunError | Interrupted | None:
        """The error for a rank that has ended before its time, which may become known in so many seconds."""
        end = time.monotonic() + within
        while self._lost is None and time.monotonic() < end:
            time.sleep(0.05)
        if self._lost is None:
            return None
        self._ended.set()
        return self._error(self._lost)

    def _lost_or_away(self) -> RunError | Interrupted | None:
        """The same while the machines wait for each other; after a restart one may never come back."""
        if time.monotonic() > self._waits_until:
            words = f"the processes were started again, and a machine has not come back within {BACK / 60:.0f} minutes"
            return RunError("training", words, self._safe())
        return self.lost()

    def late(self) -> None:
        """The ranks have met, and do not reach each other: end this process, which waits for them in a library."""
        words = f"the processes have met, and do not reach each other within {JOINING:.0f} s: is a port closed between them?"
        self._give_up(RunError("training", words, checkpoint.where(self._run.path / runs.CHECKPOINTS)))

    def _silent(self, words: str) -> None:
        self._give_up(Lost("training", words, self._safe()))

    def _safe(self) -> str:
        ours = self.order.place.machine == 0
        return checkpoint.where(self._run.path / runs.CHECKPOINTS) if ours else "the run is on machine 0"

    def end(self) -> None:
        """The training is over."""
        self._ended.set()
        notes.over(self.folder)
        self._watching.join(1.0)

    def _error(self, lost: notes.Lost) -> RunError | Interrupted:
        if lost.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            return Interrupted(lost.code - 128, f"stopped by {signal.Signals(lost.code - 128).name}")
        words, kills = lost.words, this_machine.oom_kills()
        if lost.code == -signal.SIGKILL and kills is not None and self._kills is not None and kills > self._kills:
            words += (
                ": the kernel took its memory; set NUM_PROCESSES, MAX_SEQ_LENGTH or PER_DEVICE_TRAIN_BATCH_SIZE lower"
            )
        return Lost("training", words, checkpoint.where(self._run.path / runs.CHECKPOINTS))

    def _watch(self) -> None:
        """In a thread: hear what the others say, and how one ends. This rank notices by a connection that closes; a card may
        not let it."""
        while not self._ended.wait(LISTENING):
            self._log()
            if (lost := notes.lost(self.folder)) is not None:
                self._lost = lost
                if not self._ended.wait(STUCK):
                    self._give_up(self._error(lost))
                break
        self._log()

    def _log(self) -> None:
        for number in range(1, self.order.place.local_size):
            lines = notes.said(self.folder, number)
            for line in lines[self._heard.get(number, 0) :]:
                logger.debug("process {}: {}", self.order.place.rank + number, line)
            self._heard[number] = len(lines)


def order_of(plan: Plan, fingerprint: Mapping[str, object], run: Path, place: Place = team.ALONE) -> Order:
    """What the rank in a place must know of a plan to train."""
    return Order(
        place=place,
        settings=plan.settings,
        base=plan.base,
        train=plan.sequences,
        validation=plan.validation,
        longest=plan.longest,
        steps=plan.steps,
        packs=plan.packs,
        fingerprint=fingerprint,
        run=run,
    )


def started(
    plan: Plan, fingerprint: Mapping[str, object], run: Run, give_up: Callable[[RunError | Interrupted], None]
) -> AbstractContextManager[Crew | None]:
    """The other ranks of a training on this machine, loading their models; None where it has one process only, or is done.

    `give_up` ends this process with an error, where it hangs in a library.
    """
    if (seat := launchers.seat()) is None or run.stage("train") is not None:
        return nullcontext()
    return several(seat, plan, fingerprint, run, give_up)


@contextmanager
def not_needed(run: Run) -> Iterator[None]:
    """Around the rest of a run that is trained already: the other ranks of this machine, which somebody else's launcher
    has started, are told to end."""
    seat = launchers.seat()
    if seat is None or seat.folder is not None or run.stage("train") is None:
        yield
        return
    if seat.machines > 1:
        logger.warning("the run is trained already: the other machines are not needed, and may be ended")
    with meeting.private_folder(seat.job) as folder:
        notes.over(folder)
        yield
        # They may still be loading their libraries.
        end = time.monotonic() + LEAVING
        while any(notes.pid(folder, one) is None for one in range(1, seat.local_size)) and time.monotonic() < end:
            time.sleep(0.05)


@contextmanager
def several(
    seat: Seat,
    plan: Plan,
    fingerprint: Mapping[str, object],
    run: Run,
    give_up: Callable[[RunError | Interrupted], None],
) -> Iterator[Crew]:
    """The same of a training that has more processes than this one."""
    with ExitStack() as kept:
        folder = seat.folder or kept.enter_context(meeting.private_folder(seat.job))
        place, server = _place(seat, plan.settings.hardware, folder)
        crew = Crew(order_of(plan, fingerprint, run.path, place), folder, server, run, give_up, again=seat.restart > 0)
        try:
            yield crew
        finally:
            crew.end()


def _place(seat: Seat, hardware: Hardware, folder: Path) -> tuple[Place, Store | None]:
    """The place of this rank, and the store that it serves to other machines."""
    place = Place(rank=seat.rank, local_rank=0, size=seat.size, local_size=seat.local_size)
    if seat.machines == 1:
        return replace(place, file=folder / STORE), None
    # Without the address the settings refuse several machines.
    address, port = rendezvous.address(hardware.main_process_address or "")
    server = rendezvous.serve(address, port, seat.size) if seat.rank == 0 and not seat.served else None
    return replace(place, port=port, address=address, key=Key(shared_secret.secret())), server
