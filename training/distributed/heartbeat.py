"""Training on several machines: does each of the others still live?

A machine that loses its power, or the line to it, closes no connection: whoever waits for it inside a library waits for
hours. So the first rank of each writes a number, again and again, to the store where they have met.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from loguru import logger

from training.errors import Interrupted, RunError
from training.train import Place, meeting

# Seconds from beat to beat, without one, and for the training itself to notice why.
BEAT, SILENCE, NOTICING = 2.0, 40.0, 5.0
GONE, ENDED = "gone", "ended"  # in good order, or before its time


@contextmanager
def watched(place: Place, silent: Callable[[str], None]) -> Iterator[None]:
    """Within this block the machines watch each other; `silent` is told, once, of one that is not heard of any more."""
    if place.machines == 1:
        yield
        return
    ended = threading.Event()
    last_word = [ENDED]
    # Machine 0, where the store is, watches all; the others watch machine 0.
    others = range(1, place.machines) if place.machine == 0 else (0,)
    heard = dict.fromkeys(others, time.monotonic())
    # Two threads: what asks the store may wait there for ever, where that does not answer any more.
    beating = threading.Thread(target=_beat, args=(place, heard, ended, last_word), daemon=True)
    watching = threading.Thread(target=_watch, args=(heard, silent, ended), daemon=True)
    beating.start()
    watching.start()
    try:
        yield
        last_word[0] = GONE
    except Interrupted:
        # All stop together, and machine 0 may still be writing its checkpoint.
        last_word[0] = GONE
        raise
    finally:
        ended.set()
        beating.join(2 * BEAT)


def _beat(place: Place, heard: dict[int, float], ended: threading.Event, last_word: list[str]) -> None:
    """Say again and again that this machine lives, and note when that is heard of the others."""
    from torch.distributed import TCPStore

    try:
        # A connection of its own: those of the training may be waiting.
        server = TCPStore(place.address, place.port, is_master=False, timeout=timedelta(seconds=SILENCE))
        store = meeting.admitted(server, place.proof, place.machine)
        beats, last = 0, dict.fromkeys(heard, "")
        while not ended.wait(BEAT):
            beats += 1
            store.set(_name(place.machine), str(beats))
            for number in list(heard):
                said = store.get(_name(number)).decode() if store.check([_name(number)]) else ""
                if said == GONE:
                    del heard[number]
                elif said == ENDED:
                    heard[number] = 0.0
                elif said != last[number]:
                    last[number], heard[number] = said, time.monotonic()
        store.set(_name(place.machine), *last_word)
    # What it means is told by the training, or by who watches this.
    except (RuntimeError, RunError) as error:
        logger.debug("{}", error)


def _watch(heard: dict[int, float], silent: Callable[[str], None], ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        for number, when in list(heard.items()):
            if time.monotonic() - when > SILENCE and not ended.wait(NOTICING):
                silent(
                    f"machine {number} has not been heard of for {SILENCE:.0f} s: it is gone, or the line to it is cut"
                    if when
                    else f"machine {number} has ended before the training did; its log says more"
                )
                return


def _name(machine: int) -> str:
    return f"beat of machine {machine}"
