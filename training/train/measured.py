"""The trainer's part that measures: validation losses, and whether a gradient is a number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from training.train import random_state
from training.train.ranks import Ranks
from training.train.trouble import not_finite

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers.trainer_utils import EvalLoopOutput

    from training.train.team import Batch


class Measured(Ranks):
    """The validation loss as a mean over all trained tokens, of the base model and of the adapter."""

    _loss_sum = 0.0
    _loss_count = 0.0

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        import torch

        if self.accelerator.gradient_state.end_of_dataloader:
            inputs = self._own(inputs, self.eval_dataset, self.args.eval_batch_size)
            if inputs is self._filling:
                self._idle(model, inputs)
                return torch.zeros((), device=self.args.device), None, None
        count = int((inputs["labels"][..., 1:] != -100).sum())
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if loss is not None:
            self._loss_sum += float(loss) * count
            self._loss_count += count
        return loss, logits, labels

    def evaluation_loop(
        self,
        dataloader: DataLoader[Batch],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The loss is a mean over all trained tokens; the trainer's own is one of batches, whatever they hold."""
        self._loss_sum, self._loss_count = 0.0, 0.0
        self._measuring = True
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        finally:
            self._measuring = False
        self._loss_sum, self._loss_count = self.watch.team.sums([self._loss_sum, self._loss_count])
        mean = self._loss_sum / max(1, self._loss_count)
        return output._replace(metrics={**(output.metrics or {}), "eval_loss": mean})

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure without a trace: evaluating more or less often does not change the training."""
        state = random_state.take()
        try:
            if self.watch.carried.before is None and self.state.global_step > 0:
                self._evaluate_base(eval_dataset, ignore_keys, metric_key_prefix)
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            random_state.put_back(state)

    def _evaluate_base(
        self, eval_dataset: Dataset | dict[str, Dataset] | None, ignore_keys: list[str] | None, metric_key_prefix: str
    ) -> None:
        """The base's figure comes with the first one of the adapter, which is left out for it: training starts at once."""
        self.watch.on_base = True
        try:
            with self.accelerator.unwrap_model(self.model).disable_adapter():
                super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self.watch.on_base = False

    def _get_grad_norm(
        self, model: torch.nn.Module, grad_norm: torch.Tensor | float | None = None
    ) -> torch.Tensor | float | None:
        norm: torch.Tensor | float | None = super()._get_grad_norm(model, grad_norm=grad_norm)
        # With fp16 an infinite gradient is the loss scaler's business: it skips the step and lowers the scale.
        if norm is not None and not self.args.fp16 and not math.isfinite(float(norm)):
            raise not_finite("gradient", self.state.global_step + 1, self.watch)
        return norm
