"""Gather what a run's report says: from its plan when it begins, and from what its stages left in status.json at its end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from loguru import logger

from training import evaluation, runs
from training.checks import Outcome
from training.checks.all_checks import Measured
from training.checks.served_facts import Served
from training.data import held_out
from training.data.dataset import as_row
from training.errors import FinetuneError, Interrupted, RunError, UserError
from training.evaluation import Score
from training.plan import Plan, odd
from training.report import contents, model_card, schema, writing
from training.report.left import Left, Trained, Validation
from training.report.schema import (
    BaseFacts,
    DataFacts,
    DataFile,
    Quantised,
    Report,
    RunFacts,
    Sample,
    TrainingFacts,
)
from training.runs import Run, State, directory, working_time
from training.system import events, files, io_errors, records, shell
from training.system.foreign_json import Damaged

if TYPE_CHECKING:
    import datasets

    from training.plan.replayed import Replay

Written = TypeVar("Written")
PERCENTILES = ("50", "90", "99", "100")
PROFILED = 1000  # rows
PLANNED = "report.json"  # in checkpoints/: what the plan gives to the report, for whichever process writes it


def keep(plan: Plan, run: Run) -> None:
    """Write down what only the plan knows: a run may be finished by another process, without its data file."""
    planned = Report(
        name=plan.settings.model.new_model_name,
        run=RunFacts(run.path.name, str(run.path)),
        base=BaseFacts(
            name=plan.base.name,
            kind=plan.base.kind,
            revision=plan.base.revision,
            parameters=plan.base.parameters,
            max_length=plan.base.max_length,
        ),
        settings=plan.settings.as_dict(),
        differences=tuple(plan.settings.differences()),
        choices=tuple(plan.settings.choices),
        seed=plan.settings.training.seed,
        versions=plan.machine.versions,
        machine={k: v for k, v in plan.machine.as_dict().items() if k != "versions"},
        data=_data(plan),
        training=TrainingFacts(total=plan.steps),
        warnings=(*plan.data.warnings, *odd(plan)),
    )
    files.write_json(run.path / runs.CHECKPOINTS / PLANNED, schema.plain(planned))


def keep_served(run: Run, served: Served) -> None:
    """Add to a finished run what a live Ollama made of it. What the disk does not take is said, and is no failure."""
    run.update(ollama=records.plain(served))
    path = run.path / writing.JSON
    if not path.is_file():
        return
    try:
        writing.write(run.path, dataclasses.replace(writing.read(path), ollama=served))
    except OSError as error:
        logger.warning("the report does not say so: {}", io_errors.told(error, run.path))
    except Damaged as damage:
        logger.warning("the report does not say so: {}", damage)


def has_plan(run: Run) -> bool:
    """Whether there is what `keep` wrote down: a run that ended before has nothing to report."""
    return (run.path / runs.CHECKPOINTS / PLANNED).is_file()


def as_planned(run: Run) -> Report:
    """What `keep` wrote down. Damaged where there is nothing of the kind."""
    return writing.read(run.path / runs.CHECKPOINTS / PLANNED)


def write(run: Run, state: State, error: FinetuneError | Interrupted | None = None) -> Report:
    """Write the report files of a run; report.json, which means done, only when `state` is "completed"."""
    return writing.write(run.path, gather(run, state, error))


def _tried(write: Callable[[], Written]) -> Written:
    """Write, and where a drive does not take it try again, as with the state: what a finished run lacks nobody writes later.

    The same where the drive does not give what is to be told.
    """
    for wait in directory.WAITS:
        try:
            return write()
        except FileNotFoundError:  # what is gone does not come back
            raise
        except OSError:
            time.sleep(wait)
        except Damaged as damage:
            if not io_errors.behind(damage):
                raise
            time.sleep(wait)
    return write()


def complete(run: Run) -> None:
    """The end of a run that is done: its report, and the state that says so.

    The model is finished and checked: a report that the disk does not take makes no failure of it. Where it takes neither
    the report nor the state nobody could see that the run is done: a RunError.
    """
    reported = True
    try:
        _write_cards(run)
        logger.info("{}", contents.result(_tried(lambda: write(run, "completed"))).text)
    except OSError as error:
        reported = False
        logger.warning(
            "no report: {}. The model is finished; `{}` writes its report",
            io_errors.told(error, run.path), shell.command("export_ollama.sh", "--modelfile-only", run.path),
        )  # fmt: skip
    except Damaged as damage:  # what its plan or a stage had left there
        reported = False
        logger.warning("no report: {}. The model is finished and checked", damage)
    directory.point_results(run.path)
    stored = run.update(state="completed", stage=None, progress=100, eta=None, error=None)
    if not (stored or reported):
        raise RunError(
            "report",
            f"neither the report nor {runs.STATUS} could be written in {run.path}",
            f"the model is finished and checked; `{shell.lasting('run.sh', '--resume', run.path)}` writes what is missing",
        )


def _write_cards(run: Run) -> None:
    """The cards of the folders that are passed on; a finished run does without where what they say cannot be read."""
    if not has_plan(run):
        return
    try:
        _tried(lambda: model_card.write(run, gather(run, "completed", ended=False)))
    except UserError as error:
        logger.warning("no model card: {}", error)
    except OSError as error:
        logger.warning("no model card: {}", io_errors.told(error, run.path))


def gather(run: Run, state: State, error: FinetuneError | Interrupted | None = None, ended: bool = True) -> Report:
    """The whole report. Stages that did not run leave their part out.

    Not `ended`: of a run that nobody works on now, as far as it came, without the hashes of its files.
    """
    found = as_planned(run)
    left = Left.by(run)
    return dataclasses.replace(
        found,
        run=_run(run, state, error, left.seconds, time.time() if ended else None),
        base=dataclasses.replace(found.base, trainable=left.train.trainable if left.train else None),
        training=_training(found, left.train) if left.train else None,
        samples=_samples(left),
        scores=_scores(left),
        general=tuple(left.evaluate.general),
        ledger=left.evaluate.ledger if left.evaluate.ledger.counts else None,
        quantised=_quantised(run, left.check.quantised),
        checks=tuple(records.build(row, Outcome) for row in run.status.get("checks", [])),
        artefacts=writing.artefacts(run.path) if ended else (),
        ollama=records.build(run.status["ollama"], Served) if run.status.get("ollama") else None,
        warnings=(*found.warnings, *run.status.get("warnings", []), *run.status.get("check_warnings", [])),
    )


def _scores(left: Left) -> tuple[Score, ...]:
    """The lines of the evaluation, with the quantised file's figures put beside those of base and tuned model."""
    quantised = left.check.quantised.scores
    return tuple(dataclasses.replace(score, quantised=quantised.get(score.name)) for score in left.evaluate.scores)


