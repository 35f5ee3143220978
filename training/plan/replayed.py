"""The replay rows of a plan: known from a file, or to come from the base model, which has yet to answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from training.data import ChatTemplate, Data, Turn, encoding, parallel_reading, replay, tokenising
from training.data.reading import PLAIN
from training.data.tokenising import Summary
from training.errors import UserError
from training.evaluation.base_answers import LONGEST_ANSWER
from training.settings import Settings
from training.system import files, wording

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

# Tokens that a row with an answer of the base model's has beside its prompt, as far as is known before it answers; and
# what a template writes around an answer.
USUAL_ANSWER, AROUND = 80, 8
LEAST_ROOM = 32  # tokens for an answer
TAMPERED = "it is not as the run has written it: put it back, or start a new run with --fresh"


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Rows that are trained on beside the user's own.

    `count` of them in an epoch, each of at most `longest` tokens; `tokens` of all together, about. `rows`: their
    sequences, None where the base model has yet to answer. `beginnings`: the first tokens of some of them. `file`: what
    they are from, a file or the name of a data set on a hub; `parts`: data file -> rows of it. `sha256`: the digest of the
    base model's answers, which are no data file.
    """

    count: int
    longest: int
    tokens: int
    share: float
    beginnings: tuple[list[int], ...] = ()
    rows: datasets.Dataset | None = None
    file: Path | None = None
    parts: Mapping[str, int] = field(default_factory=dict)
    sha256: str = ""

    def lines(self) -> list[str]:
        """What the plan says of them."""
        rows = f"{wording.counted(self.count, 'replay row')} beside them, REPLAY_SHARE = {self.share:g}"
        if self.file is not None:
            return [f"{rows}: of {self.file}"]
        return [f"{rows}: general questions, which the base model answers before the training"]


def planned(
    settings: Settings,
    data: Data,
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    rows: datasets.Dataset | None,
) -> Replay | None:
    """What REPLAY_SHARE and REPLAY_FILE come to; `rows`: the sequences of a file's. UserError where they do not fit."""
    section = settings.dataset
    if not section.replay_share:
        return None
    if rows is not None:
        lengths = rows["length"][:]
        return Replay(
            count=len(rows),
            longest=max(lengths),
            tokens=sum(lengths),
            share=section.replay_share,
            beginnings=tuple(rows.select(range(min(8, len(rows))))["input_ids"][:]),
            rows=rows,
            file=Path(section.replay_file),
            parts=Counter(data.replay["file"][:] if data.replay else ()),
        )
    place = settings.place("Dataset.REPLAY_FILE")
    if section.replay_file != replay.GENERAL:
        raise UserError(f"{place}: no row of it can be trained on")
    if data.plain:
        raise UserError(
            f"{place}: the rows are plain text, and these are questions; name a file of other texts, or set REPLAY_SHARE = 0"
        )
    prompts = [_prompt(template, tokenizer, question) for question in replay.prompts(settings.training.seed)]
    longest = max(map(len, prompts))
    most = settings.model.max_seq_length
    if longest + LEAST_ROOM > most:
        raise UserError(
            f"{place}: with the system text and the template a question takes up to {longest:,} tokens, and {most:,} "
            "(MAX_SEQ_LENGTH) leave no room for an answer"
        )
    mean = sum(map(len, prompts)) / len(prompts) + USUAL_ANSWER
    return Replay(
        count=data.counts.replay,
        longest=min(most, longest + LONGEST_ANSWER + AROUND),
        tokens=round(data.counts.replay * min(most, mean)),
        share=section.replay_share,
        beginnings=tuple(prompts[:8]),
    )


def _prompt(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    return encoding.prompt_ids(template, tokenizer, [Turn("user", question)])


def expected(summary: Summary, found: Replay | None) -> Summary:
    """The figures of the user's own rows and of the replay rows together, as far as what is chosen by them goes.

    They are the same before the base model has answered and after it: a run that is resumed chooses the same.
    """
    if found is None:
        return summary
    total = summary.total._replace(longest=max(summary.total.longest, found.longest))
    return replace(
        summary, sequences=summary.sequences + found.count, tokens=summary.tokens + found.tokens, total=total
    )


def joined(train: datasets.Dataset, found: Replay | None) -> datasets.Dataset:
    """The user's own rows, and the replay rows behind them; the trainer shuffles."""
    import datasets

    if found is None or found.rows is None:
        return train
    return datasets.concatenate_datasets([train, found.rows])


def awaited(found: Replay | None) -> bool:
    """Whether the base model has yet to answer."""
    return found is not None and found.rows is None


def answered(
    found: Replay,
    settings: Settings,
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    cache: Path,
) -> Replay:
    """The replay rows that a run's file of the base model's answers gives.

    Exactly as many as were planned: each answer as often as they need, and some of them once more.
    """
    options = settings.model.max_seq_length, settings.dataset.train_turns, settings.dataset.train_on, cache
    rows, bad = tokenising.tokenise(_read(path), template, tokenizer, *options)
    if rows is None or bad:
        raise UserError(f"{bad[0] if bad else f'{path}: there is no row in it'}; {TAMPERED}")
    chosen = replay.taken(len(rows), found.count, settings.training.seed)
    return replace(found, rows=rows.select(chosen), file=path, sha256=files.sha256(path))


def _read(path: Path) -> datasets.Dataset:
    """The rows of a file that a run has written."""
    import datasets
    import pyarrow as pa

    # An answer may well be "None".
    parts = list(parallel_reading.parts(path, replace(PLAIN, format="messages", null_words="keep")))
    if bad := [one for part in parts for one in part.bad]:
        raise UserError(f"{bad[0]}; {TAMPERED}")
    table = pa.Table.from_batches([part.batch for part in parts], parallel_reading.schema())
    return datasets.Dataset(datasets.table.InMemoryTable(table))
