"""What our parts of the trainer are mixed into: TRL's trainer, or Unsloth's version of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import Trainer

    from training.fast_cpu.decoder import Decoder
    from training.train.watch import Watch

    class Mixin(Trainer):
        """The trainer as its parts see it."""

        watch: Watch
        model: PeftModel
        train_dataset: Dataset
        eval_dataset: Dataset  # None where nothing is measured
        _metrics: dict[str, dict[str, list[float]]]  # TRL's, by "train" and "eval"

        def exact_layers(self) -> Decoder | None: ...  # FastPath's

else:

    class Mixin:
        """Nothing by itself: the trainer's class is known only once its engine has been started."""
