"""Answers and losses of a model that is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from training.data import Item
from training.data.encoding import IGNORED
from training.data.held_out import LONGEST
from training.llama import GREEDY, Sampling

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOGETHER = LONGEST  # tokens of a batch whose losses are taken: more at once are no faster on a CPU


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One greedy answer: its text without the end token, its token ids, and whether it stopped by itself."""

    text: str
    ids: list[int]
    stopped: bool


def answer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    end_ids: Sequence[int],
    most: int,
    **options: object,
) -> Answer:
    """The answer to one tokenised prompt, at most `most` tokens; greedy, unless `options` of generate() say otherwise."""
    import torch

    ids = torch.tensor([list(prompt)], device=model.device)
    out = _generate(model, ids, torch.ones_like(ids), end_ids, most, **options)
    return _answer(tokenizer, out[0, len(prompt) :].tolist(), end_ids, most)


def _generate(
    model: PreTrainedModel | PeftModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    end_ids: Sequence[int],
    most: int,
    **options: object,
) -> torch.Tensor:
    """Continuations of prompts [rows, tokens], at most `most` tokens each; [rows, tokens + new]."""
    import torch

    # Beyond it Unsloth's generate() raises.
    room = getattr(model.config, "max_position_embeddings", None) or math.inf
    most = max(1, int(min(most, room - ids.shape[1])))
    # TRL switches it on; the loss of the experts' balance takes no such batch.
    if getattr(model.config, "output_router_logits", False):
        options["output_router_logits"] = False
    if torch.distributed.is_initialized():
        # Of a model that is spread over several processes it would ask in each step whether the others still generate:
        # they do not, they follow (train/sharding.py).
        options["synced_gpus"] = False
    model.eval()
    with torch.no_grad():
        # PreTrainedModel's type does not say that it can.
        greedy: dict[str, object] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        generated: torch.Tensor = cast(Any, model).generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=most,
            num_beams=1,
            use_cache=True,
            eos_token_id=list(end_ids),
            pad_token_id=end_ids[0],
            **{**greedy, "repetition_penalty": 1.0, **options},
        )
    return generated


def _answer(tokenizer: PreTrainedTokenizerBase, new: list[int], end_ids: Sequence[int], most: int) -> Answer:
    """The answer in a row of new tokens: up to and with its first end token, at most `most` tokens."""
    end = next((at for at, token in enumerate(new[:most]) if token in end_ids), None)
    new = new[:most] if end is None else new[: end + 1]
    # Of one row it gives one text.
    text = cast(str, tokenizer.decode(new if end is None else new[:-1], skip_special_tokens=True))
    return Answer(text=text.strip(), ids=new, stopped=end is not None)


def answers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    end_ids: Sequence[int],
    **options: object,
) -> list[Answer]:
    """Answers to several questions, asked together: a batch of eight takes little longer than one question.

    Greedy ones, unless `options` of generate() say otherwise. One after the other where the model carries a state through
    the padding (Mamba and its like).
    """
    if getattr(getattr(model, "base_model", model), "_is_stateful", False) or len(items) < 2:
        return [answer(model, tokenizer, item.prompt, end_ids, item.most, **options) for item in items]
    import torch

    longest, pad = max(len(item.prompt) for item in items), end_ids[0]
    ids = torch.full((len(items), longest), pad)
    mask = torch.zeros_like(ids)
    for row, item in enumerate(items):  # padded on the left: an answer follows its prompt directly
        ids[row, longest - len(item.prompt) :] = torch.tensor(item.prompt)
        mask[row, longest - len(item.prompt) :] = 1
    most = max(item.most for item in items)
    out = _generate(model, ids.to(model.device), mask.to(model.device), end_ids, most, **options)
    return [
        _answer(tokenizer, row[longest:].tolist(), end_ids, item.most) for row, item in zip(out, items, strict=True)
    ]


def losses(model: PreTrainedModel | PeftModel, items: Sequence[Item]) -> list[float]:
    """For each item the mean cross-entropy (nats) over its answer's tokens; as many rows at a time as TOGETHER tokens hold."""
    import torch

    each = []
    model.eval()
    with torch.no_grad():
        for group in _groups(items):
            longest = max(len(item.ids) for item in group)
            ids = torch.zeros((len(group), longest), dtype=torch.long)
            labels = torch.full((len(group), longest), IGNORED)
            mask = torch.zeros_like(ids)
            # Padded on the right: what comes later changes nothing before it.
            for row, item in enumerate(group):
                size = len(item.ids)
                ids[row, :size], labels[row, :size] = torch.tensor(item.ids), torch.tensor(item.labels)
                mask[row, :size] = 1
            out = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
            for logits, wanted in zip(out.logits[:, :-1], labels[:, 1:].to(model.device), strict=True):
                trained = wanted != IGNORED
                each.append(float(torch.nn.functional.cross_entropy(logits[trained].float(), wanted[trained])))
    return each


def _groups(items: Sequence[Item]) -> list[list[Item]]:
    """Items in their order, grouped so that each group, padded to its longest, has at most TOGETHER tokens."""
    groups: list[list[Item]] = []
    for item in items:
        last = groups[-1] if groups else None
        if last and (len(last) + 1) * max(len(one.ids) for one in (*last, item)) <= TOGETHER:
            last.append(item)
        else:
            groups.append([item])
    return groups


def stream(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    end_ids: Sequence[int],
    most: int,
    tell: Callable[[str], None],
    stopping: Callable[[], bool],
    sampling: Sampling = GREEDY,
) -> Answer:
    """Like `answer`, told piece by piece; it ends early once `stopping` says so."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

    class Pieces(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                tell(text)

    class Stop(StoppingCriteria):
        def __call__(
            self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: object
        ) -> torch.BoolTensor:
            ends = torch.full((len(input_ids),), stopping(), dtype=torch.bool, device=input_ids.device)
            return cast("torch.BoolTensor", ends)

    ids = torch.tensor([list(prompt)], device=model.device)
    streamer = Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)
    stops = StoppingCriteriaList([Stop()])
    mask = torch.ones_like(ids)
    options: dict[str, object] = {"streamer": streamer, "stopping_criteria": stops}
    if sampling.temperature > 0:
        options |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
    out = _generate(model, ids, mask, end_ids, most, **options)
    return _answer(tokenizer, out[0, len(prompt) :].tolist(), end_ids, most)
