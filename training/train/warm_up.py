"""The trainer's part that lets the learning rate rise from the first step on.

transformers' schedules multiply the rate by step / warm-up steps, counted from 0: the first step of every run changes
nothing. Here it is (step + 1) / (warm-up steps + 1), which neither begins at 0 nor reaches the top before its time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from training.train.mixin import Mixin

if TYPE_CHECKING:
    import torch
    from torch.optim.lr_scheduler import LambdaLR, LRScheduler


class WarmUp(Mixin):
    """The schedule as it is made: also for a run that is resumed, whose checkpoint says which of the two it began with."""

    _rises = False

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        from torch.optim.lr_scheduler import LambdaLR

        schedule: LRScheduler = super().create_scheduler(num_training_steps, optimizer)
        warm = self.args.get_warmup_steps(num_training_steps)
        wanted = self.watch.carried.rises_at_once and self.args.lr_scheduler_type != "constant"
        if wanted and warm and not self._rises and isinstance(schedule, LambdaLR):
            rise_at_once(schedule, warm)
            self._rises = True
        return schedule


def rise_at_once(schedule: LambdaLR, warm: int) -> None:
    """Let a schedule with a warm-up of `warm` steps begin above 0, from the step on at which it stands."""

    def risen(then: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: (step + 1) / (warm + 1) if step < warm else then(step)

    schedule.lr_lambdas = [risen(then) for then in schedule.lr_lambdas]
    # The rate of the first step was set when the schedule was made.
    rates = [rate * now(schedule.last_epoch) for rate, now in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates
