"""Answers and losses of a model that is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from loguru import logger

from training.data import Item
from training.data.encoding import IGNORED
from training.data.held_out import LONGEST
from training.llama import GREEDY, Sampling, circles

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

    from training.fast_cpu.decoder import Decoder

# Tokens of a batch whose losses are taken: more at once are no faster on a CPU; by the hand-written layers they are.
TOGETHER, BY_HAND = LONGEST, 2 * LONGEST


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One greedy answer: its text without the end token, its token ids, and whether it stopped by itself.

    One that goes round in circles (llama/circles.py) is cut off where it begins to, and has not stopped.
    """

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
    return ended(tokenizer, out[0, len(prompt) :].tolist(), end_ids, most)


def at_most(model: PreTrainedModel | PeftModel, asked: int, most: int) -> int:
    """How many of `most` tokens an answer may take after a prompt of `asked`: as far as the model's positions go, beyond which
    Unsloth's generate() raises."""
    room = getattr(model.config, "max_position_embeddings", None) or math.inf
    return max(1, int(min(most, room - asked)))


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

    most = at_most(model, ids.shape[1], most)
    # TRL switches it on; the loss of the experts' balance takes no such batch.
    if getattr(model.config, "output_router_logits", False):
        options["output_router_logits"] = False
    if torch.distributed.is_initialized():
        # Of a model that is spread over several processes it would ask in each step whether the others still generate:
        # they do not, they follow (train/sharding.py).
        options["synced_gpus"] = False
    model.eval()
    if "stopping_criteria" not in options:
        options["stopping_criteria"] = _no_circles(ids.shape[1])
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


def _no_circles(start: int) -> StoppingCriteriaList:
    """Ends each row that goes round in circles, of those whose answers begin at token `start`; `ended` cuts it off there."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Circles(StoppingCriteria):
        def __call__(
            self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: object
        ) -> torch.BoolTensor:
            ends = [circles.goes_round(row) for row in input_ids[:, start:].tolist()]
            return cast("torch.BoolTensor", torch.tensor(ends, device=input_ids.device))

    return StoppingCriteriaList([Circles()])


def ended(
    tokenizer: PreTrainedTokenizerBase, new: list[int], end_ids: Sequence[int], most: int, told: bool = False
) -> Answer:
    """The answer in a row of new tokens: up to and with its first end token, at most `most` tokens. `told`: it was shown
    as it came, circles and all."""
    end = next((at for at, token in enumerate(new[:most]) if token in end_ids), None)
    new = new[:most] if end is None else new[: end + 1]
    if not told and (round_at := circles.end(new)) is not None:
        new, end = new[:round_at], None
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
    return [ended(tokenizer, row[longest:].tolist(), end_ids, item.most) for row, item in zip(out, items, strict=True)]


def answers_of_both(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    end_ids: Sequence[int],
    base: bool,
    layers: Decoder | None = None,
) -> tuple[list[Answer] | None, list[Answer]]:
    """The greedy answers of the base model (None unless it is to be asked: `base`) and of the tuned one.

    `layers`: the hand-written layers for CPUs of a model that was trained with them; all answers then grow together.
    """
    if layers is not None and items and (found := _by_hand(model, tokenizer, items, end_ids, base, layers)):
        return found
    before = None
    if base:
        with model.disable_adapter():
            before = answers(model, tokenizer, items, end_ids)
    return before, answers(model, tokenizer, items, end_ids)


def _by_hand(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    end_ids: Sequence[int],
    base: bool,
    layers: Decoder,
) -> tuple[list[Answer] | None, list[Answer]] | None:
    """The same by the hand-written layers; None where they are not for these prompts, or do not answer as the model."""
    from training.fast_cpu import greedy

    most = [at_most(model, len(item.prompt), item.most) for item in items]
    longest = max(len(item.prompt) + limit for item, limit in zip(items, most, strict=True))
    if layers.window is not None and longest > layers.window:
        return None
    model.eval()
    try:
        found = greedy.answers(layers, [item.prompt for item in items], most, end_ids, base)
    except greedy.Unsound as error:
        logger.warning(
            "the hand-written layers for CPUs do not answer as this model does ({}): it answers itself", error
        )
        return None
    logger.debug("{} questions are answered by the hand-written layers for CPUs", len(items))
    before, after = (
        [ended(tokenizer, new, end_ids, limit) for new, limit in zip(part, most, strict=False)] for part in found
    )
    return before if base else None, after


def losses(model: PreTrainedModel | PeftModel, items: Sequence[Item], layers: Decoder | None = None) -> list[float]:
    """For each item the mean cross-entropy (nats) over its answer's tokens; as many rows at a time as TOGETHER tokens hold.

    `layers`: the hand-written layers for CPUs of a model that was trained with them.
    """
    import torch

    model.eval()
    if layers is not None and all(len(item.ids) <= (layers.window or len(item.ids)) for item in items):
        from training.fast_cpu import inference

        groups = _groups(items, BY_HAND)
        return [
            loss for group in groups for loss in inference.losses(layers, [(item.ids, item.labels) for item in group])
        ]
    each = []
    with torch.no_grad():
        for group in _groups(items, TOGETHER):
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


def _groups(items: Sequence[Item], together: int) -> list[list[Item]]:
    """Items in their order, grouped so that each group, padded to its longest, has at most so many tokens."""
    groups: list[list[Item]] = []
    for item in items:
        last = groups[-1] if groups else None
        if last and (len(last) + 1) * max(len(one.ids) for one in (*last, item)) <= together:
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
    return ended(tokenizer, out[0, len(prompt) :].tolist(), end_ids, most, told=True)
