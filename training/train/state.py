"""What the parts of one training share while it runs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import runs
from training.data import Item
from training.runs import Run
from training.runs.checkpoint import Carried, Manifest
from training.system.events import Events
from training.system.signals import Signals
from training.train.order import Order
from training.train.random_state import RandomState
from training.train.team import Alone, Team

if TYPE_CHECKING:
    import torch

SAVE = 1000  # beyond every signal's number


@dataclass
class Session:
    """One process training one run: what its hooks need, and what they count."""

    settings: Any
    run: Run
    events: Any
    signals: Any
    watch: Watch
    tokenizer: Any
    questions: Sequence[Item]  # asked every SAMPLE_STEPS steps
    end_ids: Sequence[int]
    total: int  # optimizer steps of the run
    first_step: int = 0  # where this process took the run up
    started: float = field(default_factory=time.perf_counter)
    first_began: float | None = None  # when the first step of this process began
    tokens: int = 0
    seconds: float = 0.0  # spent in optimizer steps
    recent: list[float] = field(default_factory=list)  # losses since the last line of the log
    trainer: Any = None
    bar: Any = None
    crew: Any = None  # in rank 0: the processes of the others

    @property
    def first(self) -> bool:
        """Whether this is rank 0, or the only process: the one that writes and tells."""
        return self.watch.team.rank == 0

    def asked(self) -> tuple[int | None, bool]:
        """The signal that shall end the training, and whether a checkpoint is asked for: the same in all ranks."""
        asked = self.watch.team.round((self.signals.stop or 0) + (SAVE if self.signals.save else 0))
        stop = next((one % SAVE for one in asked if one % SAVE), None)
        return stop, any(one >= SAVE for one in asked)


def session(loaded: Any, order: Order, team: Team, signals: Signals) -> Session:
    """The session of a rank that tells and writes nothing."""
    keep, folder = order.settings.training.save_total_limit, order.run / runs.CHECKPOINTS
    watch = Watch(
        folder=folder, fingerprint=order.marks, keep=keep, fast=order.settings.hardware.fast_cpu is True, team=team
    )
    run, silent = Run(order.run), Events(Path(os.devnull))
    return Session(order.settings, run, silent, signals, watch, loaded.tokenizer, (), (), order.steps)


@dataclass(kw_only=True)
class Watch:
    """What the hooks of one training run share, and what a checkpoint carries over to a resumed one."""

    folder: Path  # where checkpoints go
    fingerprint: Mapping[str, object]  # of the run
    keep: int  # SAVE_TOTAL_LIMIT
    micro_batch: tuple[int, int] = (1, 1)  # rows a micro-batch, micro-batches a step
    carried: Carried = field(default_factory=Carried)
    fast: bool = False  # take the fast path of a CPU, once it has proved equal
    tokens: int = 0  # real tokens since the start of the step
    tokens_per_second: float = 0.0  # of the last whole step
    began: float = 0.0  # when the step began
    random_state: RandomState | None = None  # from which the step can be done again
    epoch_begins: bool = False  # the next step is the first of an epoch
    in_step: bool = False  # some micro-batches of the step are done, its update is not
    on_base: bool = False  # the evaluation that is under way is the base model's
    updating: bool = False  # the optimizer is at work: a failure now leaves some weights changed and others not
    untrained: dict[str, torch.Tensor] | None = None  # the adapter before the very first update, on the CPU
    team: Team = field(default_factory=Alone)  # the ranks that train together

    def manifest(self, step: int) -> Manifest:
        """What a checkpoint of now says of itself, but for its files."""
        return Manifest(
            step=step, files={}, fingerprint=self.fingerprint, micro_batch=self.micro_batch, carried=self.carried
        )
