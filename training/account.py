"""Gather what a run's report says, from its plan and from what its stages left in status.json."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from training import dataset, held_out, record, report, runs

PERCENTILES = ("50", "90", "99", "100")
PROFILED = 1000  # rows
ROOT = Path(__file__).resolve().parent.parent


def write(plan: Any, run: runs.Run, state: str, error: Any = None) -> None:
    """Write the report files of a run; report.json, which means done, only when `state` is "completed"."""
    report.write(run.path, gather(plan, run, state, error))


def gather(plan: Any, run: runs.Run, state: str, error: Any = None) -> record.Report:
    """The whole report. Stages that did not run leave their part out."""
    settings, stages = plan.settings, run.status.get("stages", {})
    trained = stages.get("train")
    return record.Report(
        name=settings.model.new_model_name,
        run=_run(run, state, error, stages),
        base=record.BaseFacts(
            name=plan.base.name,
            kind=plan.base.kind,
            revision=plan.base.revision,
            parameters=plan.base.parameters,
            trainable=(trained or {}).get("trainable"),
            max_length=plan.base.max_length,
        ),
        settings=settings.as_dict(),
        differences=tuple(settings.differences()),
        choices=tuple(settings.choices),
        seed=settings.training.seed,
        versions=plan.machine.versions,
        machine={k: v for k, v in plan.machine.as_dict().items() if k != "versions"},
        data=_data(plan),
        training=_training(plan, trained) if trained else None,
        samples=tuple(
            record.Sample(s["question"], s["before"], s["after"], s["stopped"], s["expected"])
            for s in stages.get("evaluate", {}).get("samples", [])
        ),
        scores=_scores(stages),
        general=tuple(record.Score(**score) for score in stages.get("evaluate", {}).get("general", [])),
        quantised=_quantised(run, stages),
        checks=tuple(record.Check(**c) for c in run.status.get("checks", [])),
        artefacts=report.artefacts(run.path),
        warnings=(*plan.data.warnings, *run.status.get("warnings", []), *run.status.get("check_warnings", [])),
    )


def _scores(stages: dict[str, Any]) -> tuple[record.Score, ...]:
    """The lines of the evaluation, with the quantised file's figures put beside those of base and tuned model."""
    quantised = stages.get("check", {}).get("quantised", {}).get("scores", {})
    found = (record.Score(**score) for score in stages.get("evaluate", {}).get("scores", []))
    return tuple(dataclasses.replace(score, quantised=quantised.get(score.name)) for score in found)


def _quantised(run: runs.Run, stages: dict[str, Any]) -> tuple[record.Quantised, ...]:
    speeds = stages.get("check", {}).get("quantised", {}).get("speeds", {})
    found = (record.Quantised(**row) for row in run.status.get("quantised", []))
    return tuple(dataclasses.replace(row, tokens_per_second=speeds.get(row.file)) for row in found)


def _run(run: runs.Run, state: str, error: Any, stages: dict[str, Any]) -> record.RunFacts:
    return record.RunFacts(
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


def _data(plan: Any) -> record.DataFacts:
    chosen, counts, summary = plan.settings.dataset, plan.data.counts, plan.summary
    roles = [
        (chosen.dataset_file, "training", counts["train"]),
        (chosen.validation_file, "validation", counts["validation"]),
    ]
    files = tuple(
        record.DataFile(
            str(path), role, plan.data.sha256[str(path)], path.stat().st_size if path.exists() else None, rows
        )
        for path, role, rows in roles
        if path
    )
    names = {"train": "training", "validation": "validation", "test": "test"}
    return record.DataFacts(
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


def _training(plan: Any, trained: dict[str, Any]) -> record.TrainingFacts:
    return record.TrainingFacts(
        steps=trained["steps"],
        total=plan.steps,
        epochs=trained["epochs"],
        before=trained["validation"]["before"],
        after=trained["validation"]["after"],
        best=trained["validation"]["best"],
        best_step=trained["best_step"],
        tokens_per_second=trained["tokens_per_second"],
        peak_memory=trained["peak_memory"],
    )
