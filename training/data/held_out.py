"""The rows that a model is measured on: each as a question to be asked, and as tokens whose answer has a loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.data import dataset, encoding
from training.data.chat_template import ChatTemplate
from training.data.encoding import IGNORED, NothingToTrain
from training.data.rows import Row
from training.data.turns import Turn
from training.system import privacy

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

GENERAL = Path(__file__).with_name("general_questions.jsonl")
LONGEST = 512  # tokens of a row that are measured: 512 x 152k x 4 bytes = 311 MB of logits at most
SHORTEST_ANSWER, LONGEST_ANSWER = 32, 256  # tokens that an answer may take, within which its row decides
ENOUGH = 1.5  # times the expected tokens: what has not stopped by then will not


@dataclass(frozen=True)
class Item:
    """One row. `labels` equal `ids` on the last answer (all of a plain text) and are IGNORED elsewhere.

    question, expected: texts to be shown and compared, without secrets; "" for plain text, which is not asked. `prompt`:
    the question's tokens. `most`: tokens that an answer may take, twice the expected ones or as many as are allowed; `wanted`:
    the expected ones (0: not known, in runs of older versions).
    """

    ids: list[int]
    labels: list[int]
    question: str
    expected: str
    prompt: list[int]
    most: int
    wanted: int = 0

    @property
    def decides(self) -> bool:
        """Whether an answer that is cut off after `most` tokens has shown that it does not stop by itself."""
        return decides(self.most, self.wanted)

    @property
    def tokens(self) -> int:
        """How many tokens have a loss; the first of a sequence is predicted by nothing."""
        return sum(label != IGNORED for label in self.labels[1:])


def decides(most: int, wanted: int) -> bool:
    """Whether an answer of `most` tokens that has no end shows that it does not stop by itself, where `wanted` are expected."""
    return most >= ENOUGH * wanted


def stopped(by_itself: bool, length: int, most: int, wanted: int) -> bool | None:
    """Whether an answer of `length` tokens, of `most` that it might take, stops by itself; None where it was cut off before that
    could be told. One that is shorter and did not stop went round in circles (llama/circles.py)."""
    cut_off = not by_itself and length >= most
    return None if cut_off and not decides(most, wanted) else by_itself


def spread(count: int, most: int) -> list[int]:
    """At most `most` row numbers out of `count`, evenly spread."""
    most = min(count, most)
    return [int(i * count / most) for i in range(most)]


def items(
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    rows: datasets.Dataset,
    most: int,
    longest: int,
    longest_answer: int = LONGEST_ANSWER,
) -> list[Item]:
    """At most `most` rows of a dataset, evenly spread, as items. Rows without a token to measure are left out.

    `longest`: MAX_SEQ_LENGTH. A prompt that fills it is not asked. `longest_answer`: tokens that an answer may take at most.
    """
    chosen = (dataset.as_row(rows[at]) for at in spread(len(rows), most))
    made = (_item(template, tokenizer, row, longest, longest_answer) for row in chosen)
    return [item for item in made if item is not None]


def general(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, longest: int) -> list[Item]:
    """The shipped general questions: what the tuning costs elsewhere shows in the loss of their answers."""
    made = []
    for number, line in enumerate(GENERAL.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        turns = (Turn("user", row["instruction"]), Turn("assistant", row["output"]))
        made.append(_item(template, tokenizer, Row(turns, None, GENERAL.name, number), longest))
    return [item for item in made if item is not None]


def _item(
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    row: Row,
    longest: int,
    longest_answer: int = LONGEST_ANSWER,
) -> Item | None:
    turns = row.messages or ()
    asked = turns[:-1] if turns and turns[-1].role == "assistant" else ()
    try:
        encoded = encoding.encode(template, tokenizer, row, longest, train_turns="last")[-1]
        prompt = encoding.prompt_ids(template, tokenizer, asked, row.tools) if asked else []
    except NothingToTrain:
        return None
    ids, labels = encoded.input_ids, encoded.labels
    if len(ids) > LONGEST:  # a long prompt is cut in front, so that its answer is measured all the same
        start = max(0, min(encoded.prompt_length - LONGEST // 2, len(ids) - LONGEST))
        ids, labels = ids[start : start + LONGEST], labels[start : start + LONGEST]
    if all(label == IGNORED for label in labels[1:]):
        return None
    if not asked or len(prompt) >= longest:
        return Item(ids, labels, "", "", [], 0)
    question = next((turn.content for turn in reversed(asked) if turn.role == "user"), asked[-1].content)
    expected = turns[-1].content if not turns[-1].more else _as_answered(template, tokenizer, row)
    wanted = len(tokenizer(expected, add_special_tokens=False)["input_ids"])
    most = min(longest_answer, max(SHORTEST_ANSWER, 2 * wanted))
    return Item(ids, labels, privacy.redact(question), privacy.redact(expected), prompt, most, wanted)


def _as_answered(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, row: Row) -> str:
    """An answer that calls tools, as the template writes it and an answer of the model's is decoded."""
    answer = encoding.plan_row(template, row, "last", "completion").pieces[-1].answer
    ids = tokenizer(answer.removesuffix(template.turn_end), add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def asked(found: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of the items that have a question, evenly spread; first of those whose answers need not be cut off."""
    questions = [at for at, item in enumerate(found) if item.prompt]
    whole = [at for at in questions if found[at].decides]
    others = [at for at in questions if not found[at].decides]
    chosen = [whole[at] for at in spread(len(whole), most)]
    chosen += [others[at] for at in spread(len(others), most - len(chosen))]
    return [found[at] for at in sorted(chosen)]


def bounded(found: Sequence[Item], tokens: int, least: int) -> list[Item]:
    """As many of the items as `tokens` hold, but no fewer than `least`; evenly spread."""
    for count in range(len(found), 0, -1):
        few = [found[at] for at in spread(len(found), count)]
        if count <= least or sum(len(item.ids) for item in few) <= tokens:
            return few
    return []
