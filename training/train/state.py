"""What the parts of one training share while it runs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from training import runs
from training.data import Item
from training.errors import Interrupted, RunError
from training.fast_cpu import policy
from training.runs import Run
from training.settings import Settings
from training.system.events import Events
from training.system.signals import Signals
from training.train import sharding
from training.train.engine import Loaded
from training.train.order import Order
from training.train.team import Team
from training.train.watch import Watch

if TYPE_CHECKING:
    from tqdm import tqdm
    from transformers import PreTrainedTokenizerBase

    from training.train.mixin import Mixin

SAVE = 1000  # beyond every signal's number


class Others(Protocol):
    """The processes of the other ranks on this machine, for the one that has started them (distributed.Crew)."""

    def lost(self, within: float = 0.0) -> RunError | Interrupted | None:
        """The error for one that has ended before its time, which may become known in so many seconds."""


@dataclass(kw_only=True)
class Session:
    """One process training one run: what its hooks need, and what they count."""

    settings: Settings
    run: Run
    events: Events
    signals: Signals
    watch: Watch
    tokenizer: PreTrainedTokenizerBase
    total: int  # optimizer steps of the run
    validates: bool  # there are validation rows
    questions: Sequence[Item] = ()  # asked every SAMPLE_STEPS steps
    end_ids: Sequence[int] = ()
    crew: Others | None = None
    first_step: int = 0  # where this process took the run up
    started: float = field(default_factory=time.perf_counter)
    first_began: float | None = None  # when the first step of this process began
    tokens: int = 0
    seconds: float = 0.0  # spent in optimizer steps
    recent: list[float] = field(default_factory=list)  # losses since the last line of the log
    trainer: Mixin = field(init=False, repr=False)  # from when it is built
    bar: tqdm | None = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, or the only process: the one that writes and tells."""
        return self.watch.team.rank == 0

    def asked(self) -> tuple[int | None, bool]:
        """The signal that shall end the training, and whether a checkpoint is asked for: the same in all ranks."""
        asked = self.watch.team.round((self.signals.stop or 0) + (SAVE if self.signals.save else 0))
        stop = next((one % SAVE for one in asked if one % SAVE), None)
        return stop, any(one >= SAVE for one in asked)

    def lost(self, within: float) -> RunError | Interrupted | None:
        """The error for another rank on this machine that has ended, which may become known in so many seconds."""
        return None if self.crew is None else self.crew.lost(within)

    def show_bar(self) -> None:
        """A progress bar on a terminal; nothing elsewhere."""
        from tqdm import tqdm

        hidden = not (sys.stderr.isatty() and self.first)
        self.bar = tqdm(
            total=self.total, initial=self.first_step, unit="step", leave=False, disable=hidden, file=sys.stderr
        )

    def advance_bar(self) -> None:
        if self.bar is not None:
            self.bar.update(1)

    def close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()


def session(loaded: Loaded, order: Order, team: Team, signals: Signals, crew: Others | None = None) -> Session:
    """The session of a rank that tells and writes nothing."""
    return Session(
        settings=order.settings,
        run=Run(order.run),
        events=Events(Path(os.devnull)),
        signals=signals,
        watch=watch(order, team),
        tokenizer=loaded.tokenizer,
        total=order.steps,
        validates=order.validation is not None,
        crew=crew,
    )


def watch(order: Order, team: Team) -> Watch:
    """What the hooks of a rank share when it begins."""
    return Watch(
        folder=order.run / runs.CHECKPOINTS,
        fingerprint=order.fingerprint,
        keep=order.settings.training.save_total_limit,
        spread=sharding.wanted(order.settings),
        fast=policy.taken(order.settings),
        in_8_bits=order.settings.hardware.fast_cpu == policy.INT8,
        packs=order.packs,
        team=team,
    )
