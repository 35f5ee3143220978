"""What ends or breaks off a training: memory that is short, numbers that are none, a signal."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from training.errors import RunError
from training.runs import checkpoint
from training.system.wording import first_line
from training.train import heap
from training.train.watch import Watch


class OutOfMemory(Exception):
    """A step did not fit into memory; unless `Watch.updating`, model and optimizer are as they were after the one before.

    `together`: every rank raises it at the same micro-step.
    """

    def __init__(self, words: str, together: bool = False) -> None:
        super().__init__(words)
        self.together = together


def free_memory() -> None:
    """Give back what nothing holds any more, a card's memory too: torch keeps it for itself, and other programs wait."""
    import torch

    gc.collect()
    heap.give_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.xpu.is_available():
        torch.xpu.empty_cache()


class StopNow(Exception):
    """Leave an evaluation that is under way, for a signal has come."""


@contextmanager
def memory_watched() -> Iterator[None]:
    """Turn the ways in which torch says that memory ran out into OutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(first_line(error, "no memory")) from None
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, on a GPU or a CPU, says that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return any(words in text for words in ("out of memory", "can't allocate memory", "not enough memory"))


def not_finite(what: str, step: int, watch: Watch) -> RunError:
    """The error for a loss or gradient that is NaN or infinite."""
    # The adapter of the first step is not trained yet.
    if step == 0 or (step == 1 and what == "loss"):
        reason = "the base model's loss is not a finite number: its weights are damaged, or overflow in this PRECISION"
        return RunError("training", reason, checkpoint.where(watch.folder))
    return RunError(
        "training",
        f"the {what} of step {step} is not a finite number; lower LEARNING_RATE, or set PRECISION = fp32 with "
        "AUTO_FP16_BF16 = false",
        checkpoint.where(watch.folder),
    )
