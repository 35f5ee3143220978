"""Load the rows of a run: read and check every row, warn of what looks wrong, split, and keep them on disk as Arrow."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data import hub_files, likeness, oddities, parallel_reading, replay, row_files
from training.data.oddities import Seen, count_rows
from training.data.reading import Reading
from training.data.reading import of_settings as reading_of
from training.data.record import BadRow, grouped
from training.data.rows import Row
from training.data.splitting import split
from training.errors import UserError
from training.settings import Settings
from training.settings.data_files import DataFile
from training.settings.table import Dataset
from training.system import files, privacy
from training.system.progress_bar import gauge

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from numpy.typing import NDArray

EARLY = 4 << 20  # bytes
# Files of which the size says little, or whose readers take long to load.
NOT_EARLY = (*row_files.PACKED, ".parquet", ".pq", ".xlsx")
NAMED = 20  # reasons of bad rows that a message names; the rest is counted
MOST_CONTRADICTIONS = 5000  # that the row ledger is given


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many rows there are. `turns`: conversations; `text`: plain text; `bad`: left out; then the parts of the run.

    `replay`: rows of an epoch that are trained on besides, and are none of the others.
    """

    rows: int
    turns: int
    text: int
    bad: int
    train: int
    validation: int
    test: int
    replay: int = 0


@dataclass(frozen=True)
class Contradiction:
    """A row, by file and line, and an earlier one that asks the same and is answered otherwise."""

    file: str
    line: int
    other_file: str
    other: int


@dataclass(frozen=True, kw_only=True)
class Data:
    """The rows of a run. Each dataset has the columns of parallel_reading.schema.

    `sha256`: data file -> hexadecimal digest. `plain`: all rows are {text} without turns, so that the finished model takes
    the bare prompt. `tools`: rows that offer or call tools. `contradictions`: among the rows to train on. `used`: training
    file -> rows of it that are trained on, one that is taken twice as two; `different`: all of them, such a one as one.
    `held_out`: validation and test -> the files that were named for it -> rows of them.
    `replay`: the rows of a REPLAY_FILE that are trained on besides; the base model's own answers are not there yet.
    """

    train: datasets.Dataset
    validation: datasets.Dataset | None
    test: datasets.Dataset | None
    rejected: list[BadRow]
    warnings: list[str]
    notes: list[str]
    sha256: dict[str, str]
    counts: Counts
    plain: bool
    tools: int = 0
    contradictions: tuple[Contradiction, ...] = ()
    used: dict[str, int] = field(default_factory=dict)
    different: int = 0
    held_out: dict[str, dict[str, int]] = field(default_factory=dict)
    replay: datasets.Dataset | None = None


@dataclass(frozen=True, kw_only=True)
class _File:
    """What reading one file gave: the good rows, what was noticed of them, and the bad ones. `share`: of its rows."""

    path: Path
    rows: datasets.Dataset
    seen: Seen
    rejected: list[BadRow]
    share: float = 1.0


