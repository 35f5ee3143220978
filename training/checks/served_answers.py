"""Does a live Ollama answer as llama.cpp does from the same file, and does it come to an end?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from training import llama
from training.checks.served_prompts import Trained
from training.data import ChatTemplate, Item, Turn, chat_template, held_out
from training.data.fast_tokenising import tokeniser
from training.errors import UserError
from training.ollama import Server, asking
from training.ollama.asking import Prompt
from training.ollama.template_parts import TEXTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTIONS = 3
FIRST = 16  # tokens of an answer that are compared
LONGEST = 96  # tokens of an answer, within which it is seen whether it stops
# Nats. Another engine computes the margin of two tokens otherwise: by 0.44 for one question to a Q4_K_M of 135M parameters on
# Ollama 0.24.0, whose engine is its own (the server chose a token that llama.cpp has 0.35 behind).
NEAR = 0.7


@dataclass(frozen=True)
class Question:
    """A question that is asked in a served chat: `most` tokens may be taken by its answer."""

    prompt: Prompt
    most: int = LONGEST


@dataclass
class Answers:
    """What was found. `stops` of `stoppable`: answers that end by themselves, of those that do with llama.cpp."""

    questions: int = 0
    first_tokens_differently: int | None = 0
    near_ties: int = 0
    stops: int = 0
    stoppable: int = 0
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def compare(
    server: Server, name: str, trained: Trained, gguf: llama.Process | None, questions: Sequence[Question]
) -> Answers:
    """Ask the server, and llama.cpp on the same file where that is here (`gguf`)."""
    found = Answers(first_tokens_differently=None if gguf is None else 0)
    for question in questions:
        served = asking.answer(server, name, question.prompt, question.most)
        found.questions += 1
        found.stops += served.stopped
        if gguf is None:
            continue
        ids = _read(trained, question.prompt, asking.rendered(server, name, question.prompt), served.tokens)
        [ours] = llama.answer(gguf, [ids], question.most)
        found.stoppable += ours.stopped
        # After another word, which may be as good, the answer is another one, and ends where it ends.
        if (
            ours.stopped
            and not served.stopped
            and (served.text + served.thoughts).lstrip().startswith(ours.text.strip())
        ):
            how = "only repeats itself" if served.looped else f"does not end within {question.most} tokens"
            found.failures.append(f"an answer {how}, and llama.cpp ends it on the same file")
        _first(found, trained, gguf, (ids, ours), served)
    return found


def _read(trained: Trained, prompt: Prompt, rendered: str | None, count: int | None) -> list[int]:
    """The tokens that the server read: of the prompt that it tells, else of the one of those trained that has as many."""
    if rendered is not None:
        return trained.tokens(rendered)
    possible = [trained.tokens(text) for text in trained.prompts(prompt)]
    return next((ids for ids in possible if len(ids) == count), possible[0])


def _first(
    found: Answers, trained: Trained, gguf: llama.Process, ours: tuple[list[int], llama.Answer], served: asking.Answer
) -> None:
    """Compare the first tokens; where they part, was it a near tie?"""
    prompt, answer = ours
    if served.thoughts and "</think>" not in answer.text and "<think>" not in answer.text and not trained.thoughts:
        found.first_tokens_differently = (found.first_tokens_differently or 0) + 1
        found.failures.append("the answer is shown as thoughts, and none were trained")
        return
    said, ids = _bare(served.thoughts + served.text), answer.ids
    words = trained.tokenizer
    at = next((i for i in range(min(FIRST, len(ids))) if not said.startswith(_text(words, ids[: i + 1]))), None)
    if at is None and (len(ids) >= FIRST or said == _text(words, ids)):
        return
    at, gap = _gap(gguf, trained, prompt, ids, said, len(ids) if at is None else at)
    if gap < NEAR:
        found.near_ties += 1
        found.notes.append(f"token {at + 1} of an answer is another one, nearly as likely ({gap:.2f} nats)")
        return
    found.first_tokens_differently = (found.first_tokens_differently or 0) + 1
    found.failures.append(
        f"token {at + 1} of an answer is not llama.cpp's on the same file: less likely by {gap:.2f} nats"
    )


def _gap(
    gguf: llama.Process, trained: Trained, prompt: list[int], ids: Sequence[int], said: str, most: int
) -> tuple[int, float]:
    """Where the server's tokens part from llama.cpp's, at `most` there, and how much less likely its choice is, in nats.

    The server tells its answer as text: these are the tokens that the tokenizer makes of it. A character may span tokens,
    so that the text alone does not tell where they part.
    """
    theirs = tokeniser(trained.tokenizer)([said])[0] if said else []
    at = next((i for i, (a, b) in enumerate(zip(ids, theirs, strict=False)) if a != b), min(len(ids), len(theirs)))
    at = min(at, most)
    [row] = llama.logits(gguf, [[*prompt, *ids[:at]]], [len(prompt) + at - 1])
    likely = llama.log_softmax(row)[0]
    ends = llama.metadata(gguf)["vocab"]["end"] if at in (len(ids), len(theirs)) else []
    chosen = max((float(likely[token]) for token in (theirs[at : at + 1] or ends)), default=-math.inf)
    return at, float(likely.max()) - chosen


def _text(words: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = words.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    # A character may span tokens.
    return _bare(str(text)).rstrip("\ufffd")


def _bare(text: str) -> str:
    """An answer without the marks of thoughts and without white space in front, which servers take away."""
    return text.replace("<think>", "").replace("</think>", "").lstrip()


def questions(
    template: ChatTemplate | None, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Item], longest: int
) -> list[Question]:
    """Held-out questions of the run that are plain chats, else the shipped general ones."""
    if template is None:
        return [Question(text) for text in TEXTS[:QUESTIONS]]
    found = plain_chats(template, tokenizer, asked, longest)
    if len(found) < QUESTIONS:
        found += plain_chats(template, tokenizer, held_out.general(template, tokenizer, longest), longest)
    return [Question(prompt, max(FIRST, min(item.most, LONGEST))) for prompt, item in found[:QUESTIONS]]


def plain_chats(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Item], longest: int
) -> list[tuple[Prompt, Item]]:
    """The questions that can be asked in a chat. Of longer chats the last question alone was kept, and a text with what
    looks like a secret not as it was."""
    found: list[tuple[Prompt, Item]] = []
    trained = Trained(template=template, tokenizer=tokenizer, num_ctx=longest)
    for item in asked:
        turns = [Turn("user", item.question)]
        try:
            text = chat_template.render(template, chat_template.conversation(template, turns), True)
        except UserError:
            continue
        if item.prompt == trained.tokens(text):
            found.append(([{"role": "user", "content": item.question}], item))
    return found
