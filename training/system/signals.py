"""Signals: the first SIGINT or SIGTERM ends a run in good order, a second one at once; SIGHUP never ends it.

While `gentle` (training, from its first step on), a signal is only noted, and the trainer stops after the current
micro-step with a full checkpoint; that it was heard is said at once. Elsewhere nothing would be lost, and the signal ends the stage right away: also where
the process waits inside a library (for other ranks, for a disk), in which Python's own handlers have to wait.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from training.errors import EndedAtOnce, Interrupted

# Seconds that a library has to come back before a signal is obeyed without it.
STUCK = 5.0


class Signals:
    """What the outside has asked for since the start: to stop (`stop`: the signal's number), or to save."""

    def __init__(self) -> None:
        self.stop: int | None = None
        self.save = False
        self._gentle = self._begun = self._leaving = False
        self._obeyed = 0  # how often Python's handler ran
        self._lost: Callable[[int], int | None] | None = None
        self._last = threading.Lock()

    def install(
        self,
        leave: Callable[[Interrupted], None] | None = None,
        noted: Callable[[int], None] | None = None,
        lost: Callable[[int], int | None] | None = None,
    ) -> None:
        """Take over SIGINT, SIGTERM and SIGUSR1, and ignore SIGHUP: a closed terminal must not end a night's work.

        `leave` tells of the end of a process that is stuck, and ends it. `noted` is told at once of a signal that is only
        noted, in a thread of its own. `lost` says what a second signal has cost, and gives the exit code; None where
        nothing was lost.
        """
        self._lost = lost
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_save)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        arrivals, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        # A fork's signals do not wake this process's guard.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        threading.Thread(target=self._guard, args=(arrivals, leave or _leave, noted), daemon=True).start()

    @contextmanager
    def gentle(self) -> Iterator[None]:
        """Within this block, once the first step begins, a first signal is noted and nothing else; whoever runs there looks
        at `stop`."""
        self._gentle, self._begun = True, False
        try:
            yield
        finally:
            self._gentle = False

    def begin(self) -> None:
        """A step of the training begins: from now on there is something to lose."""
        self._begun = True

    @property
    def noted_only(self) -> bool:
        """Whether a first signal is only noted now."""
        return self._gentle and self._begun

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        self._obeyed += 1
        if self._leaving:  # another thread says how this process ends
            return
        if self.stop is not None:
            # The second one: at once; files that were being written are not renamed.
            self._at_once(number)
        self.stop = number
        if not self.noted_only:
            raise Interrupted(number, _words(number))

    def _on_save(self, _number: int, _frame: FrameType | None) -> None:
        self.save = True

    def _at_once(self, number: int) -> None:
        """End the process. What it is said in is another thread: this one may hold the log, or be at work on a file."""
        if not self._last.acquire(blocking=False):
            # Guard and handler have both seen it.
            time.sleep(2 * STUCK)
        codes: list[int | None] = []

        def tell() -> None:
            if self._lost is not None:
                codes.append(self._lost(number))

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        teller.join(STUCK)
        unsaid = None if self._lost is None else EndedAtOnce.exit_code
        code = codes[0] if codes else unsaid
        os._exit(128 + number if code is None else code)

    def _guard(self, arrivals: int, leave: Callable[[Interrupted], None], noted: Callable[[int], None] | None) -> None:
        """Say that a signal was heard; obey it for a main thread that does not come back to Python to do it."""
        stops = due = 0
        receipt = False
        while numbers := os.read(arrivals, 64):
            asked = [number for number in numbers if number in (signal.SIGINT, signal.SIGTERM)]
            before, stops, due = self._obeyed, stops + len(asked), due + len(asked)
            if asked and receipt:
                # Python's handler may have run once for both: it came while the first one still waited for it.
                self._at_once(asked[0])
            elif asked and self.noted_only and noted is not None:
                receipt = True
                threading.Thread(target=noted, args=(asked[0],), daemon=True).start()
            end = time.monotonic() + STUCK
            while self._obeyed < due and time.monotonic() < end:
                time.sleep(0.05)
            if self._obeyed >= due:
                continue
            # It did come back: several signals that wait for one handler count as one.
            if self._obeyed > before:
                due = self._obeyed
                continue
            if stops > 1:
                self._at_once(asked[-1])
            if not self.noted_only:
                self._leaving = True
                leave(Interrupted(asked[0], _words(asked[0])))


def _words(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}"


def _leave(error: Interrupted) -> None:
    with suppress(OSError):  # nobody listens any more
        os.write(2, f"{error}\n".encode())
    os._exit(error.exit_code)
