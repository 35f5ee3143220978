"""Start a training in several processes: torchrun's agent, with this same command as each of its ranks on this machine.

The agent is torch.distributed.elastic's own: it starts the ranks, watches them, and ends those that are left. Here it is
told three things that it does not know. Signals are for rank 0 of this machine, which tells the others when to stop. When
another rank has died, rank 0 is first given the time to tell how, and to leave the run as it must be left. And the ranks
of other machines are not looked for by torchrun's own rendezvous, which unpickles what anybody writes to its port, and
numbers the machines as it likes: they meet by a secret (distributed/rendezvous.py).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING

from loguru import logger

from training.distributed import notes
from training.settings.table import Hardware
from training.system import launchers, this_machine
from training.train import meeting

if TYPE_CHECKING:
    import subprocess

    from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo
else:
    LocalElasticAgent = RendezvousHandler = object

# Seconds that rank 0 has to end by itself after another rank has died.
GRACE = 45.0
# Seconds in which rank 0 may have heard a signal itself: a service manager sends it to every process.
HEARD = 0.5
# Seconds between what two processes hear of one signal.
SAME = 2.0
# Torch's agent ends ranks by SIGTERM, and after so many seconds by SIGKILL.
ENDING = 10


@dataclass
class Ranks:
    """The ranks of this machine, as their agent sees them."""

    folder: Path
    size: int
    first: int  # the rank of the first
    here: int
    begun: Callable[[Path], None]
    codes: dict[int, int] = field(default_factory=dict)  # by local rank, of those that have ended
    # Signals that wait to be passed on, and when they came, by the clock of files.
    asked: list[tuple[int, float]] = field(default_factory=list)
    passed: bool = False
    told: bool = False
    ends_at: float | None = None

    def look(self, processes: Mapping[int, subprocess.Popen[bytes]]) -> bool:
        """See who has ended, and pass signals on; whether the ranks are left to themselves for now."""
        if not self.told and (path := notes.run(self.folder)) is not None:
            self.told = True
            self.begun(path)
        for number, process in processes.items():
            if (code := process.poll()) is not None and number not in self.codes:
                self.codes[number] = code
        if 0 in self.codes:
            return False
        self._pass_on(processes[0].pid)
        dead = [number for number, code in self.codes.items() if code]
        if not dead or notes.is_over(self.folder):
            return True
        if self.ends_at is None:
            self.ends_at = time.monotonic() + GRACE
            number = dead[0]
            notes.lose(
                self.folder, self.first + number, self.size, self.codes[number], notes.last_words(self.folder, number)
            )
        return time.monotonic() < self.ends_at

    @property
    def can_go_on(self) -> bool:
        """Whether it was a death, and no end that was told: of the first rank, or of another for whose sake it ended."""
        return not self.passed and (self.codes.get(0, -1) < 0 or notes.is_broken(self.folder))

    def begin_again(self, left: int, restarts: int) -> None:
        """All are started again."""
        code = self.codes.get(0, -signal.SIGKILL)
        if code < 0:
            logger.warning("{}", notes.ended(self.first, self.size, code, ""))
        logger.warning("starting the processes again, from the checkpoint ({} of {})", restarts - left, restarts)
        self.codes.clear()
        self.ends_at = None
        notes.begin_again(self.folder)

    def hear(self, number: int, _frame: FrameType | None) -> None:
        """A signal for the training."""
        self.asked.append((number, time.time()))

    def _pass_on(self, pid: int) -> None:
        """Give rank 0 one of the signals: the first only where it has not come there by itself."""
        if not self.asked:
            return
        number, when = self.asked[0]
        stops = number != signal.SIGUSR1
        if stops and not self.passed and time.time() - when < HEARD:
            return
        del self.asked[0]
        if stops and not self.passed:
            self.passed = True
            # An earlier one came there by itself: this is the second.
            heard = notes.stopping_since(self.folder)
            if heard is not None and heard > when - SAME:
                return
        with suppress(ProcessLookupError):
            os.kill(pid, number)


class Agent(LocalElasticAgent):
    """torchrun's agent, with the three things that it is told. Mixed into torch's class, which is imported late."""

    ranks: Ranks

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        from torch.distributed.elastic.agent.server.api import RunResult, WorkerState

        handlers = self._pcontext.subprocess_handlers  # type: ignore[union-attr]  # it runs programs
        if self.ranks.look({number: one.proc for number, one in handlers.items()}):
            return RunResult(state=WorkerState.HEALTHY)
        if self.ranks.codes.get(0) == 0:
            self._all_over(handlers)
        if not self.ranks.can_go_on:
            self._remaining_restarts = 0
        found: RunResult = super()._monitor_workers(worker_group)
        return found

    def code(self) -> int:
        """How the first rank has ended: its exit code; negative, the signal that killed it."""
        first = self._pcontext.subprocess_handlers[0].proc  # type: ignore[union-attr]  # it runs programs
        code: int = first.wait(ENDING)
        return code

    def _all_over(self, handlers: Mapping[int, object]) -> None:
        """Rank 0 has done all: what is left of the others has no more to do."""
        if len(self.ranks.codes) < len(handlers):
            self._pcontext.close(signal.SIGTERM, ENDING)  # type: ignore[union-attr]

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        self.ranks.begin_again(self._remaining_restarts, worker_group.spec.max_restarts)
        super()._restart_workers(worker_group)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = ENDING) -> None:
        super()._shutdown(death_sig, min(timeout, ENDING))

    def _exit_barrier(self) -> None:
        """Machine 0 has more to do than the others, who do not wait for it."""


class Here(RendezvousHandler):
    """For torchrun's agent: the number of this machine, as the settings have it. Nobody is asked for it."""

    def __init__(self, machine: int, machines: int) -> None:
        self.machine, self.machines = machine, machines

    def next_rendezvous(self) -> RendezvousInfo:
        """The place of this machine, and a store of this process alone."""
        from torch.distributed import HashStore
        from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousStoreInfo

        return RendezvousInfo(HashStore(), self.machine, self.machines, RendezvousStoreInfo("", 0))

    def get_backend(self) -> str:
        return "settings"

    @property
    def use_agent_store(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """No machine can come later."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return "run"

    def shutdown(self) -> bool:
        return True


def launch(
    hardware: Hardware, stdout: IO[str], begun: Callable[[Path], None], killed: Callable[[Path | None, str], int]
) -> int:
    """Run this command as every rank of this machine; the exit code of the first.

    `begun` is told the run's directory, once there is one. `killed` tells the end of a first rank that
    could not do it itself, with that directory, and gives the exit code.
    """
    # What the ranks print for programs goes where this program's own would.
    os.dup2(stdout.fileno(), 1)
    with meeting.private_folder() as folder:
        notes.launch(folder)
        ranks = Ranks(
            folder=folder,
            size=hardware.num_processes * hardware.num_machines,
            first=hardware.num_processes * hardware.machine_rank,
            here=hardware.num_processes,
            begun=begun,
        )
        told = {
            launchers.FOLDER: str(folder),
            # The ranks follow from the numbers: nothing is asked of a store.
            "TORCH_ELASTIC_WORKER_IDENTICAL": "1",
            # The others are heard here.
            "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGQUIT",
        }
        with this_machine.variables(told):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, ranks.hear)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            running = agent(hardware, ranks)
            running.run()
        code = running.code()
        path = notes.run(folder)
        if code >= 0:
            return code
    return killed(path, notes.ended(ranks.first, ranks.size, code, ""))


def agent(hardware: Hardware, ranks: Ranks) -> Agent:
    """torchrun's agent for the ranks of this machine."""
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.rendezvous import RendezvousHandler

    # What it says is told by the ranks, or here.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL + 1)
    handler = type("Here", (Here, RendezvousHandler), {})(hardware.machine_rank, hardware.num_machines)
    spec = WorkerSpec(
        role="rank",
        local_world_size=ranks.here,
        entrypoint=sys.executable,
        # It would put the number of a rank into "${local_rank}".
        args=tuple(word.replace("$", "$$") for word in sys.orig_argv[1:]),
        rdzv_handler=handler,
        max_restarts=hardware.max_restarts,
        monitor_interval=0.1,
    )
    others = dict.fromkeys(range(1, ranks.here), Std.ALL)
    made: Agent = type("Agent", (Agent, LocalElasticAgent), {"ranks": ranks})(
        spec, DefaultLogsSpecs(log_dir=str(ranks.folder), redirects=others)
    )
    return made
