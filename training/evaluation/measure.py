"""Is the tuned model better? Answers and losses with the adapter on and off, on rows that were not trained on."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from training.data import Item, held_out
from training.evaluation import scoring
from training.evaluation.generate import Answer, answers_of_both, losses
from training.evaluation.ledger import Ledger
from training.evaluation.scoring import Marks, Score
from training.system import privacy

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from training.fast_cpu.decoder import Decoder

Part = TypeVar("Part")
LOSS, GENERAL_LOSS, PERPLEXITY = "loss on held-out answers", "loss on general questions", "perplexity"


@dataclass(frozen=True)
class Sample:
    """One question of the held-out rows, answered by the base model and by the tuned one."""

    question: str
    expected: str
    before: str | None  # None where the base cannot be asked any more: its biases were trained
    after: str
    stopped: bool | None  # None where it was cut off before that could be told


@dataclass(frozen=True)
class Evaluated:
    """What base and tuned model made of the same rows: lines of the report's tables, and the answers.

    ledger: what the training did to the rows that were learned.
    """

    samples: list[Sample] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    general: list[Score] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)


def evaluate(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: Sequence[int],
    held_out: Sequence[Item],
    asked: Sequence[Item],
    general: Sequence[Item],
    switchable: bool,
    tell: Callable[[float], None] = lambda share: None,
    layers: Decoder | None = None,
) -> Evaluated:
    """Measure a model with its adapter switched off, then on; the base comes after training, which so starts at once.

    held_out: rows whose losses are compared (none: the questions in `asked` were trained on, and nothing is scored).
    `switchable`: no bias was trained, which PEFT does not put back when the adapter is off; else the base is not asked.
    `tell` hears which part of the work is done, from 0 to 1. `layers`: the hand-written layers for CPUs of a model that was
    trained with them.
    """

    # The answers count as two parts, for they take the longest.
    parts = itertools.count(2)

    def told(part: Part) -> Part:
        tell(next(parts) / (6 if switchable else 4))
        return part

    def measured(adapter: bool) -> tuple[list[float], list[float]]:
        with contextlib.nullcontext() if adapter else model.disable_adapter():
            return told(losses(model, held_out, layers)), told(losses(model, general, layers))

    before, after = told(answers_of_both(model, tokenizer, asked, end_ids, switchable, layers))
    losses_before, general_before = measured(False) if switchable else (None, None)
    losses_after, general_after = measured(True)
    samples = [
        Sample(
            question=item.question,
            expected=item.expected,
            before=None if before is None else before[at].text,
            after=after[at].text,
            stopped=stopped(item, after[at]),
        )
        for at, item in enumerate(asked)
    ]
    scores = loss_scores(held_out, losses_before, losses_after)
    if held_out:
        scores += scoring.answer_scores(None if before is None else marks(asked, before), marks(asked, after))
    weights = [item.tokens for item in general]
    cost = [scoring.compared(GENERAL_LOSS, -1, general_before, general_after, weights=weights)] if general else []
    return Evaluated(samples=samples, scores=scores, general=cost)


def stopped(item: Item, reply: Answer) -> bool | None:
    """Whether an answer stopped by itself; None where it was cut off before that could be told."""
    return held_out.stopped(reply.stopped, len(reply.ids), item.most, item.wanted)


def marks(items: Sequence[Item], replies: Sequence[Answer]) -> list[Marks]:
    """Score answers against what was expected.

    Whether they stop is scored of those alone that are given the tokens for it, whatever became of the others.
    """
    # What is expected is kept without secrets, so that an answer is compared as it would be kept.
    return [
        scoring.marks(privacy.redact(reply.text), item.expected, reply.stopped if item.decides else None)
        for item, reply in zip(items, replies, strict=True)
    ]


def loss_scores(
    items: Sequence[Item],
    before: Sequence[float] | None,
    after: Sequence[float],
    quantised: Sequence[float] | None = None,
) -> list[Score]:
    """The lines of loss and perplexity; a mean over tokens, as the validation loss is."""
    if not items:
        return []
    weights = [item.tokens for item in items]
    loss = scoring.compared(LOSS, -1, before, after, quantised, weights)
    before_and_after = scoring.perplexity(loss.before), scoring.perplexity(loss.after)
    return [loss, Score(PERPLEXITY, *before_and_after, scoring.perplexity(loss.quantised), rows=len(items))]
