"""Clean, deduplicate and split a data file:  python training/prepare_data.py --input F --format-type chat --output-dir DIR --output-name NAME

Reads every kind of row that training reads, and `question` + `answer` besides. Writes NAME_train.jsonl,
NAME_validation.jsonl and NAME_test.jsonl, which DATASET_FILE and VALIDATION_FILE take, and prints their paths, one a
line, on stdout; with --no-split it is NAME.jsonl. What was left out, and why, goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from training.system import own_python

    own_python.use(must=False)

from training.data import BadRow, Record, Row, Turn, columns, dataset, oddities, row_files, rows
from training.data.reading import PLAIN, Reading
from training.data.record import grouped
from training.errors import FinetuneError, Interrupted, MachineError, UserError
from training.settings import column_names, rules
from training.settings.table import TABLE
from training.system import files, last_net, listeners, paths, privacy, shell
from training.system.plain_parser import Parser
from training.system.signals import Signals
from training.system.wording import shorten

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KINDS = {"json": "json", "jsonl": "json", "csv": "csv", "txt": "txt"}  # --input-format -> its name in row_files.FORMS
TYPES = ("alpaca", "qa", "chat", "text")
PARTS = ("train", "validation", "test")
SEED = 3407  # the default of [Training] SEED


@dataclass
class Tally:
    """What was met on the way through a file. `bad` holds the bad rows."""

    rows: int = 0
    doubles: int = 0
    bad: list[BadRow] = field(default_factory=list)
    unused: set[str] = field(default_factory=set)
    read_as: dict[str, int] = field(default_factory=dict)

    def reject(self, bad: BadRow) -> None:
        """Count a bad row. UserError when nothing can be read after it."""
        if bad.fatal:
            raise UserError(str(bad), "the file is broken; what follows this cannot be read")
        self.bad.append(bad)

    @property
    def bad_count(self) -> int:
        return len(self.bad)

    def lines(self, path: Path) -> Iterator[str]:
        """What to tell the user."""
        yield f"{path}: {self.rows:,} rows read, {self.bad_count:,} bad, {self.doubles:,} duplicates"
        yield from (f"  {line}" for line in self.named())
        for said, count in list(self.read_as.items())[: oddities.MOST_COLUMNS]:
            yield f"{oddities.count_rows(count)} {said}"
        if self.unused:
            yield f"fields that are not taken over: {', '.join(sorted(map(shorten, self.unused)))}"

    def named(self) -> list[str]:
        """The bad rows by their reasons, up to the limit, and how many more there are."""
        return grouped(self.bad, dataset.NAMED)


def cleaned(
    path: Path, kind: str | None, format_type: str, tally: Tally, reading: Reading = PLAIN
) -> Iterator[tuple[dict[str, object], int]]:
    """The rows worth keeping, as the fields to write, each with the number of its prompt (see dataset.numbers).

    Raises UserError when the file cannot be read, or not to its end.
    """
    seen: set[int] = set()
    for record in row_files.records(path, kind, reading.encoding):
        tally.rows += 1
        if isinstance(record, BadRow):
            tally.reject(record)
            continue
        made = _clean(record, path, format_type, reading)
        if isinstance(made, BadRow):
            tally.reject(made)
            continue
        row, fields = made
        tally.unused |= set(row.unused)
        for said in row.read_as:
            tally.read_as[said] = tally.read_as.get(said, 0) + 1
        _, alike, prompt = oddities.numbers(row)
        if alike in seen:
            tally.doubles += 1
            continue
        seen.add(alike)
        yield fields, prompt


def _clean(
    record: Record, path: Path, format_type: str, reading: Reading = PLAIN
) -> tuple[Row, dict[str, object]] | BadRow:
    """The row without outer white space, and its fields in the shape of `format_type`."""
    row = rows.interpret(record, path, reading)
    if (
        format_type == "text" and reading.format == "auto"
    ):  # what the markup of a model makes a conversation stays text here
        plain = rows.interpret(record, path, replace(reading, format="text"))
        row = plain if isinstance(plain, Row) else row
    if isinstance(row, BadRow):
        return row
    fields = _shaped(record, row, path, format_type)
    if isinstance(fields, str):
        return BadRow(row.file, row.line, fields)
    if row.messages is None:
        return replace(row, text=(row.text or "").strip()), fields
    return replace(row, messages=tuple(replace(turn, content=turn.content.strip()) for turn in row.messages)), fields


def _shaped(record: Record, row: Row, path: Path, format_type: str) -> dict[str, object] | str:
    """The fields of a row of `format_type` that trains what `row` trains; or why there is none."""
    if format_type == "text":
        if (
            rows.interpret(record, path, Reading("text")) == row
        ):  # plain, or written as turns: the reader tells it again
            name = next(name for name in record.fields if columns.usual((name,), "text").fields or name == "text")
            return {"text": str(record.fields[name]).strip()}
        return "turns are no text row; --format-type chat takes them"
    if row.messages is None:
        return "plain text has no question; --format-type text takes it"
    if format_type == "chat":
        tools = {"tools": json.loads(row.tools)} if row.tools else {}
        return {"messages": [_message(turn) for turn in row.messages], **tools}
    if row.tools or any(turn.thoughts or turn.more or not turn.trained for turn in row.messages):
        return f"{format_type} has no place for tools, thoughts, or turns that are not learned; --format-type chat has"
    *system, question, answer = (turn.content.strip() for turn in row.messages)
    if len(row.messages) != 2 + (row.messages[0].role == "system"):
        return f"{format_type} takes one question and one answer; --format-type chat takes a longer conversation"
    above: dict[str, object] = {"system": system[0]} if system else {}
    if format_type == "qa":
        return {**above, "input": question, "output": answer}
    fields = {"instruction": question, "input": "", "output": answer}
    if "instruction" in record.fields and rows.interpret(_plain(record), path, Reading("alpaca")) == row:
        # Its input stays apart.
        fields |= {name: str(record.fields.get(name) or "").strip() for name in ("instruction", "input")}
    return {**above, **fields}


def _plain(record: Record) -> Record:
    """The record's own instruction and input, and what answers them."""
    names = ("instruction", "input", "output", "response", "system")
    return Record(record.line, {name: record.fields[name] for name in names if name in record.fields})


