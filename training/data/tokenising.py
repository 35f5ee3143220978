"""Tokenise a whole dataset with all cores, cached by content, and say what came out of it."""

from __future__ import annotations

import contextlib
import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from training.data.chat_template import ChatTemplate
from training.data.dataset import as_row
from training.data.encoding import IGNORED, Encoded, NothingToTrain, Plan, assemble, plan_row
from training.data.fast_tokenising import quick_tokeniser
from training.data.fingerprint import Options, fingerprint
from training.data.oddities import warning
from training.data.record import SHOWN, BadRow
from training.data.rows import Row
from training.system import files, pool, this_machine
from training.system.progress_bar import gauge

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

PART = 10_000  # rows looked at together, for warnings
KEPT_DAYS = 30  # since a cached file was last asked for
KEPT_PARTIAL_DAYS = 2  # what a process that was killed left behind; one that lives writes on
BATCH, BATCH_BYTES = 500, 4 << 20  # rows tokenised in one call, or fewer where they are long
# Starting a process costs about as much as tokenising this many rows: with fork, and with spawn.
ROWS_A_WORKER, ROWS_A_NEW_WORKER = 500, 20_000
# Each process has a core of its own; forked processes must not share the tokenizer's pool of threads.
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false"}
TRAINED = ("⟦", "⟧")  # marks around what is trained, in the example

Ways = tuple[ChatTemplate, "PreTrainedTokenizerBase", Options]


class Lengths(NamedTuple):
    """Tokens of a part of every sequence: half of them have `median` at most, 90 % `of_90`, 99 % `of_99`."""

    median: int
    of_90: int
    of_99: int
    longest: int


@dataclass(frozen=True)
class Summary:
    """Figures of a tokenised dataset: of its prompts, of its answers, and of both together."""

    sequences: int
    tokens: int
    trained_tokens: int
    cut: int
    prompt: Lengths
    answer: Lengths
    total: Lengths
    example: str

    def lines(self) -> list[str]:
        """The figures for the log."""
        return [
            f"{self.sequences:,} sequences, {self.tokens:,} tokens, {self.trained_tokens:,} of them trained, {self.cut:,} cut",
            *(
                f"{name} tokens: median {of.median:,}, 90 % up to {of.of_90:,}, 99 % up to {of.of_99:,}, most {of.longest:,}"
                for name, of in (("prompt", self.prompt), ("answer", self.answer), ("all", self.total))
            ),
            f"example, with the trained part in {TRAINED[0]} {TRAINED[1]}:",
            *(f"  {line}" for line in self.example.splitlines()),
        ]