def _samples(left: Left) -> tuple[Sample, ...]:
    """The questions that were asked, with the quantised file's answers beside those of base and tuned model."""
    samples = [Sample(**records.plain(sample)) for sample in left.evaluate.samples]
    said = left.check.quantised.answers
    if len(said) != len(samples):
        return tuple(samples)
    return tuple(
        dataclasses.replace(sample, quantised=answer.text, quantised_stopped=answer.stopped)
        for sample, answer in zip(samples, said, strict=True)
    )


def _quantised(run: Run, measured: Measured) -> tuple[Quantised, ...]:
    files = (records.build(row, Quantised) for row in run.status.get("quantised", []))
    return tuple(dataclasses.replace(file, tokens_per_second=measured.speeds.get(file.file)) for file in files)


def worse(run: Run, best: bool) -> str:
    """In which way the tuned model is worse than the base: by the validation loss, or by that on the test rows."""
    left = Left.by(run)
    validation = left.train.validation if left.train else Validation()
    before, after = validation.before, validation.best if best else validation.after
    if before is not None and after is not None and after > before:
        return f"the tuned model is worse than the base: validation loss {before:.4f} before, {after:.4f} after"
    for score in left.evaluate.scores:
        if score.name == evaluation.LOSS and score.verdict == "worse":
            tuned = "no finite number" if score.after is None else f"{score.after:.4f}"
            return f"the tuned model is worse than the base: {score.name} {score.before:.4f} before, {tuned} after"
    return ""


