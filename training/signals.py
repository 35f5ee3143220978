"""Signals: the first SIGINT or SIGTERM ends a run in good order, a second one at once; SIGHUP never ends it.

While `gentle` (training), a signal is only noted, and the trainer stops after the current micro-step with a full
checkpoint. Elsewhere nothing would be lost, and the signal ends the stage right away.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from training.errors import Interrupted


class Signals:
    """What the outside has asked for since the start: to stop (`stop`: the signal's number), or to save."""

    def __init__(self) -> None:
        self.stop: int | None = None
        self.save = False
        self._gentle = False

    def install(self) -> None:
        """Take over SIGINT, SIGTERM and SIGUSR1, and ignore SIGHUP: a closed terminal must not end a night's work."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_save)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    @contextmanager
    def gentle(self) -> Iterator[None]:
        """Within this block a first signal is noted and nothing else; whoever runs there looks at `stop`."""
        self._gentle = True
        try:
            yield
        finally:
            self._gentle = False

    def _on_stop(self, number: int, _frame: Any) -> None:
        if self.stop is not None:
            os._exit(128 + number)  # the second one: at once; files that were being written are not renamed
        self.stop = number
        if not self._gentle:
            raise Interrupted(number, f"stopped by {signal.Signals(number).name}")

    def _on_save(self, _number: int, _frame: Any) -> None:
        self.save = True
