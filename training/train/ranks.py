"""The trainer's part that keeps the ranks of a training together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, cast

from training.train import team
from training.train.fast_path import FastPath
from training.train.team import Trouble
from training.train.trouble import OutOfMemory, is_out_of_memory, not_finite

if TYPE_CHECKING:
    import torch

    from training.train.team import Batch


class Ranks(FastPath):
    """A step that every rank takes at the same time, or none; with one process it is a team of one."""

    # An evaluation is under way.
    _measuring = False
    # The micro-batch that is there only because other ranks have one.
    _filling: Batch | None = None

    def training_step(
        self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """A micro-step that every rank takes, and fails, at the same time; the step's last adds the gradients up."""
        import torch

        watch = self.watch
        watch.in_step = True
        code, loss, gradients = 0, torch.zeros((), device=self.args.device), None
        try:
            if inputs is not self._filling:
                with self._uncast(model), self._without_figures():
                    loss = super().training_step(model, inputs, num_items_in_batch)
                watch.unread.append((_tokens(inputs), loss))
            else:
                self._idle(model, inputs)
            # Once a step: whoever reads what a card has reckoned waits until it has.
            if self.accelerator.sync_gradients:
                watch.tokens, finite = _read(watch.unread)
                code = 0 if finite else team.NOT_FINITE
                gradients = watch.team.gradients(self.model.parameters())
        except (RuntimeError, MemoryError) as error:
            # Of a model that is spread the others wait in the middle of it, for this one, and hear nothing.
            if watch.team.size == 1 or watch.spread or not is_out_of_memory(error):
                raise
            code = team.NO_MEMORY
        except Trouble as trouble:
            raise self._for_all(trouble) from None
        ready = time.perf_counter()
        try:
            watch.team.round(code)
        except Trouble as trouble:
            raise self._for_all(trouble) from None
        watch.line.waiting += time.perf_counter() - ready
        if self.accelerator.sync_gradients:
            watch.line.sending += watch.team.mean_gradients(self.model.parameters(), gradients)
            watch.line.steps += 1
        return loss

    def _uncast(self, model: torch.nn.Module) -> AbstractContextManager[None]:
        """On a card PEFT does not turn the input of each targeted module to the adapter's float32: autocast, under which the
        model's forward runs, turns it back at once.

        The products are the same, without two copies a module. On a CPU PEFT's way stays, so that a run begun before goes
        on as it began.
        """
        from peft.helpers import disable_input_dtype_casting

        on_card = self.accelerator.device.type != "cpu"
        return disable_input_dtype_casting(model, active=on_card and self.accelerator.native_amp)

    @contextmanager
    def _without_figures(self) -> Iterator[None]:
        """TRL reads figures of each micro-batch (entropy, accuracy, tokens), for each of which a card is waited for. Only a
        tracker gets them: where there is none (REPORT_TO) it is given a zero that is in no card's memory, and what it made of
        that is dropped. What is trained does not depend on them."""
        import torch

        if self.args.report_to:
            yield
            return
        accelerator = self.accelerator
        gather = accelerator.gather_for_metrics
        accelerator.gather_for_metrics = lambda *given, **more: torch.zeros(1)
        try:
            yield
        finally:
            accelerator.gather_for_metrics = gather
            self._metrics["train"].clear()

    def _idle(self, model: torch.nn.Module, inputs: Batch) -> None:
        """What the other ranks do in a micro-step besides training."""
        import torch

        if self.watch.fast and not self._fast_is_proved:
            self._prove_fast(model, self.accelerator.unwrap_model(model), inputs)
        if self.watch.spread:
            self._take_part(model, inputs)
        # With fp16 the scaler begins with its first use, which may be its unscaling.
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.scale(torch.zeros((), device=self.args.device))

    def _take_part(self, model: torch.nn.Module, inputs: Batch) -> None:
        """Go through a model that is spread as the others do, for nothing: it is put together by all of them."""
        import torch

        training = not self._measuring
        with torch.set_grad_enabled(training), self._uncast(model), self.compute_loss_context_manager():
            loss = self.compute_loss(model, {**inputs, "labels": inputs["input_ids"]})
        if training:
            (0.0 * cast("torch.Tensor", loss)).backward()

    def _for_all(self, trouble: Trouble) -> Exception:
        if trouble.code == team.NOT_FINITE:
            return not_finite("loss", self.state.global_step + 1, self.watch)
        return OutOfMemory(str(trouble), together=True)

    def _move_model_to_device(self, model: torch.nn.Module, device: torch.device) -> None:
        # A model that is spread is where it belongs; its shares may be in the machine's memory, for a card has no room.
        if not self.watch.spread:
            super()._move_model_to_device(model, device)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.watch.team.lead(self)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        # Unsloth puts another in its place on a card, which does not ask for the count below.
        if self.watch.team.size == 1:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        samples = list(itertools.islice(epoch_iterator, num_batches))
        return samples, self._get_num_items_in_batch(samples, device)

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor | int | None:
        # Several ranks measure with the mean over the batch's own tokens, and wait for nobody.
        if self.watch.team.size > 1 and self._measuring:
            return None
        if batch_samples and self.accelerator.gradient_state.end_of_dataloader:
            batch_samples[-1] = self._own(batch_samples[-1], self.train_dataset, self.args.train_batch_size)
        return super()._get_num_items_in_batch(batch_samples, device)

    def _own(self, inputs: Batch, rows: Sized, micro: int) -> Batch:
        """An epoch's last batch without the rows that only fill it up; `_filling`, with no label, where none is left."""
        import torch

        inputs, own = self.watch.team.own(inputs, len(rows), micro)
        if not own:
            inputs = self._filling = {**inputs, "labels": torch.full_like(inputs["labels"], -100)}
        return inputs

    def store_flos(self) -> None:
        # Nobody reads them, and several ranks would wait for each other.
        if self.watch.team.size == 1:
            super().store_flos()


def _tokens(inputs: Batch) -> torch.Tensor | int:
    """Real tokens of a micro-batch: without padding, and all of them where rows are joined without padding."""
    mask = inputs.get("attention_mask")
    return mask.sum() if mask is not None else inputs["input_ids"].numel()


def _read(micro_batches: Sequence[tuple[torch.Tensor | int, torch.Tensor]]) -> tuple[int, bool]:
    """The tokens of a step's micro-batches, and whether all of their losses are numbers; one wait for the card."""
    import torch

    if not micro_batches:
        return 0, True
    tokens, losses = zip(*micro_batches, strict=True)
    finite = torch.isfinite(torch.stack(losses)).all()
    # Up to 2 ** 53 exact.
    figures = torch.stack([torch.as_tensor(sum(tokens), device=finite.device).double(), finite.double()]).tolist()
    return int(figures[0]), bool(figures[1])
