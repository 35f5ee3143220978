"""A model folder run by transformers itself: the yardstick that GGUF files are held against."""

from __future__ import annotations

import functools
import gc
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from training.base_model import leftovers, load_tokenizer, lora_adapter, safetensors_file, weights_fit
from training.errors import RunError
from training.evaluation import divergence
from training.llama import circles
from training.system.wording import first_line

if TYPE_CHECKING:
    import numpy as np
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from training.base_model.weights_fit import LoadingInfo
    from training.evaluation.generate import Answer

ROOM = 1 << 30  # bytes beside the weights: activations, a block of logits, the libraries
# At most so many tokens are run together (more are no quicker), and so many bytes of float32 logits.
TOKENS, LOGITS = 1024, 1 << 28


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A loaded model of a folder. dtype: the float type that it computes in, whatever type its weights are stored in.

    keep: a folder in which its logits are kept, because several checks ask for those of the same sequences. words: its tokenizer,
    where that is loaded already.
    """

    model: PreTrainedModel | PeftModel
    folder: Path
    dtype: str
    keep: Path | None = None
    words: PreTrainedTokenizerBase | None = None

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The folder's own tokenizer, which logits need not. RunError where it has none."""
        if self.words is not None:
            return self.words
        if not _has_tokenizer(self.folder):
            raise RunError("model", "its folder has no tokenizer, so it cannot be asked")
        return load_tokenizer(self.folder)

    def without_adapter(self) -> AbstractContextManager[object]:
        """Switches the adapter off in a `with`; only for a model that was opened with one."""
        return cast("PeftModel", self.model).disable_adapter()

    def logits(self, sequences: Sequence[Sequence[int]], first: Sequence[int]) -> Iterator[np.ndarray]:
        """For each sequence a float32 array [len(ids) - first, vocabulary], in their order."""
        logits = self._logits(sequences, first)
        return logits if self.keep is None else divergence.kept_logits(self.keep, logits, len(sequences))

    def _logits(self, sequences: Sequence[Sequence[int]], first: Sequence[int]) -> Iterator[np.ndarray]:
        """Memory for TOKENS and LOGITS only. Neighbours are run together, filled up at their ends: a causal model does not see what
        comes later. Alone, a row of fifty tokens costs as much time as the reading of all weights.
        """
        import torch

        width = self.model.config.get_text_config().vocab_size
        for group in groups([len(ids) for ids in sequences], first, width):
            longest = max(len(sequences[number]) for number in group)
            keep = longest - min(first[number] for number in group)
            filled = [list(sequences[number]) + [0] * (longest - len(sequences[number])) for number in group]
            tokens = torch.tensor(filled, device=self.model.device)
            with torch.inference_mode():
                # logits_to_keep: only the wanted rows go through the head, whose output is the largest tensor of all
                out = self.model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits[:, -keep:]
            for number, rows in zip(group, out, strict=True):
                start = first[number] - (longest - keep)
                yield rows[start : len(sequences[number]) - (longest - keep)].float().cpu().numpy()

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        end_ids: Sequence[int],
        most: Sequence[int],
        drafts: Sequence[Sequence[int]] = (),
    ) -> list[Answer]:
        """The greedy answers to tokenised prompts, at most so many tokens of each, all prompts together.

        drafts: what another model that should answer the same has answered, without its end token. This one reads each in one
        piece and writes on only where it would have chosen otherwise: the same answers, but for near ties, in less time.
        """
        from training.data import Item
        from training.evaluation import generate

        limits = [generate.at_most(self.model, len(ids), limit) for ids, limit in zip(prompts, most, strict=True)]
        found = self._agreed(prompts, limits, drafts) if drafts else [list[int]() for _ in prompts]
        on = [
            number
            for number, ids in enumerate(found)
            if len(ids) < limits[number] and not (ids and ids[-1] in end_ids) and not circles.goes_round(ids)
        ]
        items = [Item([], [], "", "", [*prompts[at], *found[at]], limits[at] - len(found[at])) for at in on]
        for at, rest in zip(on, generate.answers(self.model, self.tokenizer, items, end_ids), strict=True):
            found[at] += rest.ids
        return [generate.ended(self.tokenizer, ids, end_ids, limit) for ids, limit in zip(found, limits, strict=True)]

    def _agreed(
        self, prompts: Sequence[Sequence[int]], most: Sequence[int], drafts: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        """Of each draft the tokens that this model chooses, too, and its own choice after them; at most so many."""
        kept = [list(draft[:limit]) for draft, limit in zip(drafts, most, strict=True)]
        read = [[*ids, *draft] for ids, draft in zip(prompts, kept, strict=True)]
        found = []
        for draft, limit, rows in zip(kept, most, self._logits(read, [len(ids) - 1 for ids in prompts]), strict=True):
            chosen = rows.argmax(-1).tolist()
            same = next((at for at, token in enumerate(draft) if chosen[at] != token), len(draft))
            found.append([*draft[:same], chosen[same]][:limit])
        return found


def groups(lengths: Sequence[int], first: Sequence[int], vocabulary: int) -> Iterator[list[int]]:
    """Numbers of neighbouring sequences that are run together: at most TOKENS with what fills them up, LOGITS bytes."""
    group: list[int] = []
    for number in range(len(lengths)):
        tried = [*group, number]
        longest = max(lengths[n] for n in tried)
        kept = longest - min(first[n] for n in tried)
        if group and (len(tried) * longest > TOKENS or len(tried) * kept * vocabulary * 4 > LOGITS):
            yield group
            tried = [number]
        group = tried
    if group:
        yield group


@dataclass(frozen=True)
class TooLarge:
    """Why a model was not loaded: for the record of a check that was left out."""

    reason: str


def needed(folder: Path, bytes_each: int) -> int:
    """Bytes of memory that a model takes with every parameter held in `bytes_each` bytes."""
    parameters = sum(math.prod(tensor.shape) for tensor in safetensors_file.tensors(folder, "checks").values())
    return parameters * bytes_each + ROOM


def fitting(folder: Path, memory: int | None = None) -> str | TooLarge:
    """The dtype to run a folder in: float32, whose own rounding is far below what is looked for, else bfloat16.

    memory: bytes that may be used; None asks the machine.
    """
    if memory is None:
        from training.system import this_machine

        memory = this_machine.inspect().memory_available
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        if needed(folder, size) <= memory:
            return dtype
    return TooLarge(f"it takes {needed(folder, 2) / 1e9:.1f} GB of memory in bfloat16, {memory / 1e9:.1f} GB are free")


@contextmanager
def opened(
    folder: Path,
    memory: int | None = None,
    adapter: Path | None = None,
    keep: Path | None = None,
    words: PreTrainedTokenizerBase | None = None,
) -> Iterator[Reference | TooLarge]:
    """Load a model folder (with an adapter of PEFT's over it) on the CPU, or say why not; frees it afterwards."""
    dtype = fitting(folder, memory)
    if isinstance(dtype, TooLarge):
        yield dtype
        return
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    level = logging.getLogger("transformers").level
    try:
        with leftovers.kept_out(folder) as seen:
            # With output_loading_info it gives a pair, which its type does not say.
            model, info = cast(
                "tuple[PreTrainedModel | PeftModel, LoadingInfo]",
                AutoModelForCausalLM.from_pretrained(
                    seen, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
                ),
            )
        weights_fit.require(info, folder)
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
        logging.getLogger("transformers").setLevel(level)
    if adapter is not None:
        from peft import PeftModel

        try:
            with lora_adapter.tying_known():
                model = PeftModel.from_pretrained(model, adapter)
        except (RuntimeError, ValueError) as error:
            first = first_line(error)
            raise RunError("model", f"the adapter in {adapter} does not fit {folder}: {first}") from error
    try:
        yield Reference(model=model.eval(), folder=folder, dtype=dtype, keep=keep, words=words)
    finally:
        del model
        gc.collect()


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json"))