def _message(turn: Turn) -> dict[str, object]:
    """A turn as a message that is read again as the same turn."""
    message: dict[str, object] = {"role": turn.role, "content": turn.content.strip()}
    if turn.thoughts:
        message["reasoning_content"] = turn.thoughts
    if turn.more:
        message |= json.loads(turn.more)
    return message if turn.trained else {**message, "weight": 0}


# ---- the split ---------------------------------------------------------------------------------------------------


def deal(prompts: Sequence[int], validation: float, test: float, seed: int) -> NDArray[np.int8]:
    """The part of each row (0 train, 1 validation, 2 test; an int8 array): dataset.split, with no wanted part empty.

    A part that its share leaves without rows gets the smallest group of equal prompts, as long as a part has two groups.
    """
    import numpy as np

    numbers = np.asarray(prompts, dtype=np.uint64)
    parts, _ = dataset.split(prompts, validation, test, seed)
    owner = np.zeros(len(prompts), dtype=np.int8)
    for number, part in enumerate(parts):
        owner[part] = number
    for number, share in ((1, validation), (2, test)):
        if not share or (owner == number).any():
            continue
        for giver in (0, 1, 2):
            groups, first, sizes = np.unique(numbers[owner == giver], return_index=True, return_counts=True)
            if len(groups) > 1:
                smallest = groups[np.lexsort((first, sizes))[0]]  # the first one in the file of those of equal size
                owner[numbers == smallest] = number
                break
    return owner


