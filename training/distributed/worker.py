"""One of the other ranks of a training in several processes (launcher.py starts it): it trains its share, and writes nothing.

It ends when its stdin closes, which it does when rank 0 ends, however that ended.
"""

from __future__ import annotations

import shutil
import signal
import sys
import traceback
from pathlib import Path

if __name__ == "__main__":  # run as a script, training/ stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from loguru import logger

from training.distributed import launcher
from training.errors import FinetuneError, Interrupted
from training.system import foreign_code
from training.system.parent_watch import end_with_parent
from training.system.signals import Signals
from training.train import Order, engine, loop, team
from training.train.state import session


def work(order: Order) -> None:
    """Load the model, tell rank 0, and train with the others. Raises what `loop.follow` raises."""
    foreign_code.trust(order.settings.model.trust_remote_code)
    engine.start(order.settings)
    loaded = engine.load(order.base, order.settings, order.longest)
    print(launcher.READY.decode(), end="", flush=True)
    with team.joined(order.place, order.settings) as joined:
        loop.follow(loaded, order, session(loaded, order, joined, Signals()))


def leave(order: Order) -> None:
    """Clear away after a rank 0 that could not do it itself, for it was killed."""
    if order.place.file is not None:
        shutil.rmtree(order.place.file.parent, ignore_errors=True)


def main() -> int:
    """The exit code: 0 when the training ended, or was stopped, for all."""
    # Rank 0 gets them too, and says what follows.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    logger.remove()
    logger.add(sys.stderr, format="{message}", level="INFO", backtrace=False, diagnose=False)
    order = launcher.receive(sys.stdin.buffer)
    if order is None:
        return 1
    end_with_parent(lambda: leave(order))
    try:
        work(order)
    except Interrupted:
        return 0
    except FinetuneError as error:
        logger.error("{}", error)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
