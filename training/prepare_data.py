"""Clean, deduplicate and split a data file:  python training/prepare_data.py --input F --format-type chat --output-dir DIR --output-name NAME

Reads every kind of row that training reads, and exports of chat programs, of which each conversation becomes a row: what the
one writes that --my-name names is learned as the assistant's. Writes NAME_train.jsonl,
NAME_validation.jsonl and NAME_test.jsonl, which DATASET_FILE and VALIDATION_FILE take, and prints their paths, one a
line, on stdout; with --no-split it is NAME.jsonl. What was left out, and why, goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from training.system import own_python

    own_python.use(must=False)

from training import chats
from training.chats.conversations import GAP_MINUTES, MOST_TURNS
from training.chats.dates import ORDERS
from training.data import BadRow, Record, Row, documents, hub_files, oddities, private, row_files, rows, splitting
from training.data.chat_exports import Export
from training.data.reading import PLAIN, Reading
from training.data.shaping import TYPES, shaped
from training.data.tally import Tally
from training.errors import FinetuneError, Interrupted, MachineError, UserError
from training.settings import column_names, hub_names, rules
from training.settings.table import TABLE
from training.system import files, last_net, listeners, paths, privacy, shell
from training.system.plain_parser import Parser
from training.system.signals import Signals

KINDS = {"json": "json", "jsonl": "json", "csv": "csv", "txt": "txt"}  # --input-format -> its name in row_files.FORMS
DOCUMENTS = "documents"
PARTS = ("train", "validation", "test")
SEED = 3407  # the default of [Training] SEED


def cleaned(
    path: Path,
    records: Iterator[Record | BadRow],
    format_type: str,
    tally: Tally,
    seen: set[int],
    reading: Reading = PLAIN,
) -> Iterator[tuple[dict[str, object], int]]:
    """The rows worth keeping, as the fields to write, each with the number of its prompt (see dataset.numbers).

    seen: the numbers of the rows before them. Raises UserError when the file cannot be read, or not to its end.
    """
    for record in records:
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
        for kind in row.private:
            tally.private.setdefault(kind, []).append(row.line)
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
    fields = shaped(record, row, path, format_type, reading)
    if isinstance(fields, str):
        return BadRow(row.file, row.line, fields)
    if row.messages is None:
        return replace(row, text=(row.text or "").strip()), fields
    return replace(row, messages=tuple(replace(turn, content=turn.content.strip()) for turn in row.messages)), fields


# ---- the files ---------------------------------------------------------------------------------------------------


def prepare(
    arguments: argparse.Namespace, sources: Sequence[Path], folder: Path, say: Callable[[str], None]
) -> list[Path]:
    """Write the files; gives their paths. They appear when all are whole. UserError when no row is left."""
    with tempfile.TemporaryFile(dir=folder) as kept:  # on the disk, so that memory does not grow with the text
        prompts = _keep(arguments, sources, kept, say)
        kept.seek(0)
        if arguments.no_split:
            targets, owner = {0: folder / f"{arguments.output_name}.jsonl"}, bytes(len(prompts))
        else:
            targets = {number: folder / f"{arguments.output_name}_{part}.jsonl" for number, part in enumerate(PARTS)}
            shares = arguments.validation_split, arguments.test_split
            owner = splitting.deal(prompts, *shares, arguments.seed).tobytes()
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


def _keep(
    arguments: argparse.Namespace, sources: Sequence[Path], kept: IO[bytes], say: Callable[[str], None]
) -> array[int]:
    """Write the rows worth keeping to `kept`, a line each; gives the numbers of their prompts."""
    prompts, seen = array("Q"), set[int]()
    reading = reading_of(arguments)
    if reading.on_private == "mask":
        # The same masks in all files of a data set.
        reading = replace(reading, mask_key=private.key_of_all(sources))
    for source in sources:
        tally, export, before = Tally(), export_of(arguments, source), len(prompts)
        kind = KINDS.get(arguments.input_format)
        if export:
            records = export.records()
        elif is_documents(arguments, source):
            characters = arguments.characters or documents.CHARACTERS
            records, reading = documents.records(source, characters, reading.encoding), replace(reading, format="text")
        else:
            records = row_files.records(source, kind, reading.encoding)
        for fields, prompt in cleaned(source, records, arguments.format_type, tally, seen, reading):
            kept.write(json.dumps(fields, ensure_ascii=False).encode("utf-8") + b"\n")
            prompts.append(prompt)
        for line in export.picture.lines() if export and export.picture else ():
            say(line)
        if len(prompts) == before and not tally.doubles:
            nothing = "nothing of this export can be learned" if export else "the file is empty"
            reason = f"all {tally.bad_count:,} are bad" if tally.bad_count else nothing
            raise UserError(tally.named() or "nothing was written", f"{source}: no rows: {reason}")
        for line in tally.lines(source):
            say(line)
    return prompts


def reading_of(arguments: argparse.Namespace, mask_key: bytes = b"") -> Reading:
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
        on_private=value("on_private"),
        mask_key=mask_key,
    )


def is_documents(arguments: argparse.Namespace, source: Path) -> bool:
    """Whether the input is documents: named so, or a folder. UserError where --characters says nothing."""
    found = arguments.input_format == DOCUMENTS or (arguments.input_format is None and source.is_dir())
    if arguments.characters is not None and not found:
        raise UserError(f"--characters {arguments.characters}: only documents are cut; --input-format {DOCUMENTS}")
    return found


def export_of(arguments: argparse.Namespace, source: Path) -> Export | None:
    """The export of a chat program that the input is, as --input-format says or as it shows itself; None for a file of rows.

    UserError where an option says nothing there.
    """
    kind = arguments.input_format or chats.kind_of(source)
    if not source.exists():  # who reads it, tells
        return None
    if kind not in chats.NAMES:
        for flag in ("my_name", "date_order", "gap_minutes", "most_turns"):
            if getattr(arguments, flag) is not None:
                names = ", ".join(chats.NAMES)
                raise UserError(
                    f"--{flag.replace('_', '-')}: {source} is read as a file of rows, not as the export of a chat program; "
                    f"--input-format names the program: {names}"
                )
        return None
    if arguments.characters is not None:
        raise UserError(f"--characters {arguments.characters}: only documents are cut; --most-turns cuts conversations")
    if arguments.columns:
        raise UserError(f"--columns {arguments.columns}: the export of a chat program has no columns to name")
    gap, most = arguments.gap_minutes, arguments.most_turns
    cutting = chats.Cutting(
        gap_minutes=GAP_MINUTES if gap is None else gap, most_turns=MOST_TURNS if most is None else most
    )
    wanted = chats.Wanted(
        my_names=arguments.my_name or (),
        date_order=arguments.date_order,
        encoding=reading_of(arguments).encoding,
        cutting=cutting,
    )
    return Export(path=source, kind=kind, wanted=wanted)


# The options of [Dataset] that say how rows are read.
READING = {
    "--format": "format",
    "--columns": "columns",
    "--encoding": "encoding",
    "--join-turns": "join_turns",
    "--null-words": "null_words",
    "--on-private": "on_private",
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
    on_a_hub = hub_names.is_one(arguments.input)
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
            if not on_a_hub and path.exists() and source.exists() and path.samefile(source):
                raise UserError(f"--input {arguments.input}: the result would replace it; choose another --output-name")
        sources = hub_files.fetched(arguments.input, "--input", privacy.tell) if on_a_hub else [source]
        folder.mkdir(parents=True, exist_ok=True)
        return prepare(arguments, sources, folder, privacy.tell)
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
    if arguments.gap_minutes is not None and not 0 < arguments.gap_minutes < math.inf:
        problems.append(f"--gap-minutes {arguments.gap_minutes:g}: must be above 0")
    if arguments.most_turns is not None and arguments.most_turns != 0 and arguments.most_turns < 2:
        problems.append(f"--most-turns {arguments.most_turns}: must be at least 2, or 0 for no limit")
    if arguments.characters is not None and arguments.characters < 100:
        problems.append(f"--characters {arguments.characters}: must be at least 100")
    if arguments.seed < 0:
        problems.append(f"--seed {arguments.seed}: must be at least 0")
    return problems


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="prepare_data.py", description=__doc__.splitlines()[0].partition(":")[0], allow_abbrev=False)
    parser.add_argument(
        "--input",
        required=True,
        metavar="F",
        help="the data file, gzipped or not; of a chat program also its zip or folder; hf:owner/name or ms:owner/name",
    )
    parser.add_argument(
        "--input-format",
        choices=(*KINDS, *chats.NAMES, DOCUMENTS),
        help="default: from what the file holds and its name",
    )
    parser.add_argument("--format-type", required=True, choices=TYPES, help="the kind of rows to write")
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="where to write; made if it is not there")
    parser.add_argument("--output-name", required=True, metavar="NAME", help="what the files' names begin with")
    parser.add_argument("--no-split", action="store_true", help="one file, NAME.jsonl")
    parser.add_argument("--validation-split", type=float, default=0.05, metavar="SHARE", help="default: 0.05")
    parser.add_argument("--test-split", type=float, default=0.05, metavar="SHARE", help="default: 0.05")
    of_chats = parser.add_argument_group("exports of chat programs")
    of_chats.add_argument(
        "--my-name", action="append", metavar="NAME", help="whose answers are learned; again for another name of yours"
    )
    of_chats.add_argument(
        "--gap-minutes", type=float, metavar="N", help=f"silence that ends a conversation; default: {GAP_MINUTES}"
    )
    of_chats.add_argument(
        "--most-turns", type=int, metavar="N", help=f"longer conversations are cut; 0: never; default: {MOST_TURNS}"
    )
    of_chats.add_argument(
        "--date-order",
        choices=ORDERS,
        help="of WhatsApp's dates and of a table's (d day, m month, y year), where the file leaves a doubt",
    )
    parser.add_argument(
        "--characters", type=int, metavar="N", help=f"of a row of documents at most; default: {documents.CHARACTERS}"
    )
    for flag, name in READING.items():
        parser.add_argument(flag, metavar="VALUE", help=f"as [Dataset] {name.upper()} in config.ini")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help=f"of the split; default: {SEED}")
    return parser


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
