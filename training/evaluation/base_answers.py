"""The base model's own answers to questions, asked before it is trained: rows that hold it to what it could do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from training.base_model import BaseModel
from training.base_model.generation import config
from training.data import ChatTemplate, Item, Row, Turn, encoding, replay
from training.data.encoding import NothingToTrain
from training.evaluation import generate

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

# Tokens: the shipped questions ask for short answers, and one that goes on beyond is mostly one that goes round in circles.
LONGEST_ANSWER = 256
TOGETHER = 16  # questions asked at a time
MOST_SECONDS = 900.0  # of asking
# Settings of generate() that are taken from generation_config.json, as they may stand there.
CHANCE = ("temperature", "top_p", "top_k", "min_p", "typical_p")


@dataclass(kw_only=True)
class Answered:
    """What came of asking. `unended`: answers that did not end in time, or that the rows' template cannot hold."""

    exchanges: list[tuple[str, str]] = field(default_factory=list)
    asked: int = 0
    unended: int = 0
    seconds: float = 0.0
    in_time: bool = True


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How the base model is asked: in its own chat template, with its own end tokens, as its generation_config.json says.

    `rows`: the template that the rows are trained in, and `longest`: the tokens that one of them may have.
    """

    own: ChatTemplate
    end_ids: Sequence[int]
    options: dict[str, object]
    rows: ChatTemplate
    longest: int


def options(base: BaseModel) -> dict[str, object]:
    """How the model takes the next token where nobody says otherwise: the likeliest, or by chance as its own file says."""
    found = config(base.path)
    numbers = {key: value for key, value in found.items() if type(value) in (int, float) and value > 0}
    chosen: dict[str, object] = {}
    if isinstance(penalty := numbers.get("repetition_penalty"), float):
        chosen["repetition_penalty"] = penalty
    if found.get("do_sample") is True:
        chosen |= {"do_sample": True, **{key: numbers[key] for key in CHANCE if key in numbers}}
    return chosen


def ask(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    asking: Asking,
    questions: Sequence[str],
    wanted: int,
    tell: Callable[[int, int], None] = lambda asked, answered: None,
) -> Answered:
    """Ask in the order of the questions until `wanted` answers have ended, MOST_SECONDS are over, or all were asked.

    `model`: with an adapter that is new, and has changed nothing. `tell` hears how many more were asked, and have ended.
    """
    began, found = time.monotonic(), Answered()
    for at in range(0, len(questions), TOGETHER):
        found.seconds = time.monotonic() - began
        found.in_time = found.seconds < MOST_SECONDS
        if len(found.exchanges) >= wanted or not found.in_time:
            break
        part = questions[at : at + TOGETHER]
        items = [_item(tokenizer, asking, question) for question in part]
        answers = generate.answers(model, tokenizer, items, asking.end_ids, **asking.options)
        ended = [
            (question, answer.text)
            for question, answer in zip(part, answers, strict=True)
            if answer.stopped and _fits(tokenizer, asking, question, answer.text)
        ]
        found.exchanges += ended
        found.asked += len(part)
        found.unended += len(part) - len(ended)
        tell(len(part), len(ended))
    found.seconds = time.monotonic() - began
    return found


def _item(tokenizer: PreTrainedTokenizerBase, asking: Asking, question: str) -> Item:
    prompt = encoding.prompt_ids(asking.own, tokenizer, [Turn("user", question)])
    most = max(1, min(LONGEST_ANSWER, asking.longest - len(prompt)))
    return Item([], [], question, "", prompt, most)


def _fits(tokenizer: PreTrainedTokenizerBase, asking: Asking, question: str, answer: str) -> bool:
    """Whether an answer makes one whole row. "" is none, and a template may have no room for thoughts."""
    if not answer.strip() or "\0" in answer:
        return False
    row = Row(replay.turns(question, answer), None, replay.FILE, 1)
    try:
        (encoded, *more) = encoding.encode(asking.rows, tokenizer, row, asking.longest)
    except NothingToTrain:
        return False
    return not more and not encoded.cut
