"""Measure a model against its base, or talk to it:  python training/evaluate_model.py --lora-model RUN [--output results.csv]

Base, tuned and quantised model answer the same rows; a table of scores with intervals goes to stdout, and one row a
question, with an empty column for a person's rating, to the CSV file. With --interactive it is a talk (talk.py).
"""

# ruff: noqa: E402  what stands between the imports must come before some of them

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from training.system import own_python

    own_python.use()

from training.system import before_torch

before_torch.settle()

from loguru import logger

from training import evaluation
from training.data import ChatTemplate, Item, dataset, held_out
from training.errors import FinetuneError, MachineError, UserError
from training.evaluation import Answer, Score, models, scoring
from training.evaluation.models import Speaker
from training.evaluation.scoring import Marks
from training.evaluation.target import Target
from training.system import files, foreign_code, last_net, launchers, log, paths, this_machine, wording
from training.system.plain_parser import Parser

if TYPE_CHECKING:
    import datasets

CACHE = paths.CACHE / "rows"
# What the CSV file says of each answer.
SHOWN = ("exact", "chrf", "rouge_l", "length", "repetition", "stopped")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would compute a cell that begins so


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """What one model made of all rows. losses: nats a token; answers: one for each item that is asked."""

    losses: list[float]
    answers: list[Answer]
    marks: list[Marks]


def rows_of(target: Target, test_data: str | None) -> datasets.Dataset:
    """The rows to measure on: those of a file, else the run's own test or validation rows. UserError when there are none."""
    settings = target.settings
    if test_data is not None:
        file = paths.expanded(test_data).absolute()
        if not file.is_file():
            raise UserError(f"--test-data {test_data}: no such file")
        alone = replace(settings.dataset, dataset_file=file, validation_file=None, test_file=None)
        whole = replace(alone, validation_split=0.0, test_split=0.0, replay_share=0.0)
        return dataset.load(replace(settings, dataset=replace(whole, max_rows=0)), CACHE).train
    data = dataset.load(settings, CACHE)
    kept = data.test if data.test is not None else data.validation
    if kept is None:
        raise UserError("the run kept no rows out of its training: name some with --test-data FILE")
    return kept


def measure(target: Target, items: Sequence[Item]) -> dict[str, Spoken]:
    """base, tuned and quantised (as far as they are there), in this order; one model is in memory at a time."""
    made: dict[str, Spoken] = {}

    def take(name: str, speaker: Speaker) -> None:
        logger.info("asking {}", name)
        asked = [item for item in items if item.prompt]
        answers = speaker.answers(asked)
        losses, marks = speaker.losses(items), evaluation.marks(asked, answers)
        made[name] = Spoken(losses=losses, answers=answers, marks=marks)

    with models.torch_pair(target.base, target.adapter, target.end_ids) as (base, tuned):
        take("base", base)
        if tuned is not None:
            take("tuned", tuned)
    if target.gguf is not None:
        with models.gguf(target.gguf.name, target.gguf) as speaker:
            take("quantised" if "tuned" in made else "tuned", speaker)
            if speaker.speed:
                speed, busy = f"{speaker.speed:.0f}", this_machine.busy()
                logger.info("{} answers {} tokens a second on this machine{}", target.gguf.name, speed, busy)
    return made


def scores(items: Sequence[Item], made: dict[str, Spoken]) -> list[Score]:
    """The lines of the table; a model alone (a base, nothing tuned) stands in the column of the tuned one."""
    tuned = made.get("tuned") or made["base"]
    base = made["base"] if "tuned" in made and "base" in made else None
    small = made.get("quantised")
    lines = evaluation.loss_scores(items, base.losses if base else None, tuned.losses, small.losses if small else None)
    lines += scoring.answer_scores(base.marks if base else None, tuned.marks, small.marks if small else None)
    return lines


