"""The runs in the shape of OpenAI's fine-tuning jobs, with their events and checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from training import runs
from training.report import curves
from training.runs import Run, directory
from training.service import asked
from training.service.asked import Problem, Refused
from training.service.core import Core
from training.service.jobs import NotFound
from training.settings import Settings, rules
from training.system import privacy
from training.system.foreign_json import OBJECT, TEXT

STATES = {
    "queued": "queued",
    "running": "running",
    "completed": "succeeded",
    "interrupted": "cancelled",
    "failed": "failed",
    "killed": "failed",
}
AUTO = (None, "auto")
# Of what a job is remembered by, in status.json: what does not fit is as if it were not there.
KEPT = {"hyperparameters": OBJECT, **dict.fromkeys(("model", "training_file"), TEXT), "validation_file": TEXT.or_none()}
SUFFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def settings_of(body: Mapping[str, Any], service: Core) -> tuple[Settings, dict[str, object]]:
    """The settings of the run that a job asks for, and what the job is remembered by. Refused with every problem."""
    problems: list[Problem] = []
    fields: dict[str, object] = {"model": _base(str(body["model"]), service)}
    for name, field in (("training_file", "dataset_file"), ("validation_file", "validation_file")):
        if body.get(name) is None:
            continue
        try:
            fields[field] = str(service.uploads.path(body[name]))
        except NotFound as error:
            problems.append(Problem(name, f"{name}: {error}"))
    hyper = _hyperparameters(body, problems)
    fields |= _lengths(hyper, service.own, problems)
    if body.get("seed") is not None:
        fields["seed"] = body["seed"]
    if (suffix := body.get("suffix")) is not None:
        if SUFFIX.fullmatch(suffix):
            fields["name"] = suffix.lower()
        else:
            problems.append(
                Problem("suffix", "suffix: up to 64 letters, digits and . _ - beginning with a letter or digit")
            )
    if body.get("integrations"):
        problems.append(Problem("integrations", "integrations: write report_to into settings instead"))
    fields |= body.get("settings") or {}
    try:
        found = asked.settings_of(fields, service.own, service.places)
    except Refused as error:
        raise Refused([*problems, *error.found]) from None
    if problems:
        raise Refused(problems)
    kept = {
        name: body.get(name) for name in ("model", "training_file", "validation_file", "seed", "suffix", "metadata")
    }
    return found, {**kept, "hyperparameters": hyper}


def _base(model: str, service: Core) -> str:
    """A model's name, or the merged model of a run that was made here: training goes on from it then."""
    run = service.models.run_of(model)
    return str(run.path.resolve() / runs.MERGED) if run is not None and (run.path / runs.MERGED).is_dir() else model


