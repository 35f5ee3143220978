"""What the hooks of a training share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from training.runs.checkpoint import Carried, Manifest
from training.train.link import Line
from training.train.random_state import RandomState
from training.train.team import Alone, Team

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True)
class Watch:
    """What the hooks of one training run share, and what a checkpoint carries over to a resumed one."""

    folder: Path  # where checkpoints go
    fingerprint: Mapping[str, object]  # of the run
    keep: int  # SAVE_TOTAL_LIMIT
    micro_batch: tuple[int, int] = (1, 1)  # rows a micro-batch, micro-batches a step
    carried: Carried = field(default_factory=Carried)
    fast: bool = False  # take the fast path of a CPU, once it has proved equal
    in_8_bits: bool = False  # and there frozen weights in 8 bits
    packs: bool = False  # or laid out for their products, for which there is memory
    spread: bool = False  # the frozen weights are spread over the ranks, which go through the model together
    tokens: int = 0  # real tokens of the last whole step
    # Of the step that is under way, a micro-batch each: its real tokens and its loss, perhaps on a card still.
    unread: list[tuple[torch.Tensor | int, torch.Tensor]] = field(default_factory=list)
    tokens_per_second: float = 0.0  # of the last whole step
    began: float = 0.0  # when the step began
    random_state: RandomState | None = None  # from which the step can be done again
    epoch_begins: bool = False  # the next step is the first of an epoch
    in_step: bool = False  # some micro-batches of the step are done, its update is not
    on_base: bool = False  # the evaluation that is under way is the base model's
    # The optimizer is at work: a failure now leaves some weights changed and others not.
    updating: bool = False
    # The adapter before the very first update, on the CPU.
    untrained: dict[str, torch.Tensor] | None = None
    team: Team = field(default_factory=Alone)
    line: Line = field(default_factory=Line)  # between the processes

    def manifest(self, step: int) -> Manifest:
        """What a checkpoint of now says of itself, but for its files."""
        return Manifest(
            step=step, files={}, fingerprint=self.fingerprint, micro_batch=self.micro_batch, carried=self.carried
        )