def table(lines: Sequence[Score]) -> list[str]:
    """The scores for a terminal."""
    rows = [("", "base", "tuned", "quantised", "difference, 95 %", "rows", "")]
    for line in lines:
        between = "" if line.low is None or line.high is None else f"{line.low:+.3g} to {line.high:+.3g}"
        means = (wording.number(mean) for mean in (line.before, line.after, line.quantised))
        before, after, small = means
        rows.append((line.name, before, after, small, between, str(line.rows), line.verdict))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if at in (0, 6) else cell.rjust(w)
            for at, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def csv_text(items: Sequence[Item], made: dict[str, Spoken], bom: bool) -> str:
    """One row a question, each model's answers and scores, and an empty `rating`. Plain text has no question: its loss only."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")  # RFC 4180
    headers = ["number", "question", "expected"]
    headers += [f"{name}_answer" for name in made]
    headers += [f"{name}_{what}" for what in ("loss", *SHOWN) for name in made]
    writer.writerow([*headers, "rating"])
    nth = -1  # the answer of a row: only rows with a question have one
    for number, item in enumerate(items):
        nth += bool(item.prompt)
        answers = [safe(one.answers[nth].text) if item.prompt else "" for one in made.values()]
        losses = [_number(one.losses[number]) for one in made.values()]
        figures = [one.marks[nth].figure(what) if item.prompt else None for what in SHOWN for one in made.values()]
        marks = ["" if figure is None else _number(figure) for figure in figures]
        writer.writerow([number + 1, safe(item.question), safe(item.expected), *answers, *losses, *marks, ""])
    return ("\ufeff" if bom else "") + out.getvalue()


def safe(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return "'" + text if text.startswith(FORMULA) else text


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""


def refuse_early(arguments: argparse.Namespace) -> None:
    """Raise UserError where a file or folder that is named is not there: before anything heavy is loaded."""
    for flag, name in (("--test-data", arguments.test_data), ("--config", arguments.config)):
        if name is not None and not paths.expanded(name).is_file():
            raise UserError(f"{flag} {name}: no such file")
    if arguments.output and not (folder := paths.expanded(arguments.output).absolute().parent).is_dir():
        raise UserError(f"--output {arguments.output}: there is no folder {folder}")
    Target.refuse_early(arguments.lora_model, arguments.base_model)


def measured(target: Target, test_data: str | None, most: int) -> tuple[list[Item], dict[str, Spoken]]:
    """The rows that are measured on, at most so many, and what each model made of them. UserError where there are none."""
    rows = rows_of(target, test_data)
    template = target.template
    if template is None:
        if any(messages is not None for messages in rows["messages"]):
            raise UserError(
                "the model was trained on plain text, and these rows are conversations: name rows with a text each, "
                "--test-data FILE"
            )
        template = ChatTemplate("", "plain text")  # no row asks for it
    items = held_out.items(template, target.tokenizer(), rows, most, target.longest)
    if not items:
        raise UserError("none of the rows has an answer to measure")
    logger.info("{} of {} rows", len(items), len(rows))
    return items, measure(target, items)


def evaluate(arguments: argparse.Namespace, stdout: IO[str]) -> None:
    """The batch mode: measure, print the table, write the CSV file."""
    output = paths.expanded(arguments.output).absolute() if arguments.output else None
    target = Target.named(arguments.lora_model, arguments.base_model, Path(arguments.config))
    items, made = measured(target, arguments.test_data, arguments.max_rows)
    lines = scores(items, made)
    if output is not None:
        try:
            files.write_text(output, csv_text(items, made, arguments.bom))
        except OSError as error:
            raise MachineError(f"{output} cannot be written: {error.strerror}") from None
        logger.info("answers and scores: {}", output)
    for line in [*table(lines), scoring.conclusion(lines)]:
        log.say(stdout, line)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(
        prog="evaluate_model.py", description=(__doc__ or "").splitlines()[0].partition(":")[0], allow_abbrev=False
    )
    made.add_argument("--lora-model", metavar="RUN", help="a run's folder, an adapter's, or a GGUF file")
    made.add_argument("--base-model", metavar="B", help="Hub id, folder or GGUF file (default: the run's)")
    made.add_argument("--test-data", metavar="FILE", help="rows to measure on (default: those that the run kept out)")
    made.add_argument("--output", metavar="CSV", help="where to write one row a question")
    made.add_argument("--bom", action="store_true", help="begin the CSV file with a byte order mark, as Excel wants it")
    made.add_argument(
        "--max-rows", type=_rows, default=200, metavar="N", help="at most so many rows, evenly spread (200)"
    )
    made.add_argument(
        "--config",
        metavar="INI",
        default=str(paths.ROOT / "config.ini"),
        help="template and system prompt of a model that is not a run's",
    )
    made.add_argument("--interactive", action="store_true", help="talk to it instead")
    return made


def _rows(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a whole number, at least 1")
    return int(text)


def main(argv: Sequence[str]) -> int:
    """The command line; the table on stdout, errors on stderr; returns the exit code."""
    arguments = parser().parse_args(argv)
    foreign_code.trust(False)  # until a run's settings say otherwise
    stdout = sys.stdout if arguments.interactive else log.claim_stdout()
    log.start()
    launchers.tell()
    try:
        refuse_early(arguments)
        from transformers import logging

        logging.set_verbosity_error()
        if arguments.interactive:
            from training.evaluation import talk

            talk.with_weights(Target.named(arguments.lora_model, arguments.base_model, Path(arguments.config)))
        else:
            evaluate(arguments, stdout)
    except FinetuneError as error:
        logger.error("{}", error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        told = last_net.caught(error)
        logger.error("{}", told)
        return told.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
