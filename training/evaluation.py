"""Answers of the model in training, with the adapter on and off, for the report and for the checks of the export."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


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
    room = getattr(model.config, "max_position_embeddings", None) or math.inf  # beyond it Unsloth's generate() raises
    most = max(1, int(min(most, room - len(prompt))))
    model.eval()
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
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
        )
    new = out[0, len(prompt) :].tolist()
    stopped = bool(new) and new[-1] in end_ids
    return Answer(tokenizer.decode(new[:-1] if stopped else new, skip_special_tokens=True).strip(), new, stopped)


def compare(
    model: Any, tokenizer: Any, questions: Sequence[Mapping[str, Any]], end_ids: Sequence[int], switchable: bool
) -> list[Sample]:
    """Answer questions (question, expected, ids, most: see plan.questions) with the adapter switched off, then on.

    The base's answers come after training, so that training starts at once. `switchable`: no bias was trained, which
    PEFT does not put back when the adapter is off; else the base is not asked.
    """
    samples = []
    for asked in questions:
        prompt, most = asked["ids"], asked["most"]
        before = None
        if switchable:
            with model.disable_adapter():
                before = answer(model, tokenizer, prompt, end_ids, most).text
        after = answer(model, tokenizer, prompt, end_ids, most)
        samples.append(Sample(asked["question"], asked["expected"], before, after.text, after.stopped))
    return samples


def loss(model: Any, rows: Any) -> float:
    """Mean cross-entropy (nats) over the trained tokens of tokenised rows (input_ids, labels), one row at a time."""
    import torch

    total, count = 0.0, 0
    model.eval()
    with torch.no_grad():
        for row in rows:
            labels = torch.tensor([row["labels"]], device=model.device)
            ids = torch.tensor([row["input_ids"]], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum"))
            count += int((labels[0, 1:] != -100).sum())
    return total / max(1, count)


def test_scores(model: Any, rows: Any, switchable: bool) -> list[dict[str, Any]]:
    """The losses of base and tuned model on the test rows (TEST_SPLIT), as scores of the report; none without rows."""
    if rows is None:
        return []
    before = None
    if switchable:
        with model.disable_adapter():
            before = loss(model, rows)
    after = loss(model, rows)
    return [{"name": "test loss", "before": before, "after": after, "rows": len(rows)}]