def prepare(arguments: argparse.Namespace, source: Path, folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Write the files; gives their paths. They appear when all are whole. UserError when no row is left."""
    tally, prompts = Tally(), array("Q")
    with tempfile.TemporaryFile(dir=folder) as kept:  # on the disk, so that memory does not grow with the text
        kind = KINDS.get(arguments.input_format)
        for fields, prompt in cleaned(source, kind, arguments.format_type, tally, reading_of(arguments)):
            kept.write(json.dumps(fields, ensure_ascii=False).encode("utf-8") + b"\n")
            prompts.append(prompt)
        if not prompts:
            reason = f"all {tally.bad_count:,} are bad" if tally.bad_count else "the file is empty"
            raise UserError(tally.named() or "nothing was written", f"{source}: no rows: {reason}")
        for line in tally.lines(source):
            say(line)
        kept.seek(0)
        if arguments.no_split:
            targets, owner = {0: folder / f"{arguments.output_name}.jsonl"}, bytes(len(prompts))
        else:
            targets = {number: folder / f"{arguments.output_name}_{part}.jsonl" for number, part in enumerate(PARTS)}
            owner = deal(prompts, arguments.validation_split, arguments.test_split, arguments.seed).tobytes()
        left_out = [targets.pop(number) for number in list(targets) if number not in owner]
        _write(kept, owner, targets)
    for path in left_out:
        older = path.exists()
        path.unlink(missing_ok=True)  # its rows are of an older split, and may be among those to train on now
        why = _why_left_out(path, arguments, len(prompts), len(set(prompts)))
        say(f"{path.name} is left out: {why}" + ("; the older one was removed" if older else ""))
    counts = ", ".join(f"{owner.count(number):,} {path.name}" for number, path in targets.items())
    say(f"rows written: {counts}")
    return list(targets.values())


def reading_of(arguments: argparse.Namespace) -> Reading:
    """How the rows are to be read. UserError where an option has no such value."""

    def value(name: str) -> Any:
        item, text = TABLE[f"Dataset.{name.upper()}"], getattr(arguments, name)
        if text is None:
            return item.rule.default
        try:
            return rules.read(rules.Given(text, Path.cwd()), item.rule, item.kind)
        except ValueError as error:
            raise UserError(f"--{name.replace('_', '-')} {text}: {error}") from None

    written = value("columns")
    return Reading(
        format=value("format"),
        columns=column_names.parse(written) if written else None,
        encoding=value("encoding"),
        join_turns=value("join_turns"),
        null_words=value("null_words"),
    )


# The options of [Dataset] that say how rows are read.
READING = {
    "--format": "format",
    "--columns": "columns",
    "--encoding": "encoding",
    "--join-turns": "join_turns",
    "--null-words": "null_words",
}


def _why_left_out(path: Path, arguments: argparse.Namespace, count: int, different: int) -> str:
    part = "validation" if path.name.endswith("_validation.jsonl") else "test"
    if not getattr(arguments, f"{part}_split"):
        return f"--{part}-split 0"
    return (
        f"{count:,} row{'s' * (count != 1)} with {different:,} different prompt{'s' * (different != 1)}, too few for it"
    )


def _write(lines: IO[bytes], owner: bytes, targets: dict[int, Path]) -> None:
    """Deal the lines out to the files that `owner` names, one number a line."""
    with ExitStack() as stack:
        partial = {number: stack.enter_context(files.whole_file(path, shared=True)) for number, path in targets.items()}
        with ExitStack() as opened:  # closed before they are renamed
            streams = {number: opened.enter_context(path.open("wb")) for number, path in partial.items()}
            for number, line in zip(owner, lines, strict=True):
                streams[number].write(line)
        for path in partial.values():  # a full disk shows here, before the first of them has its name
            files.sync(path)


# ---- the command line --------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """The command line: paths on stdout, everything else on stderr; returns the exit code."""
    arguments = _parser().parse_args(argv)
    signals = Signals()
    signals.install()
    try:
        for path in run(arguments):
            listeners.tell(sys.stdout, privacy.path_for(sys.stdout, path) + "\n")
    except (FinetuneError, Interrupted) as error:
        signals.delivered()
        privacy.tell(error)
        return error.exit_code
    except Exception as error:
        told = last_net.caught(error)
        privacy.tell(told)
        return told.exit_code
    return 0


def run(arguments: argparse.Namespace) -> list[Path]:
    """Check the arguments and the folder, then do the work; gives the files made."""
    source = paths.expanded(arguments.input).absolute()
    folder = paths.expanded(arguments.output_dir).absolute()
    problems = _problems(arguments)
    if problems:
        raise UserError(problems)
    reading_of(arguments)
    if not arguments.no_split:
        try:
            import numpy  # noqa: F401
        except ModuleNotFoundError:
            raise MachineError(
                f"numpy, which deals the rows out, is not installed in this Python: {shell.command('setup.sh')} makes .venv, "
                "and .venv/bin/python has it; --no-split does without"
            ) from None
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output-dir {arguments.output_dir}: is a file, not a folder")
        for part in ("", *(f"_{part}" for part in PARTS)):
            path = folder / f"{arguments.output_name}{part}.jsonl"
            if path.exists() and source.exists() and path.samefile(source):
                raise UserError(f"--input {arguments.input}: the result would replace it; choose another --output-name")
        folder.mkdir(parents=True, exist_ok=True)
        return prepare(arguments, source, folder, privacy.tell)
    except OSError as error:
        raise MachineError(
            f"{folder} cannot be written: {error.strerror or error}; --output-dir names another"
        ) from None


def _problems(arguments: argparse.Namespace) -> list[str]:
    problems = []
    if arguments.output_name in ("", ".", "..") or "/" in arguments.output_name:
        problems.append(
            f"--output-name {arguments.output_name}: must be a file name without /; --output-dir is the folder"
        )
    shares = {"--validation-split": arguments.validation_split, "--test-split": arguments.test_split}
    problems += [
        f"{flag} {share:g}: must be from 0 up to, not including, 1"
        for flag, share in shares.items()
        if not 0 <= share < 1
    ]
    if not problems and sum(shares.values()) >= 1:
        problems.append(
            f"--validation-split and --test-split make {sum(shares.values()):g}: no rows are left to train on"
        )
    if arguments.seed < 0:
        problems.append(f"--seed {arguments.seed}: must be at least 0")
    return problems


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="prepare_data.py", description=__doc__.splitlines()[0].partition(":")[0], allow_abbrev=False)
    parser.add_argument("--input", required=True, metavar="F", help="the data file; it may be gzipped")
    parser.add_argument("--input-format", choices=tuple(KINDS), help="default: from the file's name")
    parser.add_argument("--format-type", required=True, choices=TYPES, help="the kind of rows to write")
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="where to write; made if it is not there")
    parser.add_argument("--output-name", required=True, metavar="NAME", help="what the files' names begin with")
    parser.add_argument("--no-split", action="store_true", help="one file, NAME.jsonl")
    parser.add_argument("--validation-split", type=float, default=0.05, metavar="SHARE", help="default: 0.05")
    parser.add_argument("--test-split", type=float, default=0.05, metavar="SHARE", help="default: 0.05")
    for flag, name in READING.items():
        parser.add_argument(flag, metavar="VALUE", help=f"as [Dataset] {name.upper()} in config.ini")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help=f"of the split; default: {SEED}")
    return parser


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
