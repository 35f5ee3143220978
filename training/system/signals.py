"""Signals: the first SIGINT or SIGTERM ends a run in good order, a second one at once; SIGHUP never ends it.

While `gentle` (training, from its first step on), a signal is only noted, and the trainer stops after the current
micro-step with a full checkpoint; that it was heard is said at once. Elsewhere nothing would be lost, and the signal
raises Interrupted right away: also where the process waits inside a library (for other ranks, for a disk), in which
Python's own handlers have to wait, and again where something has swallowed it.

A guard, a thread, hears of each signal in the moment it arrives, whatever the main thread is at: it gives the receipt
for the first one, and the second one is its alone, so that one thread says how the process ends.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from training.errors import EndedAtOnce, Interrupted

# Seconds that a library has to come back before a signal is obeyed without it.
STUCK = 5.0
# Seconds that there are at most to tell what a second signal has cost: a disk may hang.
LAST = 30.0
# Seconds after which an Interrupted that nobody holds any more is raised once more.
AGAIN = 1.0
STOPS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """What the outside has asked for since the start: to stop (`stop`: the signal's number), or to save."""

    def __init__(self) -> None:
        self.stop: int | None = None
        self.save = False
        self._gentle = self._begun = self._leaving = self._obeyed = self._delivered = False
        # The Interrupted that was raised last; nothing where it is gone: delivered, or swallowed.
        self._raised: Callable[[], Interrupted | None] = lambda: None
        self._process = 0

    def install(
        self,
        leave: Callable[[Interrupted], None] | None = None,
        heard: Callable[[int, bool], None] | None = None,
        lost: Callable[[int], int] | None = None,
    ) -> None:
        """Take over SIGINT, SIGTERM and SIGUSR1, and ignore SIGHUP: a closed terminal must not end a night's work.

        All three are called in threads of their own. `leave` tells of the end of a process that is stuck, and ends it.
        `heard` is told at once of a first signal, and whether it is only noted. `lost` says what a second one has cost,
        and gives the exit code.
        """
        self._process = os.getpid()
        for number in STOPS:
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_save)
        signal.signal(signal.SIGUSR2, self._on_again)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # Whoever started this process may ignore it, which is inherited: then all children seem to have ended well.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        atexit.register(_told)
        arrivals, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        # A fork's signals do not wake this process's guard.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        threading.Thread(target=self._guard, args=(arrivals, leave or _leave, heard, lost), daemon=True).start()

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

    def delivered(self) -> None:
        """The end is being told from now on, by whoever calls: no Interrupted is raised any more, nor once again."""
        self._delivered = True

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        self._obeyed = True
        if os.getpid() != self._process and self.stop is not None:
            # A fork has no guard.
            os._exit(128 + number)
        # The second one is the guard's, and so is the end where another thread tells it already.
        if self._leaving or self.stop is not None:
            return
        self.stop = number
        if not self.noted_only and not self._delivered:
            self._raise(number)

    def _raise(self, number: int) -> None:
        error = Interrupted(number, words(number))
        self._raised = weakref.ref(error)
        try:
            raise error
        finally:
            # Else this frame, which its traceback holds, would hold it.
            del error

    def _on_save(self, _number: int, _frame: FrameType | None) -> None:
        self.save = True

    def _on_again(self, _number: int, _frame: FrameType | None) -> None:
        if self.stop is not None and not self._delivered and not self.noted_only and self._raised() is None:
            self._raise(self.stop)

    def _guard(
        self,
        arrivals: int,
        leave: Callable[[Interrupted], None],
        heard: Callable[[int, bool], None] | None,
        lost: Callable[[int], int] | None,
    ) -> None:
        """Hear of every signal: see to the first one, end the process at the second. Those that come together are one."""
        first = True
        while numbers := os.read(arrivals, 64):
            asked = [number for number in numbers if number in STOPS]
            if asked and not first:
                _end(asked[0], lost)
            elif asked:
                first = False
                noted = self.noted_only
                if heard is not None:
                    threading.Thread(target=heard, args=(asked[0], noted), daemon=True).start()
                if not noted:
                    threading.Thread(target=self._see_to, args=(asked[0], leave), daemon=True).start()

    def _see_to(self, number: int, leave: Callable[[Interrupted], None]) -> None:
        """Obey a signal for a main thread that does not come back to Python to do it; hold one to it that forgets."""
        end = time.monotonic() + STUCK
        while not self._obeyed and time.monotonic() < end:
            time.sleep(0.05)
        if not self._obeyed and not self.noted_only and not self._delivered:
            self._leaving = True
            leave(Interrupted(number, words(number)))
        while not self._delivered:
            time.sleep(AGAIN)
            if self._raised() is None:
                # Its handler looks again whether it is wanted.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)


def behind(error: BaseException) -> Interrupted | None:
    """The signal that an error comes of: a library may catch Interrupted and raise one of its own, or fail at cleaning up."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        if isinstance(found, Interrupted):
            return found
        seen.add(id(found))
        found = found.__cause__ or found.__context__
    return None


def _end(number: int, lost: Callable[[int], int] | None) -> None:
    """End the process at once; files that were being written are not renamed. What it cost is told before, not for long."""
    code = 128 + number if lost is None else EndedAtOnce.exit_code
    codes: list[int] = []
    if lost is not None:
        # The main thread goes on meanwhile: it may hold the log's lock, or be at work on the file that is to be written.
        teller = threading.Thread(target=lambda: codes.append(lost(number)), daemon=True)
        teller.start()
        teller.join(LAST)
    os._exit(codes[0] if codes else code)


def words(number: int) -> str:
    """What a signal that ends a process is called, where no more is said of it."""
    return f"stopped by {signal.Signals(number).name}"


def _told() -> None:
    """The end is told, and the interpreter goes. It would give the signals back to the system first, and one that comes then
    (a launcher passes one on that this process was told of already) would kill it: with that as its end, and not its own."""
    for number in (*STOPS, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _leave(error: Interrupted) -> None:
    with suppress(OSError):  # nobody listens any more
        os.write(2, f"{error}\n".encode())
    os._exit(error.exit_code)
