"""What a machine does that does not own the run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loguru import logger

from training.errors import Interrupted, RunError
from training.runs import Run
from training.train import machines, team


def follow(plan: Any, marks: dict[str, Any], signals: Any, give_up: Callable[[RunError], None]) -> None:
    """What a machine does that does not own the run: train its share of the rows, from the beginning to the end.

    Raises RunError, or Interrupted when the run was stopped (from any of the machines).
    """
    from training.distributed import launcher
    from training.train import engine, state

    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        run = Run(Path(folder))
        with launcher.started(plan, marks, run, give_up) as others:
            loaded = engine.load(plan.base, plan.settings, plan.summary.total[3], plan.tokenizer)
            others.wait()
            with team.joined(others.place, plan.settings, others.server, others.late) as ranks:
                session = state.session(loaded, others.order, ranks, signals)
                session.crew = others
                _train(loaded, plan, session)
    logger.info("the training is done; machine 0 has the adapter, and makes the files of it")


def _train(loaded: Any, plan: Any, session: Any) -> None:
    from training.train import loop

    try:
        with session.signals.gentle():
            loop.follow(loaded, plan, session)
    except Interrupted as error:
        if session.first_began is None:
            raise
        raise Interrupted(error.signal_number, "stopped; the checkpoint is on machine 0") from None
    except RunError as error:
        raise RunError(error.stage, error.message, "the run is on machine 0") from None
    except RuntimeError as error:
        found = session.crew.lost(within=loop.LOST) or machines.lost(error, session.watch)
        raise found or RunError("training", str(error).splitlines()[0], "the run is on machine 0") from error