def tokenise(
    data: datasets.Dataset,
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    train_turns: str,
    train_on: str,
    cache_dir: Path,
    processes: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[datasets.Dataset | None, list[BadRow]]:
    """Sequences for the trainer, and the rows of which nothing can be trained. None when no sequence is left.

    Columns: input_ids, labels (int32 lists of equal length, at most `max_length`), prompt_length, answer_length (tokens),
    cut (bool), file, line, special (a special token that the row's own text holds, or None), thought (bool: an answer
    came with thoughts), odd (bool: text that tokenizers
    may disagree on, see _odd_text). A row gives several sequences where the template asks for it (see chat.encode).
    The result is kept in `cache_dir` under a name made from the rows, the template, the tokenizer and the options.
    """
    import datasets

    name = fingerprint(data, template, tokenizer, (max_length, train_turns, train_on))
    files.private_folder(cache_dir)
    _forget_old(cache_dir, keep=name)
    path = cache_dir / f"tokens-{name}.arrow"
    if not path.exists():
        _write(
            path, data, (template, tokenizer, (max_length, train_turns, train_on)), _workers(len(data), processes), say
        )
    return _sorted_out(datasets.Dataset.from_file(str(path)))


def _write(path: Path, data: datasets.Dataset, ways: Ways, processes: int, say: Callable[[str], None]) -> None:
    """Tokenise all rows into an Arrow file, which is there as a whole or not at all."""
    import pyarrow as pa

    mean = max(1, data.data.nbytes // max(1, data.data.num_rows))
    size = max(1, min(BATCH, BATCH_BYTES // mean))
    ranges = ((start, min(start + size, len(data))) for start in range(0, len(data), size))
    with (
        this_machine.variables(ONE_THREAD if processes > 1 else {}),
        gauge("tokenising", len(data), say) as advance,
        files.kept(path) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_stream(sink, _schema()) as writer,
    ):
        shared = (data.with_format("arrow"), *ways)
        for rows, table in pool.in_order(_encode_range, ranges, processes, shared, "tokenising"):
            writer.write_table(table)
            advance(rows, rows)


def _forget_old(cache_dir: Path, keep: str) -> None:
    """Remove what no run has asked for in KEPT_DAYS, and what was never finished: the cache must not grow for ever."""
    for pattern, days in (("*.arrow", KEPT_DAYS), (f"*{files.PARTIAL}", KEPT_PARTIAL_DAYS)):
        for file in cache_dir.glob(pattern):
            with contextlib.suppress(OSError):  # another process may be as tidy at the same time
                if keep in file.name and pattern == "*.arrow":
                    os.utime(file)
                elif time.time() - file.stat().st_mtime > days * 86400:
                    file.unlink()


def summary(data: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> Summary:
    """Figures of a tokenised dataset, with its first sequence as the example."""
    import numpy as np

    prompt = np.asarray(data.with_format("numpy")["prompt_length"][:])
    answer = np.asarray(data.with_format("numpy")["answer_length"][:])
    total = np.asarray(data.with_format("numpy")["length"][:])
    first = data[0]
    return Summary(
        sequences=len(data),
        tokens=int(total.sum()),
        trained_tokens=int(answer.sum()),
        cut=int(np.asarray(data.with_format("numpy")["cut"][:]).sum()),
        prompt=_lengths(prompt),
        answer=_lengths(answer),
        total=_lengths(total),
        example=marked(first["input_ids"], first["labels"], tokenizer),
    )


def warnings(data: datasets.Dataset, max_length: int) -> list[str]:
    """Rows that were cut, and rows with a special token in their own text, with the lines of the first ones."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    told = []
    columns = data.with_format("arrow").select_columns(["cut", "special", "file", "line"])
    noted = [  # part by part: a million rows have as many file names
        part.filter(pc.or_(part["cut"], pc.is_valid(part["special"]))) for part in columns.iter(batch_size=PART)
    ]
    columns = pa.concat_tables(noted)
    for chosen, what in (
        (columns["cut"], f"longer than MAX_SEQ_LENGTH = {max_length:,} tokens: their end is cut off"),
        (pc.is_valid(columns["special"]), "with a special token in the text, which is read as that token and no text"),
    ):
        found = columns.filter(chosen)
        for file in pc.unique(found["file"]).to_pylist():
            own = found.filter(pc.equal(found["file"], file))
            # A row may have given several sequences. Numbers of rows, which are negative, are told by their size.
            lines = sorted(np.unique(own["line"].to_numpy()).tolist(), key=abs)
            token = own["special"][0].as_py()
            note = f" ({token})" if "special token" in what else ""
            told.append(warning(file, lines[:SHOWN], len(lines), what + note))
    return told


def marked(input_ids: Sequence[int], labels: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a sequence, special tokens visible, each trained stretch in ⟦ ⟧."""
    text, start = "", 0
    for end in range(1, len(input_ids) + 1):
        trained = labels[start] != IGNORED
        if end < len(input_ids) and (labels[end] != IGNORED) == trained:
            continue
        piece = str(tokenizer.decode(list(input_ids[start:end]), skip_special_tokens=False))
        text += f"{TRAINED[0]}{piece}{TRAINED[1]}" if trained else piece
        start = end
    return text


def _workers(rows: int, wanted: int | None) -> int:
    return max(1, min(wanted or pool.cores(), rows // (ROWS_A_WORKER if pool.copied() else ROWS_A_NEW_WORKER)))


def _schema() -> pa.Schema:
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    return pa.schema(
        [
            ("input_ids", ids),
            ("labels", ids),
            ("length", pa.int32()),
            ("prompt_length", pa.int32()),
            ("answer_length", pa.int32()),
            ("cut", pa.bool_()),
            ("file", pa.string()),
            ("line", pa.int64()),
            ("special", pa.string()),
            ("thought", pa.bool_()),
            ("odd", pa.bool_()),
            ("reason", pa.string()),
        ]
    )


def _encode_range(
    data: datasets.Dataset,
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    options: Options,
    start: int,
    end: int,
) -> tuple[int, pa.Table]:
    """How many rows these are, and their sequences."""
    return end - start, _encode_batch(data[start:end], template, tokenizer, options)


def _encode_batch(
    batch: pa.Table, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, options: Options
) -> pa.Table:
    """A table of _schema() for a batch of rows: all their texts go to the tokenizer in one call. A row that fails gives
    its reason."""
    max_length, train_turns, train_on = options
    rows = [as_row(record) for record in batch.to_pylist()]
    tokenise = _quick(tokenizer)
    plans: list[Plan | str] = []
    for row in rows:
        try:
            plans.append(plan_row(template, row, train_turns, train_on))
        except NothingToTrain as error:
            plans.append(str(error))
    texts = [plan.texts() for plan in plans if not isinstance(plan, str)]
    ids = iter(tokenise([text for own in texts for text in own]))
    counts = map(len, texts)
    made: list[_Made] = []
    for row, plan in zip(rows, plans, strict=True):
        if isinstance(plan, str):
            made.append((row, None, NOTHING, plan))
            continue
        own = [next(ids) for _ in range(next(counts))]
        try:
            sequences = assemble(template, tokenizer, plan, own, tokenise, max_length, train_on)
            made += [(row, plan, encoded, None) for encoded in sequences]
        except NothingToTrain as error:
            made.append((row, plan, NOTHING, str(error)))
    return _table(made, _special_tokens(tokenizer), _odd_text(tokenizer))


NOTHING = Encoded([], [], False)
_quick = lru_cache(maxsize=2)(quick_tokeniser)  # kept from batch to batch for what it remembers


@lru_cache(maxsize=2)
def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> Callable[[Row], str | None]:
    """Finds the first special token that stands in a row's own text, where it is read as that token."""
    return _finder(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)


@lru_cache(maxsize=2)
def _odd_text(tokenizer: PreTrainedTokenizerBase) -> Callable[[Row], bool]:
    """Whether a row's text holds what tokenizers have ways of their own with: an added token, text outside NFC."""
    find = _finder(map(str, tokenizer.added_tokens_decoder.values()))

    def odd(row: Row) -> bool:
        for text in _contents(row):  # noqa: SIM110 (it is asked of every row, and all() takes twice as long)
            if not (text.isascii() or unicodedata.is_normalized("NFC", text)):
                return True
        return find(row) is not None

    return odd


def _finder(tokens: Iterable[str]) -> Callable[[Row], str | None]:
    """Finds the first of `tokens` (not those of white space) that stands in a row's own text."""
    found = [text for text in tokens if text.strip()]
    if not found:
        return lambda row: None
    pattern = re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True))))
    signs = "".join({text[0] for text in found})

    def find(row: Row) -> str | None:
        for text in _contents(row):
            if any(sign in text for sign in signs) and (mark := pattern.search(text)):  # most rows have no sign
                return mark[0]
        return None

    return find


def _contents(row: Row) -> list[str]:
    if row.messages is None:
        return [row.text or ""]
    aside = [text for turn in row.messages if turn.thoughts or turn.more for text in (turn.thoughts, turn.more)]
    return [turn.content for turn in row.messages] + aside + [row.tools]


_Made = tuple[Row, "Plan | None", Encoded, "str | None"]  # a row, its plan, one of its sequences, and why it has none


def _table(made: list[_Made], find: Callable[[Row], str | None], odd: Callable[[Row], bool]) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    def lists(all_ids: list[list[int]]) -> pa.ListArray:
        """Ids as Arrow has them, without a look at each one's type (a million rows hold a billion)."""
        ends = np.cumsum([0, *map(len, all_ids)])
        flat = np.fromiter(chain.from_iterable(all_ids), dtype=np.int32, count=ends[-1])
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat))

    encoded = [one for _, _, one, _ in made]
    columns = {
        "input_ids": lists([one.input_ids for one in encoded]),
        "labels": lists([one.labels for one in encoded]),
        "length": [len(one.input_ids) for one in encoded],
        "prompt_length": [one.prompt_length for one in encoded],
        "answer_length": [one.answer_length for one in encoded],
        "cut": [one.cut for one in encoded],
        "file": [row.file for row, _, _, _ in made],
        "line": [row.line for row, _, _, _ in made],
        "special": [find(row) for row, _, _, _ in made],
        "thought": [plan is not None and plan.thought for _, plan, _, _ in made],
        "odd": [odd(row) for row, _, _, _ in made],
        "reason": [reason for _, _, _, reason in made],
    }
    return pa.table(columns, schema=_schema())


def _sorted_out(mapped: datasets.Dataset) -> tuple[datasets.Dataset | None, list[BadRow]]:
    """Split off the rows that gave no sequence."""
    import numpy as np

    lengths = np.asarray(mapped.with_format("numpy")["length"][:])
    bad = mapped.select(np.flatnonzero(lengths == 0)).select_columns(["file", "line", "reason"])
    rejected = [BadRow(one["file"], one["line"], one["reason"]) for one in bad]
    good = mapped.remove_columns("reason")
    if rejected:
        good = good.select(np.flatnonzero(lengths)) if len(rejected) < len(mapped) else None
    return good, rejected


def _lengths(tokens: NDArray[np.int64]) -> Lengths:
    import numpy as np

    return Lengths(*map(int, np.percentile(tokens, (50, 90, 99, 100), method="higher")))
