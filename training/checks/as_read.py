"""What a reader of the GGUF (llama.cpp, llama-server, Ollama) makes of a prompt, held against what the rows were made with.

A reader acts on the file's own metadata: it puts BOS or EOS around every prompt, fills the chat template with these two,
and stops at the tokens that it takes for an end. `pairs` is what a file must say so that all of it is as in training. And
llama.cpp cuts texts into tokens by its own code: `hold` reads the run's own rows with it, before anything is trained.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from training import llama
from training.checks import check as checks
from training.checks.check import Check
from training.data import ChatTemplate, chat_template, encoding
from training.data.fast_tokenising import tokeniser
from training.data.record import place
from training.data.row_texts import RowText, RowTexts
from training.llama import process
from training.to_gguf.reader_metadata import TEMPLATE, end_id, tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_as_trained(
    gguf: Path,
    folder: Path,
    template: ChatTemplate | None,
    texts: RowTexts,
    words: PreTrainedTokenizerBase | None = None,
) -> Check:
    """A reader of the finished file makes of prompts and rows the tokens trained, by the template trained, to the end trained.

    folder: the merged model, whose tokenizer is the one trained with. template: None for plain text. words: that tokenizer,
    where it is loaded already.
    """
    check = Check(
        "GGUF as read",
        True,
        {},
        "every prompt and row gives the tokens trained, with all that the file's flags add; template and end are those trained",
        "llama-server and Ollama act on what the file says of itself, and a prompt that they change was not trained",
    )

    def measure() -> Check:
        known = words or tokenizer(folder)
        said = llama.metadata(gguf)
        chats = [
            RowText(text, "a chat of the template", 0) for text in (chat_template.samples(template) if template else ())
        ]
        wrong = list(differences(gguf, known, [*chats, *texts.texts], whole=True))
        composed = read_when_composed(gguf, known, wrong)
        wrong = [one for one in wrong if one.row not in composed]
        end = end_id(known, template)
        flags = {name: said["vocab"][name] for name in ("add_bos", "add_eos")}
        figures = {"prompts": len(chats), "rows": texts.rows, "of_rows": texts.total, "different": len(wrong), **flags}
        failure = ""
        if wrong:
            where = place(wrong[0].row.file, wrong[0].row.line) if wrong[0].row.line else wrong[0].row.file
            failure = f"{len(wrong)} texts are read as other tokens than were trained; {where}: {why_different(wrong[0], known)}"
        elif template and said.get(TEMPLATE) != template.exported:
            failure = "the chat template in the GGUF is not the one that was trained with"
        elif end is not None and end not in said["vocab"]["end"]:
            failure = f"token {end} ends the trained answers, and llama.cpp does not take it for an end"
        return replace(check, passed=not failure, figures=figures, failure=failure)

    return checks.timed(check, measure)


@dataclass(frozen=True)
class Difference:
    """A row's text that llama.cpp reads otherwise: the tokens trained, those read, and where they part."""

    row: RowText
    trained: list[int]
    read: list[int]

    @property
    def at(self) -> int:
        same = zip(self.trained, self.read, strict=False)
        return next((i for i, (a, b) in enumerate(same) if a != b), min(len(self.trained), len(self.read)))


def differences(
    gguf: Path | llama.Process, tokenizer: PreTrainedTokenizerBase, texts: Sequence[RowText], whole: bool = False
) -> Iterator[Difference]:
    """The texts that llama.cpp reads otherwise. `whole`: with all that a reader of this file puts around a prompt."""
    words = [one.text for one in texts]
    if not words:
        return
    ours = tokeniser(tokenizer)(words)
    ours = [encoding.with_bos(ids, tokenizer) for ids in ours] if whole else ours
    theirs = process.read_prompts(gguf, words) if whole else process.tokenise(gguf, words)
    for row, trained, read in zip(texts, ours, theirs, strict=True):
        if trained != read:
            yield Difference(row, trained, read)


def read_when_composed(
    gguf: Path | llama.Process, tokenizer: PreTrainedTokenizerBase, different: Sequence[Difference]
) -> list[RowText]:
    """Those that differ only because the tokenizer writes text in NFC first, which llama.cpp leaves to who asks."""
    rows = [one for one in different if not unicodedata.is_normalized("NFC", one.row.text)]
    if not rows:
        return []
    read = process.tokenise(gguf, [unicodedata.normalize("NFC", one.row.text) for one in rows])
    return [one.row for one, ids in zip(rows, read, strict=True) if ids == one.trained]


def why_different(one: Difference, tokenizer: PreTrainedTokenizerBase) -> str:
    around = slice(max(0, one.at - 2), one.at + 3)
    text = tokenizer.decode(one.trained[around], skip_special_tokens=False)
    words = f"{text!r} is trained as {one.trained[around]}, llama.cpp reads {one.read[around]}"
    added = tokenizer.added_tokens_decoder.values()
    for token in sorted((t for t in added if str(t) in one.row.text), key=lambda t: str(t) not in text):
        flags = [name for name in ("lstrip", "rstrip", "single_word", "normalized") if getattr(token, name)]
        if not flags:
            continue
        what = "the white space beside it" if {"lstrip", "rstrip"} & set(flags) else "how it stands in a word"
        return (
            f"{words}: the token {token} is {' and '.join(flags)} in tokenizer.json, which a GGUF cannot say; change "
            f"{what} in the rows, or set that to false there"
        )
    return f"{words}; another form of this text, or another base model, would do"
