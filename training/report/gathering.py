"""Gather what a run's report says: from its plan when it begins, and from what its stages left in status.json at its end."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from training import evaluation, runs
from training.data import dataset, held_out
from training.report import schema, writing
from training.report.schema import (
    BaseFacts,
    Check,
    DataFacts,
    DataFile,
    Quantised,
    Report,
    RunFacts,
    Sample,
    Score,
    TrainingFacts,
)
from training.runs import Run
from training.system import files

PERCENTILES = ("50", "90", "99", "100")
PROFILED = 1000  # rows
PLANNED = "report.json"  # in checkpoints/: what the plan gives to the report, for whichever process writes it


def keep(plan: Any, run: Run) -> None:
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
        warnings=tuple(plan.data.warnings),
    )
    files.write_json(run.path / runs.CHECKPOINTS / PLANNED, schema.plain(planned))


def write(run: Run, state: str, error: Any = None) -> None:
    """Write the report files of a run; report.json, which means done, only when `state` is "completed"."""
    writing.write(run.path, gather(run, state, error))


def complete(run: Run) -> None:
    """The end of a run that is done: its report, and the state that says so."""
    write(run, "completed")
    run.update(state="completed", stage=None, progress=100, eta=None, error=None)


def gather(run: Run, state: str, error: Any = None) -> Report:
    """The whole report. Stages that did not run leave their part out."""
    planned = writing.read(run.path / runs.CHECKPOINTS / PLANNED)
    stages = run.status.get("stages", {})
    trained = stages.get("train")
    return dataclasses.replace(
        planned,
        run=_run(run, state, error, stages),
        base=dataclasses.replace(planned.base, trainable=(trained or {}).get("trainable")),
        training=_training(planned, trained) if trained else None,
        samples=tuple(
            Sample(s["question"], s["before"], s["after"], s["stopped"], s["expected"])
            for s in stages.get("evaluate", {}).get("samples", [])
        ),
        scores=_scores(stages),
        general=tuple(Score(**score) for score in stages.get("evaluate", {}).get("general", [])),
        quantised=_quantised(run, stages),
        checks=tuple(Check(**c) for c in run.status.get("checks", [])),
        artefacts=writing.artefacts(run.path),
        warnings=(*planned.warnings, *run.status.get("warnings", []), *run.status.get("check_warnings", [])),
    )


def _scores(stages: dict[str, Any]) -> tuple[Score, ...]:
    """The lines of the evaluation, with the quantised file's figures put beside those of base and tuned model."""
    quantised = stages.get("check", {}).get("quantised", {}).get("scores", {})
    found = (Score(**score) for score in stages.get("evaluate", {}).get("scores", []))
    return tuple(dataclasses.replace(score, quantised=quantised.get(score.name)) for score in found)


def _quantised(run: Run, stages: dict[str, Any]) -> tuple[Quantised, ...]:
    speeds = stages.get("check", {}).get("quantised", {}).get("speeds", {})
    found = (Quantised(**row) for row in run.status.get("quantised", []))
    return tuple(dataclasses.replace(row, tokens_per_second=speeds.get(row.file)) for row in found)


def worse(run: Run, best: bool) -> str:
    """In which way the tuned model is worse than the base: by the validation loss, or by that on the test rows."""
    validation = run.stage("train")["validation"]
    before, after = validation["before"], validation["best" if best else "after"]
    if before is not None and after is not None and after > before:
        return f"the tuned model is worse than the base: validation loss {before:.4f} before, {after:.4f} after"
    for score in (run.stage("evaluate") or {}).get("scores", []):
        if score["name"] == evaluation.LOSS and score.get("verdict") == "worse":
            after = "no finite number" if score["after"] is None else f"{score['after']:.4f}"
            return (
                f"the tuned model is worse than the base: {score['name']} {score['before']:.4f} before, {after} after"
            )
    return ""


def _run(run: Run, state: str, error: Any, stages: dict[str, Any]) -> RunFacts:
    return RunFacts(
        id=run.path.name,
        directory=str(run.path),
        state=state,
        started=run.status.get("started"),
        finished=time.time(),
        stages={name: stage["seconds"] for name, stage in stages.items() if "seconds" in stage},
        failed_stage=getattr(error, "stage", "") if error else "",
        error=getattr(error, "message", str(error)) if error else "",
        safe=getattr(error, "safe", "") if error else "",
    )


def _data(plan: Any) -> DataFacts:
    chosen, counts, summary = plan.settings.dataset, plan.data.counts, plan.summary
    roles = [
        (chosen.dataset_file, "training", counts["train"]),
        (chosen.validation_file, "validation", counts["validation"]),
    ]
    files = tuple(
        DataFile(str(path), role, plan.data.sha256[str(path)], path.stat().st_size if path.exists() else None, rows)
        for path, role, rows in roles
        if path
    )
    names = {"train": "training", "validation": "validation", "test": "test"}
    return DataFacts(
        files=files,
        rows={name: counts[key] for key, name in names.items() if counts[key]},
        tokens=summary.tokens,
        trained_tokens=summary.trained_tokens,
        percentiles=dict(zip(PERCENTILES, summary.total, strict=True)),
        prompts=dict(zip(PERCENTILES, summary.prompt, strict=True)),
        answers=dict(zip(PERCENTILES, summary.answer, strict=True)),
        turns=counts["turns"],
        **_profile(plan.data.train),
        cut=summary.cut,
        rejected=len(plan.rejected),
    )


def _profile(rows: Any) -> dict[str, float]:
    """What the answers of the training rows are like, from at most PROFILED of them."""
    seen = [dataset.as_row(rows[at]) for at in held_out.spread(len(rows), PROFILED)]
    answers = [row.messages[-1].content if row.messages else row.text or "" for row in seen]
    chinese = sum(any("\u4e00" <= character <= "\u9fff" for character in answer) for answer in answers)
    return {"chinese": chinese / len(answers), "distinct": len(set(answers)) / len(answers)}


def _training(planned: Report, trained: dict[str, Any]) -> TrainingFacts:
    found = trained["validation"]
    kept_best = planned.settings["Training"]["EARLY_STOPPING_PATIENCE"] and found["best"] is not None
    return TrainingFacts(
        steps=trained["steps"],
        total=planned.training.total,
        epochs=trained["epochs"],
        before=found["before"],
        after=found["best" if kept_best else "after"],
        best=found["best"],
        best_step=trained["best_step"],
        stopped_early=trained["stopped_early"],
        tokens_per_second=trained["tokens_per_second"],
        peak_memory=trained["peak_memory"],
    )