def load(settings: Settings, cache_dir: Path, say: Callable[[str], None] = lambda text: None) -> Data:
    """Read DATASET_FILE (and VALIDATION_FILE, TEST_FILE), check every row, split; Arrow files go into `cache_dir`.

    Raises UserError naming the bad rows by file and line (ON_BAD_ROW = stop), or when no row is left to train on.
    """
    section = settings.dataset
    reading = reading_of(settings)
    files.private_folder(cache_dir)
    digests = {str(path): _sha256(path) for path in _named(section)}
    # The same masks in all files of a run, and in each run on the same rows.
    reading = replace(reading, mask_key=hashlib.sha256("".join(digests.values()).encode()).digest())
    own_files = _own(section, reading, cache_dir, say)
    own = _joined(own_files)
    held_files = [_read(path, reading, cache_dir, say) for path in hub_files.paths(section.validation_file)]
    tested_files = [_read(path, reading, cache_dir, say) for path in hub_files.paths(section.test_file)]
    replayed_files = [_read(path, reading, cache_dir, say) for path in hub_files.paths(replay.file_of(section))]
    held, tested, replayed = (_joined(some) if some else None for some in (held_files, tested_files, replayed_files))
    every = [*own_files, *held_files, *tested_files]
    read = [*every, *replayed_files]
    rejected = [bad for file in read for bad in file.rejected]
    _stop_for(rejected, section.on_bad_row)
    _refuse_empty(read)
    warnings = _warnings(read, [file.seen.prompts for file in (own, replayed) if file], (held, tested))
    shares = 0.0 if held else section.validation_split, 0.0 if tested else section.test_split
    parts, notes = split(own.seen.prompts, *shares, settings.training.seed)
    notes += _unused_splits(settings, held, tested)
    parts[0], used = _by_shares(parts[0], own_files, settings.training.seed)
    warnings += _not_trained_on(section, own_files, used)
    train, validation, test = (own.rows.select(part) if len(part) else None for part in parts)
    validation, test = held.rows if held else validation, tested.rows if tested else test
    counts = _counts(every, len(rejected), (train, validation, test), section.replay_share)
    return Data(
        train=train,
        validation=validation,
        test=test,
        rejected=rejected,
        warnings=warnings,
        notes=[line for file in read for line in oddities.read_as(file.path, file.seen)] + notes,
        sha256=digests,
        counts=counts,
        plain=counts.turns == 0,
        tools=sum(file.seen.counts["tools"] for file in read),
        contradictions=_contradictions(own, parts[0]),
        used=used,
        different=len(set(parts[0].tolist())),
        held_out={"validation": _rows_of(held_files), "test": _rows_of(tested_files)},
        replay=_chosen(replayed, counts.replay, settings.training.seed) if replayed else None,
    )


def _unused_splits(settings: Settings, held: _File | None, tested: _File | None) -> list[str]:
    """Shares of the rows that somebody asked for beside a file that has such rows."""
    kinds = [kind for kept_out, kind in ((held, "VALIDATION"), (tested, "TEST")) if kept_out]
    asked = [
        kind for kind in kinds if settings.get(f"Dataset.{kind}_SPLIT") and settings.written(f"Dataset.{kind}_SPLIT")
    ]
    return [f"{kind}_FILE is given: {kind}_SPLIT is not used" for kind in asked]


def _rows_of(every: Sequence[_File]) -> dict[str, int]:
    return {str(file.path): len(file.rows) for file in every}


def _warnings(read: Sequence[_File], trained: Sequence[array[int]], kept_out: Sequence[_File | None]) -> list[str]:
    """What looks wrong in each of the files, and questions of the files to measure on that are trained on, too."""
    found = [line for file in read for line in oddities.warnings(file.path, file.seen, file.rows)]
    for file, what in zip(kept_out, ("validation", "test"), strict=True):
        found += _shared_prompts(trained, file.seen.prompts, file.path, what) if file else []
    return found


def _chosen(file: _File, count: int, seed: int) -> datasets.Dataset:
    return file.rows.select(replay.taken(len(file.rows), count, seed))


def _refuse_empty(every: Sequence[_File]) -> None:
    for file in every:
        if not len(file.rows):
            reason = f"all {len(file.rejected)} are bad" if file.rejected else row_files.nothing(file.path)
            raise UserError(f"{file.path}: no rows: {reason}")


def _counts(every: Sequence[_File], bad: int, parts: Sequence[datasets.Dataset | None], replay_share: float) -> Counts:
    train, validation, test = (0 if part is None else len(part) for part in parts)
    return Counts(
        rows=sum(len(file.rows) for file in every),
        turns=sum(file.seen.counts["turns"] for file in every),
        text=sum(file.seen.counts["text"] for file in every),
        bad=bad,
        train=train,
        validation=validation,
        test=test,
        replay=replay.wanted(train, replay_share),
    )


