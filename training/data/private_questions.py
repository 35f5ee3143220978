"""Private things that a model may have learned, as questions to the finished model that could draw them out.

What stands in an answer that was learned comes out for whoever asks right. So it is asked as the row asks, and once more
with the beginning of the answer already said. Kept of a private thing is a digest: no file of the run holds it.
"""

from __future__ import annotations

import hashlib
import itertools
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
OPEN = 2048  # tokens of all answers whose beginning was not said
Asked = tuple[list[int], int]  # a prompt, and tokens that the answer may take


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


def drawn_out(asked: Sequence[PrivateQuestion], answers: Callable[[list[Asked]], list[str]]) -> list[PrivateQuestion]:
    """Those whose private thing a model says. `answers`: what it says to prompts, each within so many tokens.

    With the beginning said it takes a few tokens until the private thing comes; so those go first. Of the others, which
    have it say all that comes before, as many are asked for their whole answers as OPEN tokens hold.
    """
    begun = [one for one in asked if len(one.prompts) > 1]
    said = answers([(one.prompts[-1], _left(one)) for one in begun])
    found = {id(one) for one, answer in zip(begun, said, strict=True) if one.said_in(answer)}
    open_ones = [one for one in asked if id(one) not in found]
    most = sorted(open_ones, key=lambda one: one.most)
    few = [
        one for one, all_of in zip(most, itertools.accumulate(one.most for one in most), strict=True) if all_of <= OPEN
    ]
    said = answers([(one.prompts[0], one.most) for one in few])
    found |= {id(one) for one, answer in zip(few, said, strict=True) if one.said_in(answer)}
    return [one for one in asked if id(one) in found]


def _left(one: PrivateQuestion) -> int:
    """Tokens that an answer may take of which the beginning is said."""
    return max(2 * BEYOND, one.most - (len(one.prompts[-1]) - len(one.prompts[0])))
