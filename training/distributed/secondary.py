"""What a machine does that does not own the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from loguru import logger

from training.distributed import crew
from training.errors import Interrupted, RunError
from training.plan import Plan
from training.runs import Run
from training.system import temporary
from training.system.launchers import Seat
from training.system.signals import Signals
from training.system.wording import first_line
from training.train import Loaded, Order, Session, engine, loop, machines, sharding, state


def follow(
    seat: Seat,
    plan: Plan,
    fingerprint: Mapping[str, object],
    signals: Signals,
    give_up: Callable[[RunError | Interrupted], None],
) -> None:
    """What a machine does that does not own the run: train its share of the rows, from the beginning to the end.

    Raises RunError, or Interrupted when the run was stopped (from any of the machines).
    """
    with (
        temporary.folder("second") as folder,
        crew.several(seat, plan, fingerprint, Run(folder), give_up) as others,
    ):
        empty = sharding.wanted(plan.settings)
        loaded = engine.load(plan.base, plan.settings, plan.longest, plan.tokenizer, empty=empty)
        others.wait()
        with others.joined() as team:
            sharding.spread(loaded.model, team, plan.settings)
            ours = state.session(loaded, others.order, team, signals, others)
            done = _train(loaded, others.order, ours, foreign=seat.folder is None)
    if done:
        logger.info("the training is done; machine 0 has the adapter, and makes the files of it")


def _train(loaded: Loaded, order: Order, session: Session, foreign: bool) -> bool:
    """Whether the training got to its end."""
    try:
        with session.signals.gentle():
            loop.follow(loaded, order, session)
            if session.watch.spread:
                sharding.accompany(loaded.model, session.watch.team, lambda: session.signals.stop)
        return True
    except Interrupted as error:
        if session.first_began is None:
            raise
        words = "stopped; the checkpoint is on machine 0"
        # Who has started all may end them where one does not end well, and machine 0 has more to do.
        if foreign:
            logger.info(words)
            return False
        raise Interrupted(error.signal_number, words) from None
    except RunError as error:
        raise type(error)(error.stage, error.message, "the run is on machine 0") from None
    except RuntimeError as error:
        lost = session.lost(within=loop.LOST) or machines.lost(error, session.watch)
        raise lost or RunError("training", first_line(error), "the run is on machine 0") from error