def _hyperparameters(body: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    method = body.get("method") or {"type": "supervised"}
    if method.get("type") != "supervised":
        problems.append(Problem("method", "method: only supervised is trained here"))
        return {}
    inner = (method.get("supervised") or {}).get("hyperparameters") or {}
    return {
        name: value for name, value in {**(body.get("hyperparameters") or {}), **inner}.items() if value is not None
    }


def _lengths(hyper: Mapping[str, Any], own: Settings, problems: list[Problem]) -> dict[str, object]:
    fields: dict[str, object] = {}
    for name in hyper:
        if name not in ("n_epochs", "batch_size", "learning_rate_multiplier"):
            problems.append(Problem(name, f"{name}: is no hyperparameter here; settings takes every other setting"))
    if hyper.get("n_epochs") not in AUTO:
        fields["num_epochs"] = hyper["n_epochs"]
    if hyper.get("batch_size") not in AUTO:
        fields |= {"batch_size": hyper["batch_size"], "gradient_accumulation_steps": 1}
    times = hyper.get("learning_rate_multiplier")
    if isinstance(times, (int, float)) and not isinstance(times, bool):
        fields["learning_rate"] = rules.write(own.training.learning_rate * times)
    elif times not in AUTO:
        problems.append(Problem("learning_rate_multiplier", "learning_rate_multiplier: expected a number, or auto"))
    return fields


def job(run: Run) -> dict[str, Any]:
    """A run as a job. One that was not asked for in this shape has no file."""
    state, status = directory.state(run), run.status
    kept: dict[str, Any] = {
        name: value for name, value in (status.get("asked") or {}).items() if name not in KEPT or KEPT[name].fits(value)
    }
    hyper = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    hyper |= kept.get("hyperparameters") or {}
    ended = state in ("completed", "failed", "killed", "interrupted")
    error = status.get("error") or ("its process is gone" if state == "killed" else None)
    created = status.get("queued") or status.get("started") or status.get("updated") or 0
    return {
        "id": run.path.name,
        "object": "fine_tuning.job",
        "created_at": int(created),
        "error": {"code": state, "message": str(error), "param": None}
        if error and ended and state != "interrupted"
        else None,
        "fine_tuned_model": run.path.name if state == "completed" else None,
        "finished_at": int(status.get("updated") or 0) if ended else None,
        "hyperparameters": hyper,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyper}},
        "model": str(kept.get("model") or status.get("model") or ""),
        "organization_id": "local",
        "result_files": [],
        "seed": kept.get("seed") if isinstance(kept.get("seed"), int) else 0,
        "status": STATES[state],
        "trained_tokens": None,
        "training_file": str(kept.get("training_file") or ""),
        "validation_file": kept.get("validation_file"),
        "estimated_finish": int(status["eta"]) if state == "running" and status.get("eta") else None,
        "integrations": [],
        "metadata": kept.get("metadata"),
        "user_provided_suffix": kept.get("suffix"),
    }


def job_events(told: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The events of a run, newest first."""
    found = []
    for number, event in enumerate(told, 1):
        name = str(event.get("event"))
        data = {key: value for key, value in event.items() if key not in ("v", "event", "time")}
        found.append(
            {
                "id": f"ftevent-{number}",
                "object": "fine_tuning.job.event",
                "created_at": int(event.get("time") or 0),
                "level": {"failed": "error", "warning": "warn", "interrupted": "warn"}.get(name, "info"),
                "message": _message(name, data),
                "type": "metrics" if name in ("step", "evaluation") else "message",
                "data": _metrics(name, data),
            }
        )
    hidden: list[dict[str, Any]] = privacy.hidden(found[::-1])  # type: ignore[assignment]
    return hidden


def _message(name: str, data: Mapping[str, Any]) -> str:
    if name == "step":
        return f"Step {data.get('step')}/{data.get('total')}: training loss={_rounded(data.get('loss'))}"
    if name == "evaluation":
        return f"Step {data.get('at_step')}: validation loss={_rounded(data.get('loss'))}"
    if name == "done":
        return "The job has successfully completed"
    told = data.get("message") or data.get("error") or data.get("name") or ""
    return f"{name}: {told}" if told else name


def _metrics(name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The figures by OpenAI's names, too."""
    if name == "step":
        return {**data, "train_loss": data.get("loss"), "total_steps": data.get("total")}
    if name == "evaluation":
        return {**data, "step": data.get("at_step"), "valid_loss": data.get("loss")}
    return dict(data)


def _rounded(value: object) -> str:
    figure = curves.finite(value)
    return "none" if figure is None else f"{figure:.4f}"


def checkpoints(run: Run, told: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The checkpoints that a run has now, newest first. `told`: its events."""
    losses = {event.get("step"): curves.finite(event.get("loss")) for event in told if event.get("event") == "step"}
    found = [
        (int(path.name.rpartition("-")[2]), path)
        for path in (run.path / runs.CHECKPOINTS).glob("checkpoint-*")
        if _whole(path)
    ]
    return [
        {
            "id": f"{run.path.name}:{path.name}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": int(path.stat().st_mtime),
            "fine_tuned_model_checkpoint": f"{run.path.name}:{path.name}",
            "fine_tuning_job_id": run.path.name,
            "metrics": {"step": step, "train_loss": losses.get(step)},
            "step_number": step,
        }
        for step, path in sorted(found, reverse=True)
    ]


def _whole(path: Path) -> bool:
    return path.name.rpartition("-")[2].isdecimal() and path.is_dir()