def refuse_early(settings: Settings) -> None:
    """Raise at bad rows what `load` raises, before anything heavy is loaded for the run.

    Only of files that are read in about a second: they are read once more when the plan is made.
    """
    section = settings.dataset
    if hub_files.any_on_a_hub(section):
        return
    paths = _named(section)
    own = {file.path for file in training_files(section)}
    if any(path.suffix.lower() in NOT_EARLY for path in paths) or sum(map(parallel_reading.whole, paths)) > EARLY:
        return
    reading = reading_of(settings)
    rejected: list[BadRow] = []
    taken = 0
    for path in paths:
        is_own = path in own
        if is_own and section.max_rows and taken >= section.max_rows:
            continue
        for part in parallel_reading.parts(
            path, reading, section.max_rows - taken if is_own and section.max_rows else 0
        ):
            rejected += part.bad
            taken += part.batch.num_rows if is_own else 0
    _stop_for(rejected, section.on_bad_row)


def write_rejected(path: Path, rejected: Sequence[BadRow]) -> None:
    """Write the rows that were left out, one JSON object a line: file, line, reason."""
    lines = (
        privacy.as_json(privacy.hidden({"file": bad.file, **_place(bad), "reason": bad.reason})) for bad in rejected
    )
    files.write_text(path, "".join(line + "\n" for line in lines))


def _place(bad: BadRow) -> dict[str, int]:
    return {"line": bad.line} if bad.line >= 0 else {"line": 1, "row": -bad.line}


def bad_rows_error(rejected: Sequence[BadRow], title: str = "") -> UserError:
    """The error that names the first NAMED reasons, each with its first rows, and counts the rest."""
    named = grouped(rejected, NAMED)
    count = f"{len(rejected):,} bad row{'s' * (len(rejected) != 1)}"
    return UserError(named, title or f"{count} (ON_BAD_ROW = skip goes on without them)")


def _named(section: Dataset) -> list[Path]:
    held_out = [*hub_files.paths(section.validation_file), *hub_files.paths(section.test_file)]
    replayed = hub_files.paths(replay.file_of(section))
    return [*(file.path for file in training_files(section)), *held_out, *replayed]


def training_files(section: Dataset) -> list[DataFile]:
    """The files of DATASET_FILE, those of a data set on a hub one by one. UserError where the list cannot be read."""
    try:
        return hub_files.expanded(section.dataset_file)
    except ValueError as error:
        raise UserError(f"[Dataset] DATASET_FILE = {section.dataset_file}: {error}") from None


def _own(section: Dataset, reading: Reading, cache_dir: Path, say: Callable[[str], None]) -> list[_File]:
    """The training files, each read; with MAX_ROWS no more than so many rows of all of them together."""
    found: list[_File] = []
    for file in training_files(section):
        left = section.max_rows - sum(len(one.rows) for one in found) if section.max_rows else 0
        if section.max_rows and left <= 0:
            break
        found.append(replace(_read(file.path, reading, cache_dir, say, left), share=file.share))
    return found


def _joined(every: Sequence[_File]) -> _File:
    """Several files as one."""
    import datasets

    if len(every) == 1:
        return every[0]
    seen = Seen()
    for file in every:
        seen.add(file.seen)
    rows = datasets.concatenate_datasets([file.rows for file in every])
    return _File(path=every[0].path, rows=rows, seen=seen, rejected=[bad for file in every for bad in file.rejected])


def _by_shares(train: NDArray[np.int64], every: Sequence[_File], seed: int) -> tuple[NDArray[np.int64], dict[str, int]]:
    """The rows to train on, those of each file as often as its share says; and how many those are of each file.

    A part of a row is none: of a share of 1.5 half of the rows are taken twice, which is left to the seed.
    """
    import numpy as np

    found, used = [], {}
    begin = 0
    for number, file in enumerate(every):
        own = train[(train >= begin) & (train < begin + len(file.rows))]
        begin += len(file.rows)
        times = int(file.share)
        some = round((file.share - times) * len(own))
        chosen = np.random.default_rng((seed, number)).permutation(own)[:some]
        found.append(np.sort(np.concatenate([*[own] * times, chosen])))
        used[str(file.path)] = len(found[-1])
    return np.concatenate(found) if len(every) > 1 or every[0].share != 1 else train, used


