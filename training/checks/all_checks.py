"""The stage `check` of the export: every link from the trained adapter to the Modelfile, proved before "done"."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loguru import logger

from training import evaluation, ollama, runs
from training.checks import as_read, gguf_files, logits
from training.checks.check import Check, require
from training.checks.private_things import private_things
from training.data import chat_template
from training.errors import RunError
from training.evaluation import models, reference, scoring
from training.system import files, records, this_machine
from training.system.wording import value_text
from training.to_gguf.job import FileRow, Job


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The first quantised file on the rows that base and tuned model were measured on; how fast each file answers.

    scores: name of the score -> figure; speeds: file -> tokens a second; answers: to the questions that were asked, in
    their order, each with whether it ended by itself.
    """

    scores: dict[str, float | None] = field(default_factory=dict)
    speeds: dict[str, float | None] = field(default_factory=dict)
    answers: tuple[Said, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Said:
    """One answer of the first quantised file."""

    text: str
    stopped: bool | None  # as a Sample's


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What the stage leaves in status.json: how many checks were made, and what was measured."""

    checks: int = 0
    quantised: Measured = Measured()


class _Done(list[Check]):
    """The checks that are made, each of them told at once. `most`: how many pieces of work the stage has."""

    def __init__(self, job: Job, most: int) -> None:
        super().__init__()
        self.job, self.most = job, most

    def append(self, check: Check) -> None:
        super().append(check)
        _tell(check)
        self.job.told(len(self) / self.most)


def run(job: Job) -> Checked:
    """Do all checks of an exported run. RunError naming the first link that is broken.

    The figures are kept in status.json in either case, so that the report of a failed run has them too.
    """
    made = job.run.stage("quantise")
    if made is None:  # cleared: --only rebuilt its input
        raise RunError("check", "the quantised files are not of this model any more; do the export without --only")
    facts = job.facts
    sequences, starts = [row.ids for row in facts.sequences], [row.first for row in facts.sequences]
    prompts, asked = [question.ids for question in facts.questions], [one.question for one in facts.questions]
    most, wanted = [question.most for question in facts.questions], [question.wanted for question in facts.questions]
    base, adapter = job.base, job.run.path / runs.ADAPTER
    others = {
        method: job.quantised(method) for method in job.settings.quantization.quantization_method if method != "f16"
    }
    done = _Done(job, 7 + len(others) + bool(prompts) + bool(facts.private))
    done.append(gguf_files.merged_tensors(base, adapter, job.merged))
    rounding = done[0].figures.get("rounding_loss", 0.0)
    with _room(job) as room:
        with ExitStack() as stack:
            # loaded once, when base + adapter has been freed, for every check that runs the merged model
            merged = functools.cache(
                lambda: stack.enter_context(reference.opened(job.merged, keep=room / "merged", words=job.words))
            )
            done.append(logits.merged_logits(base, adapter, merged, sequences, starts, rounding_loss=rounding))
            chats = chat_template.samples(job.template) if job.template else ()
            done.append(gguf_files.gguf_tokenizer(job.f16, job.merged, chats, job.words))
            done.append(as_read.read_as_trained(job.f16, job.merged, job.template, facts.row_texts, job.words))
            done.append(gguf_files.f16_agrees(job.f16, merged(), sequences, starts, room))
            if prompts:
                done.append(gguf_files.answers(merged(), job.f16, others, prompts, facts.end_ids, most, asked, wanted))
            merged.cache_clear()
        cost = {}
        for method, path in others.items():
            cost[method] = gguf_files.quantised(job.f16, path, sequences, starts, room)
            done.append(cost[method])
    if facts.private:
        done.append(private_things(next(iter(others.values()), job.f16), facts.private))
    done.append(_modelfile(job))
    before = next((check.figures.get("perplexity") for check in done if check.name == "f16 GGUF"), None)
    table = [_row(row, cost.get(row["method"]), before) for row in made["quantised"]]
    warnings = [warning for check in done for warning in check.warnings]
    outcomes = [records.plain(check.outcome()) for check in done]
    job.run.update(checks=outcomes, quantised=table, check_warnings=warnings)
    require(done)
    return Checked(checks=len(done), quantised=_evaluate(job, others))


def _evaluate(job: Job, others: Mapping[str, Path]) -> Measured:
    measured, asked = job.facts.measured, job.facts.asked
    scores: dict[str, float | None] = {}
    speeds: dict[str, float | None] = {}
    said: tuple[Said, ...] = ()
    for number, path in enumerate(others.values()):
        with models.gguf(path.name, path) as speaker:
            # Of the others only how fast they are is told.
            answers = speaker.answers(asked if number == 0 else asked[:1])
            speeds[path.name] = speaker.speed
            if number == 0:
                pairs = zip(asked, answers, strict=True)
                said = tuple(Said(text=one.text, stopped=evaluation.stopped(item, one)) for item, one in pairs)
            if scores or not measured:
                continue
            lines = evaluation.loss_scores(measured, None, speaker.losses(measured))
            lines += scoring.answer_scores(None, evaluation.marks(asked, answers))
            scores = {line.name: line.after for line in lines}
    busy = this_machine.busy()
    for name, speed in speeds.items():
        if speed:
            logger.info("{} answers {:.0f} tokens a second on this machine{}", name, speed, busy)
    return Measured(scores=scores, speeds=speeds, answers=said)


@contextmanager
def _room(job: Job) -> Iterator[Path]:
    """A folder for logits beside the checkpoints: on the disk that was reckoned with, and removed if we are killed."""
    folder = job.run.path / runs.CHECKPOINTS / f"logits{files.PARTIAL}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _modelfile(job: Job) -> Check:
    held = ollama.verify(job.run.path / "Modelfile", job.chat(job.adds_bos), job.facts.stops)
    why = "Ollama must show the model the prompts that it was trained on"
    failure = "" if held.passed else held.note
    return Check("modelfile", held.passed, held.figures(), "equal, byte for byte", why, failure=failure)


def _tell(check: Check) -> None:
    if check.skipped:
        logger.info("check {}: left out, {}", check.name, check.skipped)
        return
    figures = {name: value for name, value in check.figures.items() if _is_figure(value)}
    shown = ", ".join(f"{name} {value_text(value)}" for name, value in figures.items())
    logger.log(
        "INFO" if check.passed else "WARNING",
        "check {}: {}{}",
        check.name,
        "passed" if check.passed else "FAILED",
        f" ({shown})" if shown else "",
    )
    for warning in check.warnings:
        logger.warning("{}", warning)


def _is_figure(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _row(row: FileRow, cost: Check | None, before: float | None) -> FileRow:
    """A row of the report's table of files, with what quantising cost. before: the f16 file's perplexity."""
    if cost is None:
        return {**row, "perplexity": before}
    figures = cost.figures
    ratio = figures.get("perplexity_ratio")
    return {
        **row,
        "kl": figures.get("mean_kl"),
        "top1": figures.get("top1"),
        "perplexity": figures.get("perplexity"),
        "perplexity_change": None if ratio is None else ratio - 1,
    }
