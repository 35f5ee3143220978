"""One optimizer step, and the way back from one that failed half-way."""

from __future__ import annotations

import random
import time
from typing import Any

from training.train.state import Watch


def take_random_state() -> dict[str, Any]:
    """Every random state that training draws from: Python's, NumPy's, torch's, and each GPU's."""
    import numpy
    import torch

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `take_random_state` returned."""
    import numpy
    import torch

    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state_all(state["cuda"])


def begin_epoch(watch: Watch) -> None:
    """Called when an epoch begins. Its data loader draws a seed, so the first step is done again from before that."""
    watch.random_state, watch.epoch_begins = take_random_state(), True


def begin_step(watch: Watch) -> None:
    """Called when an optimizer step begins, before its first micro-batch."""
    watch.tokens, watch.began, watch.in_step = 0, time.perf_counter(), False
    if not watch.epoch_begins:
        watch.random_state = take_random_state()
    watch.epoch_begins = False


def begin_update(watch: Watch, model: Any, step: int) -> None:
    """Called before the optimizer updates the weights. Before the first update there may be no checkpoint to go back to."""
    if step == 0:
        watch.untrained = {n: p.detach().cpu().clone() for n, p in model.named_parameters() if p.requires_grad}
    watch.updating = True


def end_update(watch: Watch) -> None:
    """Called after the optimizer has updated the weights."""
    watch.updating, watch.untrained = False, None


def take_back_update(watch: Watch, one: Any) -> None:
    """After a failed first update: the adapter as it was, and an optimizer that has seen nothing."""
    import torch

    with torch.no_grad():
        for name, parameter in one.model.named_parameters():
            if name in watch.untrained:
                parameter.copy_(watch.untrained[name])
    one.optimizer.state.clear()
    end_update(watch)