def _run(
    run: Run, state: State, error: FinetuneError | Interrupted | None, stages: dict[str, float], now: float | None
) -> RunFacts:
    told = error if isinstance(error, RunError) else None
    ends = {"completed": "done"}.get(state, state)
    worked = working_time.working_time(events.read(run.path / runs.EVENTS), stages, now, ends)
    return RunFacts(
        id=run.path.name,
        directory=str(run.path),
        state=state,
        started=run.status.get("started"),
        finished=now or (worked.sessions[-1].ended if worked.sessions else None),
        stages=stages,
        seconds=round(worked.seconds, 1) if worked.sessions else None,
        sessions=worked.sessions,
        failed_stage=told.stage if told else "",
        error=told.message if told else str(error) if error else "",
        safe=told.safe if told else "",
    )


def _bytes(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _replayed(replay: Replay, count: int) -> Mapping[str, int]:
    """Rows of each file of replay rows. The base model's answers are none until it has given them."""
    return replay.parts or ({str(replay.file): count} if replay.sha256 else {})


def _data(plan: Plan) -> DataFacts:
    counts, summary, replay = plan.data.counts, plan.summary, plan.replay
    roles: dict[str, Mapping[str, int]] = {
        "training": plan.data.used,
        "replay": _replayed(replay, counts.replay) if replay else {},
        **plan.data.held_out,
    }
    answers = {str(replay.file): replay.sha256} if replay and replay.sha256 else {}
    digests = {**plan.data.sha256, **answers}
    files = tuple(
        DataFile(path, role, digests[path], _bytes(Path(path)), rows)
        for role, used in roles.items()
        for path, rows in used.items()
    )
    rows = {"training": counts.train, "replay": counts.replay, "validation": counts.validation, "test": counts.test}
    return DataFacts(
        files=files,
        rows={role: count for role, count in rows.items() if count},
        tokens=summary.tokens,
        trained_tokens=summary.trained_tokens,
        percentiles=dict(zip(PERCENTILES, summary.total, strict=True)),
        prompts=dict(zip(PERCENTILES, summary.prompt, strict=True)),
        answers=dict(zip(PERCENTILES, summary.answer, strict=True)),
        turns=counts.turns,
        **_profile(plan.data.train),
        cut=summary.cut,
        rejected=len(plan.rejected),
    )


def _profile(rows: datasets.Dataset) -> dict[str, float]:
    """What the answers of the training rows are like, from at most PROFILED of them."""
    seen = [as_row(rows[at]) for at in held_out.spread(len(rows), PROFILED)]
    answers = [row.messages[-1].content if row.messages else row.text or "" for row in seen]
    chinese = sum(any("\u4e00" <= character <= "\u9fff" for character in answer) for answer in answers)
    return {"chinese": chinese / len(answers), "distinct": len(set(answers)) / len(answers)}


def _training(planned: Report, trained: Trained) -> TrainingFacts:
    losses = trained.validation
    kept_best = planned.settings["Training"]["EARLY_STOPPING_PATIENCE"] and losses.best is not None
    return TrainingFacts(
        steps=trained.steps,
        total=planned.training.total if planned.training else 0,
        epochs=trained.epochs,
        before=losses.before,
        after=losses.best if kept_best else losses.after,
        best=losses.best,
        best_step=trained.best_step,
        stopped_early=trained.stopped_early,
        tokens_per_second=trained.tokens_per_second,
        peak_memory=trained.peak_memory,
        exchange=trained.exchange,
    )
