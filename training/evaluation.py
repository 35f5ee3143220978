"""Is the tuned model better? Answers and losses with the adapter on and off, on rows that were not trained on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from training import scoring
from training.data import Item
from training.data.encoding import IGNORED
from training.data.held_out import LONGEST
from training.system import privacy

TOGETHER = LONGEST  # tokens of a batch whose losses are taken: more at once are no faster on a CPU
LOSS, GENERAL_LOSS, PERPLEXITY = "loss on held-out answers", "loss on general questions", "perplexity"


@dataclass(frozen=True)
class Answer:
    """One greedy answer: its text without the end token, its token ids, and whether it stopped by itself."""

    text: str
    ids: list[int]
    stopped: bool


@dataclass(frozen=True)
class Sample:
    """One question of the held-out rows, answered by the base model and by the tuned one."""

    question: str
    expected: str
    before: str | None  # None where the base cannot be asked any more: its biases were trained
    after: str
    stopped: bool

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON-able values, for the report."""
        return asdict(self)


def answer(model: Any, tokenizer: Any, prompt: Sequence[int], end_ids: Sequence[int], most: int) -> Answer:
    """The greedy answer to one tokenised prompt, at most `most` tokens."""
    import torch

    ids = torch.tensor([list(prompt)], device=model.device)
    out = _generate(model, ids, torch.ones_like(ids), end_ids, most)
    return _answer(tokenizer, out[0, len(prompt) :].tolist(), end_ids, most)


def _generate(model: Any, ids: Any, mask: Any, end_ids: Sequence[int], most: int, **options: Any) -> Any:
    """Greedy continuations of prompts [rows, tokens], at most `most` tokens each; [rows, tokens + new]."""
    import torch

    room = getattr(model.config, "max_position_embeddings", None) or math.inf  # beyond it Unsloth's generate() raises
    most = max(1, int(min(most, room - ids.shape[1])))
    if getattr(
        model.config, "output_router_logits", False
    ):  # TRL's; its loss of the experts' balance takes no such batch
        options["output_router_logits"] = False
    model.eval()
    with torch.no_grad():
        return model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=most,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            use_cache=True,
            eos_token_id=list(end_ids),
            pad_token_id=end_ids[0],
            **options,
        )


def _answer(tokenizer: Any, new: list[int], end_ids: Sequence[int], most: int) -> Answer:
    """The answer in a row of new tokens: up to and with its first end token, at most `most` tokens."""
    end = next((at for at, token in enumerate(new[:most]) if token in end_ids), None)
    new = new[:most] if end is None else new[: end + 1]
    text = tokenizer.decode(new if end is None else new[:-1], skip_special_tokens=True).strip()
    return Answer(text, new, end is not None)


def answers(model: Any, tokenizer: Any, items: Sequence[Item], end_ids: Sequence[int]) -> list[Answer]:
    """Greedy answers to several questions, asked together: a batch of eight takes little longer than one question.

    One after the other where the model carries a state through the padding (Mamba and its like).
    """
    if getattr(getattr(model, "base_model", model), "_is_stateful", False) or len(items) < 2:
        return [answer(model, tokenizer, item.prompt, end_ids, item.most) for item in items]
    import torch

    longest, pad = max(len(item.prompt) for item in items), end_ids[0]
    ids = torch.full((len(items), longest), pad)
    mask = torch.zeros_like(ids)
    for row, item in enumerate(items):  # padded on the left: an answer follows its prompt directly
        ids[row, longest - len(item.prompt) :] = torch.tensor(item.prompt)
        mask[row, longest - len(item.prompt) :] = 1
    out = _generate(model, ids.to(model.device), mask.to(model.device), end_ids, max(item.most for item in items))
    return [
        _answer(tokenizer, row[longest:].tolist(), end_ids, item.most) for row, item in zip(out, items, strict=True)
    ]


