"""A model folder run by transformers itself: the yardstick that GGUF files are held against."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import weights
from training.errors import RunError

if TYPE_CHECKING:
    import numpy as np

ROOM = 1 << 30  # bytes beside the weights: activations, a block of logits, the libraries


@dataclass(frozen=True)
class Reference:
    """A loaded model. dtype: the float type that it computes in, whatever type its weights are stored in."""

    model: Any
    tokenizer: Any
    dtype: str

    def logits(self, sequences: Sequence[Sequence[int]], first: Sequence[int]) -> Iterator[np.ndarray]:
        """For each sequence a float32 array [len(ids) - first, vocabulary]; memory for one sequence only."""
        import torch

        for ids, start in zip(sequences, first, strict=True):
            tokens = torch.tensor([list(ids)], device=self.model.device)
            with torch.inference_mode():
                # logits_to_keep: only the wanted rows go through the head, whose output is the largest tensor of all
                out = self.model(input_ids=tokens, use_cache=False, logits_to_keep=len(ids) - start)
            yield out.logits[0].float().cpu().numpy()[-(len(ids) - start) :]


@dataclass(frozen=True)
class TooLarge:
    """Why a model was not loaded: for the record of a check that was left out."""

    reason: str


def needed(folder: Path, bytes_each: int) -> int:
    """Bytes of memory that a model takes with every parameter held in `bytes_each` bytes."""
    parameters = sum(math.prod(tensor.shape) for tensor in weights.tensors(folder, "checks").values())
    return parameters * bytes_each + ROOM


def fitting(folder: Path, memory: int | None = None) -> str | TooLarge:
    """The dtype to run a folder in: float32, whose own rounding is far below what is looked for, else bfloat16.

    memory: bytes that may be used; None asks the machine.
    """
    if memory is None:
        from training import environment

        memory = environment.inspect().memory_available
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        if needed(folder, size) <= memory:
            return dtype
    return TooLarge(f"it takes {needed(folder, 2) / 1e9:.1f} GB of memory in bfloat16, {memory / 1e9:.1f} GB are free")


@contextmanager
def opened(folder: Path, memory: int | None = None, adapter: Path | None = None) -> Iterator[Reference | TooLarge]:
    """Load a model folder (with an adapter of PEFT's over it) on the CPU, or say why not; frees it afterwards."""
    dtype = fitting(folder, memory)
    if isinstance(dtype, TooLarge):
        yield dtype
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    level = logging.getLogger("transformers").level
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if _has_tokenizer(folder) else None
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
        logging.getLogger("transformers").setLevel(level)
    if adapter is not None:
        from peft import PeftModel

        try:
            model = PeftModel.from_pretrained(model, adapter)
        except (RuntimeError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise RunError("model", f"the adapter in {adapter} does not fit {folder}: {first}") from error
    try:
        yield Reference(model.eval(), tokenizer, dtype)
    finally:
        del model
        gc.collect()


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json"))
