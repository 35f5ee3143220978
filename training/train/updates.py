"""One optimizer step, and the way back from one that failed half-way."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from training.train import random_state
from training.train.watch import Watch

if TYPE_CHECKING:
    import torch


def begin_epoch(watch: Watch) -> None:
    """Called when an epoch begins. Its data loader draws a seed, so the first step is done again from before that."""
    watch.random_state, watch.epoch_begins = random_state.take(), True


def begin_step(watch: Watch) -> None:
    """Called when an optimizer step begins, before its first micro-batch."""
    watch.began, watch.in_step = time.perf_counter(), False
    watch.unread.clear()
    if not watch.epoch_begins:
        watch.random_state = random_state.take()
    watch.epoch_begins = False


def begin_update(watch: Watch, model: torch.nn.Module, step: int) -> None:
    """Called before the optimizer updates the weights. Before the first update there may be no checkpoint to go back to."""
    if step == 0:
        watch.untrained = {n: p.detach().cpu().clone() for n, p in model.named_parameters() if p.requires_grad}
    watch.updating = True


def end_update(watch: Watch) -> None:
    """Called after the optimizer has updated the weights."""
    watch.updating, watch.untrained = False, None


def take_back_update(watch: Watch, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """After a failed first update: the adapter as it was, and an optimizer that has seen nothing."""
    import torch

    untrained = watch.untrained or {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in untrained:
                parameter.copy_(untrained[name])
    optimizer.state.clear()
    end_update(watch)
