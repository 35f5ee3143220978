"""Texts that rows are trained as, and where each row stands."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from training.data import dataset, encoding
from training.data.chat_template import ChatTemplate
from training.data.encoding import NothingToTrain
from training.system import privacy

if TYPE_CHECKING:
    import datasets


ODD_ROWS = 1000  # rows with an added token or text outside NFC, which come before others


@dataclass(frozen=True)
class RowText:
    """A text that a row is trained as, and where the row stands."""

    text: str
    file: str
    line: int


@dataclass(frozen=True)
class RowTexts:
    """Texts of `rows` of the run's `total` rows: all of them where that is quick, else those that are odd and a sample."""

    texts: tuple[RowText, ...] = ()
    rows: int = 0
    total: int = 0

    def without_secrets(self) -> RowTexts:
        """Without the rows in which a text holds what looks like a secret: as they are they must not be written down."""
        held = {(one.file, one.line) for one in self.texts if privacy.redact(one.text) != one.text}
        kept = tuple(one for one in self.texts if (one.file, one.line) not in held)
        return replace(self, texts=kept, rows=self.rows - len(held))


# ---- the run's own rows ------------------------------------------------------------------------------------------


def row_texts(
    rows: datasets.Dataset,
    tokenised: datasets.Dataset,
    template: ChatTemplate,
    options: tuple[str, str],
    seed: int,
    most: int,
) -> RowTexts:
    """What rows are trained as, about `most` characters of it: the odd rows first, then rows in a seeded order.

    tokenised: what tokens.tokenise made of `rows`. options: TRAIN_TURNS and TRAIN_ON.
    """
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    odd = _odd_rows(rows, tokenised)
    first = set(odd)
    found: list[RowText] = []
    taken = characters = 0
    for number in (*odd, *(one for one in order if one not in first)):
        row = dataset.as_row(rows[number])
        try:
            texts = encoding.plan_row(template, row, *options).texts()
        except NothingToTrain:  # left out of the training
            continue
        if taken and characters + sum(map(len, texts)) > most:
            break
        found += [RowText(text, row.file, row.line) for text in texts]
        taken, characters = taken + 1, characters + sum(map(len, texts))
    return RowTexts(tuple(found), taken, len(rows))


def _odd_rows(rows: datasets.Dataset, tokenised: datasets.Dataset) -> list[int]:
    """The numbers of the rows that tokens.tokenise has marked as odd, ODD_ROWS at most."""
    import numpy as np

    marked = np.asarray(tokenised.with_format("numpy")["odd"][:])
    chosen = tokenised.select(np.flatnonzero(marked)[:ODD_ROWS]).select_columns(["file", "line"])
    wanted = {(one["file"], one["line"]) for one in chosen}
    found: list[int] = []
    if wanted:
        start = 0
        for part in rows.select_columns(["file", "line"]).iter(batch_size=10_000):
            places = zip(part["file"], part["line"], strict=True)
            found += [start + number for number, place in enumerate(places) if place in wanted]
            start += len(part["file"])
    return found
