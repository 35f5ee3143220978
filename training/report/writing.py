"""Write what came of a run: report.md for a person in a hurry, report.html to look at, report.json for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training import runs
from training.report import as_html, as_markdown, curves
from training.report.schema import Artefact, Evaluation, Report, Step, TrainingFacts, build, plain
from training.system import files, foreign_json, records
from training.system.foreign_json import Damaged

MOST_STEPS = 2000  # in report.json, evenly spread; every one stands in events.jsonl
JSON, MARKDOWN, HTML = runs.REPORT, "report.md", "report.html"
# No artefacts: the report itself, and what is still written to or removed again when artefacts are listed.
LEFT_OUT = (JSON, MARKDOWN, HTML, runs.STATUS, runs.EVENTS, runs.LOG, runs.CHECKPOINTS)


def write(run: Path, record: Report | Mapping[str, object]) -> Report:
    """Write report.md and report.html into `run` and, of a completed run, report.json as the last; returns what they say.

    report.json there means done: a run that was interrupted or failed gets the two for people only, and one that an
    earlier attempt left behind is removed first. Losses that the record leaves out are read back from events.jsonl.
    Raises ValueError when `record` is a dict with a field that Report does not know.
    """
    report = with_curves(run, build(plain(record)))
    (run / JSON).unlink(missing_ok=True)
    files.write_text(run / MARKDOWN, as_markdown.markdown(report))
    files.write_text(run / HTML, as_html.html(report))
    if report.run.state == "completed":
        files.write_json(run / JSON, thinned(report))
    return report


def read(path: Path) -> Report:
    """The report in a report.json. Damaged where it is none."""
    try:
        return records.read(foreign_json.read(path), Report, strict=True)
    except ValueError as error:
        raise Damaged(f"{path}: {error}") from None


def with_curves(run: Path, report: Report) -> Report:
    """`report` with the losses and evaluations of the run's events, where it does not bring its own."""
    training = report.training
    if training is not None and training.losses:
        return report
    steps, evaluations, total = curves.read(run / runs.EVENTS)
    if not steps and not evaluations:
        return report
    training = training or _so_far(steps, evaluations)
    filled = dataclasses.replace(
        training, losses=steps, evaluations=training.evaluations or evaluations, total=training.total or total
    )
    return dataclasses.replace(report, training=filled)


def _so_far(steps: Sequence[Step], evaluations: Sequence[Evaluation]) -> TrainingFacts:
    """What a training that is not done has told of itself."""
    base = [one.loss for one in evaluations if one.step == 0]
    found = [one for one in evaluations if one.step > 0 and one.loss is not None]
    best = min(found, key=lambda one: one.loss or 0.0, default=None)
    return TrainingFacts(
        steps=steps[-1].step if steps else 0,
        before=base[0] if base else None,
        after=found[-1].loss if found else None,
        best=best.loss if best else None,
        best_step=best.step if best else None,
    )


def thinned(report: Report) -> dict[str, Any]:
    """What report.json holds: everything, with a long run's steps thinned."""
    if report.training:
        losses = tuple(curves.thin(report.training.losses, MOST_STEPS))
        report = dataclasses.replace(report, training=dataclasses.replace(report.training, losses=losses))
    record: dict[str, Any] = plain(report)
    return record


def artefacts(run: Path) -> tuple[Artefact, ...]:
    """Every finished file of a run with its size and SHA-256, in the order of their paths; half-written ones are no artefacts."""
    found = []
    for path in sorted(path for path in run.rglob("*") if path.is_file() and not path.is_symlink()):
        name = path.relative_to(run)
        if name.parts[0] in LEFT_OUT or any(part.endswith(files.PARTIAL) for part in name.parts):
            continue
        found.append(Artefact(name.as_posix(), path.stat().st_size, files.sha256(path)))
    return tuple(found)