def losses(model: Any, items: Sequence[Item]) -> list[float]:
    """For each item the mean cross-entropy (nats) over its answer's tokens; as many rows at a time as TOGETHER tokens hold."""
    import torch

    found = []
    model.eval()
    with torch.no_grad():
        for group in _groups(items):
            longest = max(len(item.ids) for item in group)
            ids = torch.zeros((len(group), longest), dtype=torch.long)
            labels = torch.full((len(group), longest), IGNORED)
            mask = torch.zeros_like(ids)
            for row, item in enumerate(group):  # padded on the right: what comes later changes nothing before it
                size = len(item.ids)
                ids[row, :size], labels[row, :size] = torch.tensor(item.ids), torch.tensor(item.labels)
                mask[row, :size] = 1
            out = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
            for logits, wanted in zip(out.logits[:, :-1], labels[:, 1:].to(model.device), strict=True):
                chosen = wanted != IGNORED
                found.append(float(torch.nn.functional.cross_entropy(logits[chosen].float(), wanted[chosen])))
    return found


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


@dataclass(frozen=True)
class Evaluated:
    """What base and tuned model made of the same rows: lines of the report's tables, and the answers."""

    samples: list[Sample]
    scores: list[dict[str, Any]]  # fields of record.Score
    general: list[dict[str, Any]]


def evaluate(
    model: Any,
    tokenizer: Any,
    end_ids: Sequence[int],
    held_out: Sequence[Item],
    asked: Sequence[Item],
    general: Sequence[Item],
    switchable: bool,
) -> Evaluated:
    """Measure a model with its adapter switched off, then on; the base comes after training, which so starts at once.

    held_out: rows whose losses are compared (none: the questions in `asked` were trained on, and nothing is scored).
    `switchable`: no bias was trained, which PEFT does not put back when the adapter is off; else the base is not asked.
    """

    def one(adapter: bool) -> tuple[list[Answer], list[float], list[float]]:
        with contextlib.nullcontext() if adapter else model.disable_adapter():
            return answers(model, tokenizer, asked, end_ids), losses(model, held_out), losses(model, general)

    base = one(False) if switchable else None
    tuned = one(True)
    said = base[0] if base else [None] * len(asked)
    samples = [
        Sample(item.question, item.expected, before and before.text, after.text, after.stopped)
        for item, before, after in zip(asked, said, tuned[0], strict=True)
    ]
    scores = loss_scores(held_out, base and base[1], tuned[1])
    if held_out:
        scores += scoring.answer_scores(marks(asked, base[0]) if base else None, marks(asked, tuned[0]))
    weights = [item.tokens for item in general]
    cost = [scoring.compared(GENERAL_LOSS, -1, base and base[2], tuned[2], weights=weights)] if general else []
    return Evaluated(samples, scores, cost)


def marks(items: Sequence[Item], found: Sequence[Any]) -> list[scoring.Marks]:
    """Score answers (text, stopped) against what was expected."""
    # What is expected is kept without secrets, so that an answer is compared as it would be kept.
    pairs = zip(items, found, strict=True)
    return [scoring.marks(privacy.redact(one.text), item.expected, one.stopped) for item, one in pairs]


def loss_scores(
    items: Sequence[Item],
    before: Sequence[float] | None,
    after: Sequence[float],
    quantised: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """The lines of loss and perplexity; a mean over tokens, as the validation loss is."""
    if not items:
        return []
    weights = [item.tokens for item in items]
    loss = scoring.compared(LOSS, -1, before, after, quantised, weights)
    values = {key: loss.get(key) for key in ("before", "after", "quantised")}
    return [loss, {"name": PERPLEXITY, "rows": len(items), **{k: scoring.perplexity(v) for k, v in values.items()}}]


def stream(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    end_ids: Sequence[int],
    most: int,
    tell: Callable[[str], None],
    stopping: Callable[[], bool],
) -> Answer:
    """Like `answer`, told piece by piece; it ends early once `stopping` says so."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

    class Told(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                tell(text)

    class Stop(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.full((len(input_ids),), stopping(), dtype=torch.bool, device=input_ids.device)

    ids = torch.tensor([list(prompt)], device=model.device)
    streamer = Told(tokenizer, skip_prompt=True, skip_special_tokens=True)
    options = {"streamer": streamer, "stopping_criteria": StoppingCriteriaList([Stop()])}
    out = _generate(model, ids, torch.ones_like(ids), end_ids, most, **options)
    return _answer(tokenizer, out[0, len(prompt) :].tolist(), end_ids, most)
