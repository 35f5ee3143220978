"""The trainer's part that takes the fast path of a CPU to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from loguru import logger

from training.errors import MachineError
from training.fast_cpu import fast_loss
from training.system import this_machine
from training.system.wording import gigabytes
from training.train.mixin import Mixin

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from training.fast_cpu.decoder import Decoder
    from training.train.team import Batch


class FastPath(Mixin):
    """The loss of a micro-batch: by the fast path, once that has proved equal to the trainer's own."""

    _fast_is_proved = False
    _layers: Decoder | None = None
    _told = False

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        import torch

        bare = self.accelerator.unwrap_model(model)
        # TRL may put a flag beside the rows.
        tensors = {name: value for name, value in inputs.items() if torch.is_tensor(value)}
        if self.watch.fast and not self._fast_is_proved:
            self._prove_fast(model, bare, tensors)
        if not self.watch.fast:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # What is evaluated is what ships: the adapter on the exact weights.
        layers = self.exact_layers()
        if layers is not self._layers and model.training:
            layers = self._layers
        value = fast_loss.loss(bare.get_base_model(), tensors, num_items_in_batch, layers)
        self._tell_shared()
        # As the plain way does: the gradients' mean over the ranks follows (Team.mean_gradients).
        if num_items_in_batch is not None:
            value = value * self.watch.team.size
        return (value, {"loss": value}) if return_outputs else value

    def exact_layers(self) -> Decoder | None:
        """The hand-written layers for the evaluation after the training, where they have the exact weights."""
        return None if self._layers is None or self._layers.in_8_bits else self._layers

    def _same_products(self) -> None:
        """Rank 0's choice of products for all, for it is the one that goes with the checkpoints."""
        from training.fast_cpu import products

        name = self.watch.team.first(lambda: self._layers.by.name if self._layers is not None else None)
        if self._layers is not None and name is not None:
            self._layers.by = products.named(name)

    def _tell_shared(self) -> None:
        """Say once that rows begin alike, and how much of a micro-batch that leaves to compute."""
        found = self._layers.shared if self._layers is not None else None
        if found is not None and not self._told:
            self._told = True
            logger.info("rows that begin alike are computed once for what they share: here {:,} of {:,} tokens", *found)

    def _prove_layers(self, causal_lm: PreTrainedModel, equal: Callable[[Decoder], bool]) -> None:
        """Take the hand-written layers that prove equal: with weights in 8 bits where these are asked for, else exact ones."""
        for in_8_bits in (True, False) if self.watch.in_8_bits else (False,):
            # The memory was planned for weights in 8 bits, and these are not kept beside the exact ones.
            self._layers = None
            if self.watch.in_8_bits and not in_8_bits:
                _require_room(causal_lm)
                logger.warning(
                    "FAST_CPU = int8: this model's weights do not go into 8 bits, or give another loss or gradients too far "
                    "from the exact ones; training goes on with the exact weights, in more memory"
                )
            self._layers = fast_loss.layers(causal_lm, in_8_bits=in_8_bits, packs=self.watch.packs)
            self._same_products()
            if self._layers is not None and equal(self._layers):
                return
            if self._layers is not None and not in_8_bits:
                logger.warning("the hand-written layers for CPUs give another loss for this model; not taken")
        self._layers = None

    def _prove_fast(self, model: torch.nn.Module, bare: PeftModel, inputs: Batch) -> None:
        """Compare the fast path with the plain one on some rows of a first micro-batch; leave off what differs.

        What comes of it goes with the checkpoints: a resumed run takes the path that it took, whatever its first batch.
        """
        import torch

        watch, self._fast_is_proved = self.watch, True
        # A causal language model it is, which PEFT does not say.
        causal_lm = cast("PreTrainedModel", bare.get_base_model())
        if (taken := watch.carried.fast_path) is not None:
            watch.fast = taken != "none"
            carried = watch.carried
            if taken == "layers":
                self._layers = fast_loss.layers(causal_lm, carried.shares, carried.products, packs=watch.packs)
            if self._layers is not None:
                self._layers.set_aside()
            return
        few, plain = fast_loss.sample(inputs), super().compute_loss

        def equal(layers: Decoder | None) -> bool:
            """In all ranks."""
            same = fast_loss.agrees(
                bare,
                lambda: cast("torch.Tensor", plain(model, dict(few), False, None)),
                lambda: fast_loss.loss(causal_lm, few, None, layers),
                layers is not None and layers.in_8_bits,
            )
            return all(watch.team.round(same and (layers is None or layers.sound())))

        with torch.enable_grad():
            watch.fast = fast_loss.plain_head(causal_lm)
            if watch.fast:
                self._prove_layers(causal_lm, equal)
            if watch.fast and self._layers is None:
                watch.fast = equal(None)
        if self._layers is not None:
            # What was not tried, for want of rows, is not taken; by all ranks alike.
            self._layers.shares = all(watch.team.round(self._layers.shared is not None))
            # What is told is of a whole micro-batch.
            self._layers.shared = None
            self._layers.set_aside()
        watch.carried.shares = self._layers is not None and self._layers.shares
        watch.carried.products = self._layers.by.name if self._layers is not None else None
        watch.carried.fast_path = "none" if not watch.fast else "head" if self._layers is None else "layers"
        if not watch.fast:
            logger.warning("the fast path for CPUs gives another loss for this model; going on without it")


def _require_room(causal_lm: PreTrainedModel) -> None:
    """MachineError where the exact weights do not fit: the system would kill the run, some steps later."""
    from training.fast_cpu import int8

    needed = int8.in_files([weight for weight in causal_lm.parameters() if not weight.requires_grad])
    _, free = this_machine.memory()
    if needed > free:
        raise MachineError(
            f"FAST_CPU = int8 cannot be taken for this model, and its exact weights need {gigabytes(needed)}, of which "
            f"{gigabytes(free)} are free; choose a smaller BASE_MODEL_NAME, or a machine with more memory"
        )
