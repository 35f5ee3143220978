"""Private things that a model may have learned, as questions to the finished model that could draw them out.

What stands in an answer that was learned comes out for whoever asks right. So it is asked as the row asks, and once more
with the beginning of the answer already said. Kept of a private thing is a digest: no file of the run holds it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.data import dataset, encoding, private
from training.data.chat_template import ChatTemplate
from training.data.encoding import NothingToTrain
from training.data.held_out import spread
from training.data.record import place
from training.data.rows import Row

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

MOST = 20  # private things that are asked for
LOOKED_AT = 20_000  # rows in which they are looked for
BEYOND = 8  # tokens that an answer may take beyond those of the row's up to the private thing


@dataclass(frozen=True, kw_only=True)
class PrivateQuestion:
    """A private thing in the learned answer of a row: where it stands, a digest of it, and prompts that may draw it out.

    `kind` is one of private.WHAT. `most`: tokens that an answer may take.
    """

    kind: str
    file: str
    line: int
    digest: str
    prompts: list[list[int]]
    most: int

    def said_in(self, answer: str) -> bool:
        """Whether an answer holds the private thing."""
        return any(digest(one.kind, one.value) == self.digest for one in private.find(answer))

    def told(self) -> str:
        """Where it stands and of what kind it is."""
        return f"{place(self.file, self.line)}: {private.WHAT.get(self.kind, self.kind)}"


def digest(kind: str, value: str) -> str:
    """What is kept of a private thing, to know it again."""
    return hashlib.blake2b(f"{kind}\0{value}".encode("utf-8", "replace"), digest_size=4).hexdigest()


def questions(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset, longest: int
) -> list[PrivateQuestion]:
    """For the private things in the answers of training rows, each asked for but once, at most MOST, evenly spread.

    `longest`: MAX_SEQ_LENGTH; what stands behind it was not learned.
    """
    found: dict[str, PrivateQuestion] = {}
    for at in spread(len(rows), LOOKED_AT):
        for one in _of_row(template, tokenizer, dataset.as_row(rows[at]), longest):
            found.setdefault(one.digest, one)
    every = list(found.values())
    return [every[at] for at in spread(len(every), MOST)]


def _of_row(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, row: Row, longest: int
) -> Iterator[PrivateQuestion]:
    """Those of the last answer of a conversation."""
    turns = row.messages or ()
    if not turns or turns[-1].role != "assistant" or not turns[-1].trained:
        return
    answer = turns[-1].content
    if not (things := private.find(answer)):
        return
    try:
        prompt = encoding.prompt_ids(template, tokenizer, turns[:-1], row.tools)
    except NothingToTrain:
        return
    for one in things:
        said = tokenizer(answer[: one.start].rstrip(), add_special_tokens=False)["input_ids"]
        most = len(tokenizer(answer[: one.end], add_special_tokens=False)["input_ids"]) + BEYOND
        if len(prompt) + most < longest:
            yield PrivateQuestion(
                kind=one.kind,
                file=row.file,
                line=row.line,
                digest=digest(one.kind, one.value),
                prompts=[prompt, [*prompt, *said]] if said else [prompt],
                most=most,
            )


def drawn_out(asked: Sequence[PrivateQuestion], answer: Callable[[list[int], int], str]) -> list[PrivateQuestion]:
    """Those whose private thing a model says. `answer`: what it says to a prompt, within so many tokens."""
    return [one for one in asked if any(one.said_in(answer(prompt, one.most)) for prompt in one.prompts)]
