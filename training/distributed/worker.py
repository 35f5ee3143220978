"""One of the other ranks of a training in several processes: it trains its share, and writes nothing."""

from __future__ import annotations

import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from loguru import logger

from training.distributed import notes
from training.errors import FinetuneError, Interrupted, RunError
from training.system import foreign_code, this_machine
from training.system.launchers import Seat
from training.system.signals import Signals
from training.train import Loaded, Order, Session, engine, loop, meeting, sharding, team
from training.train.state import session


def main(seat: Seat) -> int:
    """Wait for the first rank of this machine, and train with it. The exit code: 0 when the training ended, or was stopped,
    for all."""
    logger.remove()
    # Of this program's own launcher it comes into the run's log; elsewhere the first rank says it.
    level = "WARNING" if seat.folder is None else "INFO"
    logger.add(sys.stderr, format="{message}", level=level, backtrace=False, diagnose=False)
    signals = Signals()
    signals.install()
    try:
        folder = _folder(seat)
        if (order := _order(seat, folder)) is None:
            with suppress(OSError):
                notes.ready(folder, seat.local_rank)
        elif seat.folder is None:
            told(order, folder, signals)
        else:
            work(order, folder, signals)
    except Interrupted as error:
        return error.exit_code
    except FinetuneError as error:
        logger.error("{}", error)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        signals.delivered()
    return 0


def told(order: Order, folder: Path, signals: Signals) -> None:
    """`work`; where that fails, the first rank hears of it, as it does from this program's own launcher."""
    try:
        work(order, folder, signals)
    except Exception as error:
        if not notes.is_over(folder) and notes.lost(folder) is None:
            with suppress(OSError):
                notes.lose(folder, order.place.rank, order.place.size, 1, str(error))
        raise


def work(order: Order, folder: Path, signals: Signals) -> None:
    """Load the model, tell the first rank, and train with the others. Raises what `loop.follow` raises."""
    foreign_code.trust(order.settings.model.trust_remote_code)
    if order.settings.hardware.device != "cpu":
        this_machine.show_one_card(order.settings.hardware.device, order.place.local_rank)
    engine.start(order.settings)
    loaded = engine.load(order.base, order.settings, order.longest, empty=sharding.wanted(order.settings))
    notes.ready(folder, order.place.local_rank)
    _until_met(order, folder)
    with team.joined(order.place, order.settings) as joined, signals.gentle():
        sharding.spread(loaded.model, joined, order.settings)
        ours = session(loaded, order, joined, signals)
        try:
            loop.follow(loaded, order, ours)
            if ours.watch.spread:
                _help_to_evaluate(ours, loaded, folder)
        except Interrupted:
            if ours.first_began is None:
                raise


def _help_to_evaluate(ours: Session, loaded: Loaded, folder: Path) -> None:
    """Where the model is spread: take part in what the first rank asks it after the training."""
    try:
        sharding.accompany(loaded.model, ours.watch.team, lambda: ours.signals.stop)
    except RuntimeError:
        # The first rank has ended, and has told why.
        if not notes.is_over(folder):
            raise


def _until_met(order: Order, folder: Path) -> None:
    """Until the first rank of this machine has met the others: before, what stands in the store of machine 0 may be of a
    training that is ending."""
    while order.place.machines > 1 and not notes.has_met(folder):
        if notes.is_over(folder) or not folder.exists():
            raise RunError("training", "the first process of this machine has ended; its log says more")
        time.sleep(0.05)


def _folder(seat: Seat) -> Path:
    """Where the first rank leaves word."""
    while (folder := seat.folder or meeting.folder_of(seat.job)) is None:
        time.sleep(0.1)
    return folder


def _order(seat: Seat, folder: Path) -> Order | None:
    """What this rank is to do, as the first one says; None where the run is trained already."""
    while (order := notes.order(folder)) is None:
        if notes.is_over(folder):
            return None
        time.sleep(0.1)
    return order.at(seat.rank, seat.local_rank)
