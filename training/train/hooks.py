"""TRL's trainer with our parts mixed in: whole checkpoints, exact resume, ranks, and errors caught early."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from training.train.checkpoints import Checkpoints
from training.train.fast_path import FastPath
from training.train.measured import Measured
from training.train.ranks import Ranks
from training.train.warm_up import WarmUp
from training.train.watch import Watch

if TYPE_CHECKING:
    from transformers import Trainer

    from training.train.mixin import Mixin


def hooked(trainer_class: type[Trainer], watch: Watch) -> type[Mixin]:
    """A subclass of TRL's (or Unsloth's) trainer with our parts in front of it."""
    made = type("Trainer", (Checkpoints, Measured, Ranks, FastPath, WarmUp, trainer_class), {"watch": watch})
    # To the type checker the parts are trainers themselves.
    return cast("type[Mixin]", made)
