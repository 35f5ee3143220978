"""TRL's trainer with the hooks that this program needs: whole checkpoints, exact resume, and errors caught early."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loguru import logger

from training.errors import RunError
from training.fast_cpu import fast_loss
from training.runs import checkpoint
from training.train import random_state, team
from training.train.random_state import RandomState
from training.train.state import Watch
from training.train.team import Trouble

# The trainer's files that nothing reads again: PEFT's empty model card, a pickle, the base's own tokenizer.
NOT_KEPT = ("README.md", "training_args.bin", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class OutOfMemory(Exception):
    """A step did not fit into memory; unless `Watch.updating`, model and optimizer are as they were after the one before.

    `together`: every rank raises it at the same micro-step.
    """

    together = False


class StopNow(Exception):
    """Leave an evaluation that is under way, for a signal has come."""


def hooked(trainer_class: Any, watch: Watch) -> Any:
    """A subclass of TRL's (or Unsloth's) trainer with the hooks."""
    import torch

    class Trainer(trainer_class):
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            """A micro-step that every rank takes, and fails, at the same time; the step's last adds the gradients up."""
            watch.in_step = True
            said, loss = 0, torch.zeros((), device=self.args.device)
            try:
                if inputs is not self._filling:
                    watch.tokens += _tokens(inputs)
                    loss = super().training_step(model, inputs, *args, **kwargs)
                    said = 0 if torch.isfinite(loss) else team.NOT_FINITE
                else:
                    self._idle(model, inputs)
            except (RuntimeError, MemoryError) as error:
                if watch.team.size == 1 or not is_out_of_memory(error):
                    raise
                said = team.NO_MEMORY
            except Trouble as heard:
                raise self._for_all(heard) from None
            try:
                watch.team.round(said)
            except Trouble as heard:
                raise self._for_all(heard) from None
            if self.accelerator.sync_gradients:
                watch.team.mean_gradients(self.model.parameters())
            return loss

        _measuring = False  # an evaluation is under way
        _filling: Any = None  # the micro-batch that is there only because other ranks have one

        def _idle(self, model: Any, inputs: dict[str, Any]) -> None:
            """What the other ranks do in a micro-step besides training."""
            if watch.fast and not self._fast_is_proved:
                self._prove_fast(model, self.accelerator.unwrap_model(model), inputs)
            if self.accelerator.scaler is not None:  # fp16: it begins with its first use, which may be its unscaling
                self.accelerator.scaler.scale(torch.zeros((), device=self.args.device))

        def _for_all(self, heard: Trouble) -> Exception:
            if heard.code == team.NOT_FINITE:
                return not_finite("loss", self.state.global_step + 1, watch)
            error = OutOfMemory(str(heard))
            error.together = True
            return error

        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            watch.team.lead(self)

        def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
            if watch.team.size > 1 and self._measuring:
                return None  # the mean over the batch's own tokens, and nobody to wait for
            if batch_samples and self.accelerator.gradient_state.end_of_dataloader:
                batch_samples[-1] = self._own(batch_samples[-1], self.train_dataset, self.args.train_batch_size)
            return super()._get_num_items_in_batch(batch_samples, device)

        def _own(self, inputs: dict[str, Any], rows: Any, micro: int) -> dict[str, Any]:
            """An epoch's last batch without the rows that only fill it up; `_filling`, with no label, where none is left."""
            kept, own = watch.team.own(inputs, len(rows), micro)
            if not own:
                kept = self._filling = {**kept, "labels": torch.full_like(kept["labels"], -100)}
            return kept

        def store_flos(self) -> None:
            if watch.team.size == 1:  # nobody else reads them, and the ranks would wait for each other
                super().store_flos()

        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
            norm = super()._get_grad_norm(model, grad_norm=grad_norm)
            # With fp16 an infinite gradient is the loss scaler's business: it skips the step and lowers the scale.
            if norm is not None and not self.args.fp16 and not math.isfinite(float(norm)):
                raise not_finite("gradient", self.state.global_step + 1, watch)
            return norm

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            bare = self.accelerator.unwrap_model(model)
            tensors = {name: value for name, value in inputs.items() if torch.is_tensor(value)}  # TRL may add a flag
            if watch.fast and not self._fast_is_proved:
                self._prove_fast(model, bare, tensors)
            if not watch.fast:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            value = fast_loss.loss(bare.get_base_model(), tensors, num_items_in_batch, self._layers)
            if num_items_in_batch is not None:  # as the plain way does: see mean_gradients
                value = value * watch.team.size
            return (value, {"loss": value}) if return_outputs else value

        _fast_is_proved = False
        _layers: Any = None

        def _prove_fast(self, model: Any, bare: Any, inputs: dict[str, Any]) -> None:
            """Compare the fast path with the plain one on some rows of a first micro-batch; leave off what differs.

            What was found goes with the checkpoints: a resumed run takes the path that it took, whatever its first batch.
            """
            self._fast_is_proved = True
            causal_lm, plain = bare.get_base_model(), super().compute_loss
            if (found := watch.carried.fast_path) is not None:
                watch.fast = found != "none"
                self._layers = fast_loss.layers(causal_lm) if found == "layers" else None
                return
            few = fast_loss.sample(inputs)

            def equal(layers: Any) -> bool:
                return fast_loss.agrees(
                    bare,
                    lambda: plain(model, dict(few), False, None),
                    lambda: fast_loss.loss(causal_lm, few, None, layers),
                )

            with torch.enable_grad():
                watch.fast = fast_loss.plain_head(causal_lm)
                self._layers = fast_loss.layers(causal_lm) if watch.fast else None
                if self._layers is not None and not self._for_every_rank(equal(self._layers)):
                    logger.warning("the hand-written layers for CPUs give another loss for this model; not taken")
                    self._layers = None
                if watch.fast and self._layers is None:
                    watch.fast = self._for_every_rank(equal(None))
            watch.carried.fast_path = "none" if not watch.fast else "head" if self._layers is None else "layers"
            if not watch.fast:
                logger.warning("the fast path for CPUs gives another loss for this model; going on without it")

        def _for_every_rank(self, here: bool) -> bool:
            return all(watch.team.round(here))

        def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if self.accelerator.gradient_state.end_of_dataloader:
                inputs = self._own(inputs, self.eval_dataset, self.args.eval_batch_size)
                if inputs is self._filling:
                    self._idle(model, inputs)
                    return torch.zeros((), device=self.args.device), None, None
            count = int((inputs["labels"][..., 1:] != -100).sum())
            result = super().prediction_step(model, inputs, *args, **kwargs)
            self._loss_sum += float(result[0]) * count
            self._loss_count += count
            return result

        def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
            """The loss is a mean over all trained tokens; the trainer's own is one of batches, whatever they hold."""
            self._loss_sum, self._loss_count = 0.0, 0
            self._measuring = True
            try:
                output = super().evaluation_loop(*args, **kwargs)
            finally:
                self._measuring = False
            self._loss_sum, self._loss_count = watch.team.sums([self._loss_sum, self._loss_count])
            output.metrics["eval_loss"] = self._loss_sum / max(1, self._loss_count)
            return output

        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            state = random_state.take()  # so that evaluating more or less often does not change the training
            try:
                if watch.carried.before is None and self.state.global_step > 0:
                    self._evaluate_base(*args, **kwargs)
                return super().evaluate(*args, **kwargs)
            finally:
                random_state.put_back(state)

        def _evaluate_base(self, *args: Any, **kwargs: Any) -> None:
            """The base's figure comes with the first one of the adapter, which is left out for it: training starts at once."""
            watch.on_base = True
            try:
                with self.accelerator.unwrap_model(self.model).disable_adapter():
                    super().evaluate(*args, **kwargs)
            finally:
                watch.on_base = False

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            step = self.state.global_step
            self._states = watch.team.gather(random_state.told(self._state_to_resume_from()))
            if watch.team.rank:  # rank 0 writes for all
                return
            with checkpoint.writing(watch.folder, watch.manifest(step)) as partial:
                target = partial.with_name(partial.name.replace(".partial", ".files.partial"))
                self._run_folder = str(target)
                try:
                    super()._save_checkpoint(model, trial)
                    for file in sorted((target / f"checkpoint-{step}").iterdir()):
                        file.replace(partial / file.name)
                finally:
                    self._run_folder = None
                    shutil.rmtree(target, ignore_errors=True)
                for name in NOT_KEPT:
                    (partial / name).unlink(missing_ok=True)
            checkpoint.rotate(watch.folder, watch.keep, step)

        def _get_output_dir(self, trial: Any) -> str:
            return getattr(self, "_run_folder", None) or super()._get_output_dir(trial)

        def _save_rng_state(self, output_dir: str) -> None:
            if watch.team.size > 1:  # under the names that the trainer looks for
                for rank, told in enumerate(self._states):
                    state = random_state.heard(told)
                    named = {"python": state.python, "numpy": state.numpy, "cpu": state.torch, "cuda": state.cuda}
                    torch.save(named, Path(output_dir) / f"rng_state_{rank}.pth")
                return
            now = random_state.take()
            random_state.put_back(self._state_to_resume_from())
            super()._save_rng_state(output_dir)
            random_state.put_back(now)

        def _state_to_resume_from(self) -> RandomState:
            """A partial accumulation is thrown away on resume, and with it the randomness that it used up."""
            return (watch.random_state if watch.in_step else None) or random_state.take()

        def _load_rng_state(self, checkpoint: str | None) -> None:
            super()._load_rng_state(checkpoint)
            watch.random_state = random_state.take()

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """No model card: report.md says what was trained."""

    return Trainer


@contextmanager
def memory_watched() -> Iterator[None]:
    """Turn the ways in which torch says that memory ran out into OutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory((str(error).splitlines() or ["no memory"])[0]) from None
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, on a GPU or a CPU, says that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return any(words in text for words in ("out of memory", "can't allocate memory", "not enough memory"))


def _tokens(inputs: dict[str, Any]) -> int:
    """Real tokens of a micro-batch: without padding, and all of them where rows are joined without padding."""
    mask = inputs.get("attention_mask")
    return int(mask.sum()) if mask is not None else int(inputs["input_ids"].numel())


def not_finite(what: str, step: int, watch: Watch) -> RunError:
    """The error for a loss or gradient that is NaN or infinite."""
    if step == 0 or (step == 1 and what == "loss"):  # the adapter of the first step is not trained yet
        reason = "the base model's loss is not a finite number: its weights are damaged, or overflow in this PRECISION"
        return RunError("training", reason, checkpoint.where(watch.folder))
    return RunError(
        "training",
        f"the {what} of step {step} is not a finite number; lower LEARNING_RATE, or set PRECISION = fp32 with "
        "AUTO_FP16_BF16 = false",
        checkpoint.where(watch.folder),
    )