def _not_trained_on(section: Dataset, own: Sequence[_File], used: Mapping[str, int]) -> list[str]:
    """What to say of files of which nothing is trained on. UserError where that is all of them."""
    none = [file for file in own if not used[str(file.path)]]
    said = [
        f"{file.path}: nothing of it is trained on: a share of {file.share:g} of its rows is no whole row"
        if file.share < 1
        else f"{file.path}: nothing of it is trained on: its rows are all held out"
        for file in none
    ]
    if len(none) == len(own):
        raise UserError(
            said, "nothing to train on: DATASET_FILE takes no whole row of its files (file*0.5: a share of them)"
        )
    unread = training_files(section)[len(own) :]
    return said + [f"{file.path}: is not read: MAX_ROWS = {section.max_rows} was reached before it" for file in unread]


def _contradictions(own: _File, train: NDArray[np.int64]) -> tuple[Contradiction, ...]:
    """The first of those among the rows to train on, of all files together: a model cannot learn both."""
    import numpy as np

    chosen = np.unique(train)
    prompts, normalised = (np.asarray(numbers)[chosen] for numbers in (own.seen.prompts, own.seen.normalised))
    pairs = likeness.contradictions(own.rows.select(chosen), prompts, normalised)[:MOST_CONTRADICTIONS]
    if not pairs:
        return ()
    later, earlier = (own.rows.select(chosen[list(numbers)]) for numbers in zip(*pairs, strict=True))
    columns = (later["file"][:], later["line"][:], earlier["file"][:], earlier["line"][:])
    return tuple(Contradiction(*one) for one in zip(*columns, strict=True))


def _sha256(path: Path) -> str:
    try:
        return files.sha256(path)
    except OSError:
        return ""  # the reader says what is wrong with it


def _stop_for(rejected: list[BadRow], on_bad_row: str) -> None:
    broken = [bad for bad in rejected if bad.fatal]
    if broken and on_bad_row == "skip":
        raise bad_rows_error(broken, "the file is broken; this cannot be skipped")
    if rejected and on_bad_row != "skip":
        raise bad_rows_error(rejected)


def _read(path: Path, reading: Reading, cache_dir: Path, say: Callable[[str], None], limit: int = 0) -> _File:
    """One file: its good rows go to the disk as Arrow (written once through, part by part)."""
    import datasets
    import pyarrow as pa

    seen, rejected = Seen(), []
    name = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    with (
        gauge(f"reading {path.name}", parallel_reading.whole(path, limit), say) as advance,
        files.kept(cache_dir / f"rows-{name}.arrow") as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_stream(sink, parallel_reading.schema()) as writer,
    ):
        for part in parallel_reading.parts(path, reading, limit):
            writer.write_batch(part.batch)
            seen.add(part.seen)
            rejected += part.bad
            advance(part.size, part.batch.num_rows + len(part.bad))
    rows = datasets.Dataset.from_file(str(cache_dir / f"rows-{name}.arrow"))
    return _File(path=path, rows=rows, seen=seen, rejected=rejected)


def as_row(record: Mapping[str, Any]) -> Row:
    """A Row again from a record of a dataset."""
    return parallel_reading.row_of(record)


def _shared_prompts(train: Sequence[array[int]], held: array[int], path: Path, what: str) -> list[str]:
    import numpy as np

    shared = int(np.isin(np.asarray(held), np.concatenate(train)).sum())
    return [f"{path}: {count_rows(shared)} with a prompt that is trained on too: the {what} loss will flatter"] * (
        shared > 0
    )
