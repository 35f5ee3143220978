"""The stages of an export, one after the other."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from loguru import logger

from training import llama, ollama, runs
from training.base_model import generation
from training.checks import all_checks
from training.errors import FinetuneError, RunError, UserError
from training.ollama import modelfile
from training.report import gathering, model_card, schema
from training.runs import Run, Stage, checkpoint
from training.runs.progress import Reached, Teller
from training.settings.names import NEED_IMPORTANCE_MATRIX
from training.system import files, io_errors, records, threads
from training.system.events import Events
from training.system.foreign_json import Damaged
from training.to_gguf import conversion, importance, merging, provenance, reader_metadata
from training.to_gguf.importance import Importance
from training.to_gguf.job import FileRow, Job, what_is_safe


class Told(RunError):
    """A failure that the export's own process has told already."""


def export(
    job: Job,
    only: Stage | None = None,
    tell: Callable[[Stage, float], None] | None = None,
    hear: Callable[[Reached], None] | None = None,
) -> None:
    """Do every stage that is not done yet (or the one named by `only`). Raises RunError naming the stage.

    `tell` hears of each stage that was done, and its seconds; `hear` how far the run is, now and then.
    """
    first = _gone(job, only) if only else ()
    # The stages that ask llama.cpp change no file.
    with _threads(job), llama.kept():
        for name in _stages(job, only, first):
            _stage(job, name, name in first, tell, hear)
    if only in (None, "check"):
        tidy(job)
    job.run.update(stage=None)


def _threads(job: Job) -> AbstractContextManager[None]:
    """The number of threads that somebody wrote down for the run: for all its processes on a machine, for the export is one.

    What was chosen for the machine that trained is no rule for the one that exports.
    """
    hardware = job.settings.hardware
    if not job.settings.written("Hardware.NUM_THREADS") or hardware.num_threads == "auto":
        return nullcontext()
    return threads.at_most(hardware.num_threads * hardware.num_processes)


def _stages(job: Job, only: Stage | None, first: Sequence[Stage]) -> Iterator[Stage]:
    """The stages in their order: those that are not done, or `only` with those in `first` before it."""
    for name, (done, _) in STAGES.items():
        if only is None and job.run.stage(name) is not None and done(job):
            continue
        if only is None or name == only or name in first:
            yield name


def _stage(
    job: Job,
    name: Stage,
    again: bool,
    tell: Callable[[Stage, float], None] | None,
    hear: Callable[[Reached], None] | None,
) -> None:
    """Do one stage, and keep its figures. `again`: only its files are missing, and what follows from it is not."""
    began = time.perf_counter()
    far = Teller(job.run, name, hear)
    far.begin()
    try:
        record = STAGES[name][1](replace(job, told=far))
    except (OSError, UserError, RunError) as error:
        raise _failed(name, error, job) from error
    seconds = round(time.perf_counter() - began, 1)
    if not again:
        _forget_later(job, name)
    job.run.finish_stage(name, {"seconds": seconds, **record})
    far(1.0)
    logger.info("{}: {:.1f} s", name, seconds)
    if tell:
        tell(name, seconds)


def _failed(name: Stage, error: OSError | UserError | RunError, job: Job) -> RunError:
    """What ends a stage, with what is safe and how to go on."""
    if isinstance(error, OSError):
        return RunError(name, io_errors.told(error, job.run.path), what_is_safe(job))
    if isinstance(error, UserError):
        return RunError(name, io_errors.instead(str(error), error), what_is_safe(job))
    return RunError(error.stage, io_errors.instead(error.message, error), error.safe or what_is_safe(job))


def _gone(job: Job, only: Stage) -> list[Stage]:
    """The stages whose files were not kept (KEEP_MERGED, KEEP_F16) and that `only` works on: they are made again."""
    f16 = only in ("quantise", "check") and not job.f16.is_file()
    run = only == "quantise" and any(m in NEED_IMPORTANCE_MATRIX for m in job.settings.quantization.quantization_method)
    merged = (only in ("convert", "check") or f16 or run) and not _merged(job)
    gone: list[tuple[Stage, bool]] = [("merge", merged), ("convert", f16)]
    return [stage for stage, missing in gone if missing]


def _forget_later(job: Job, name: Stage) -> None:
    """What follows from a stage that was done anew has to be done anew."""
    names = list(STAGES)
    later = names[names.index(name) + 1 :]
    kept = {stage: record for stage, record in job.run.status.get("stages", {}).items() if stage not in later}
    job.run.update(stages=kept)


def _merge(job: Job) -> dict[str, Any]:
    template = job.template.exported if job.template else None
    alone = job.template is not None and job.template.alone
    record = merging.merge(job.base, job.run.path / runs.ADAPTER, job.merged, template, alone)
    # Those that are not the report's: by their names it is seen later whether one has gone.
    names = sorted(file.name for file in job.merged.iterdir() if file.name != model_card.NAME)
    return {"merge": records.plain(record), "files": names}


def _convert(job: Job) -> dict[str, Any]:
    pairs = reader_metadata.pairs(job.words, job.template) | _provenance(job)
    with merging.without_template(job.merged) if job.facts.plain else nullcontext(job.merged) as folder:
        conversion.to_gguf(folder, job.f16, progress=job.told, pairs=pairs)
    return {"bytes": job.f16.stat().st_size}


def _provenance(job: Job) -> dict[str, bool | int | str]:
    """What the file says of its training; nothing where the run's own record of it cannot be read."""
    if not gathering.has_plan(job.run):
        return {}
    try:
        return provenance.pairs(provenance.describe(schema.plain(gathering.gather(job.run, "running", ended=False))))
    except Damaged as damage:
        logger.warning("the GGUF file will not say what it was trained from: {}", damage)
        return {}


def _quantise(job: Job) -> dict[str, Any]:
    methods = job.settings.quantization.quantization_method
    matrix = job.run.path / runs.CHECKPOINTS / f"importance.npz{files.PARTIAL}"
    try:
        measured = _measure(job, matrix) if any(method in NEED_IMPORTANCE_MATRIX for method in methods) else None
        parts = [replace(job, told=_part(job.told, number, len(methods))) for number in range(len(methods))]
        table = [_quantised(part, method, matrix) for part, method in zip(parts, methods, strict=True)]
    finally:
        files.remove(matrix)
    return {"quantised": table} | ({"importance": records.plain(measured)} if measured else {})


def _part(told: Callable[[float], None], number: int, of: int) -> Callable[[float], None]:
    """What is told of one of several equal parts of a stage, counted from 0."""
    return lambda share: told((number + share) / of)


def _measure(job: Job, out: Path) -> Importance:
    """The importance matrix of the merged model, from the rows that training left for it."""
    try:
        measured = importance.write(job.merged, job.f16, job.facts.calibration, out)
    except RunError as error:
        needing = [m for m in job.settings.quantization.quantization_method if m in NEED_IMPORTANCE_MATRIX]
        raise RunError("quantise", f"the importance matrix for {', '.join(needing)}: {error.message}") from error
    idle = f"; {measured.idle} experts were reached by none" if measured.idle else ""
    logger.info("importance matrix: {:,} tokens of training rows, {:.1f} s{}", measured.tokens, measured.seconds, idle)
    return measured


def _quantised(job: Job, method: str, matrix: Path) -> FileRow:
    """Make one file; its row of the report's table."""
    if method == "f16":
        return {"file": job.f16.name, "method": "f16", "bytes": job.f16.stat().st_size}
    needs = method in NEED_IMPORTANCE_MATRIX  # the others are what they would be without: the same in every run
    made = conversion.quantise(job.f16, job.quantised(method), method, job.told, importance=matrix if needs else None)
    kinds = ", ".join(f"{count} {what}" for what, count in made.fallbacks.items())
    fallback = f"{made.fell_back} of {made.tensors} tensors: {kinds}" if made.fell_back else None
    if fallback:
        logger.info("{}: rows do not fit the type for {}", method, fallback)
    row: FileRow = {"file": made.path.name, "method": method, "bytes": made.size, "fallback": fallback}
    if needs:
        row["importance"] = True
    return row


def _modelfile(job: Job) -> dict[str, Any]:
    path = write_modelfile(job, job.run.path / "Modelfile")
    held = ollama.verify(path, job.chat(job.adds_bos), job.facts.stops)
    if not held.passed:
        raise RunError("modelfile", held.note)
    logger.info("Modelfile: {}", held.note)
    return {"modelfile": {"check": "modelfile_template", "passed": True, **held.figures()}}


def write_modelfile(job: Job, path: Path) -> Path:
    """Write a Modelfile for the run's first quantised file to `path`, which must be in the run directory."""
    text = ollama.compose(
        job.quantised(job.settings.quantization.quantization_method[0]).name,
        job.chat(job.adds_bos),
        stops=job.facts.stops,
        num_ctx=job.facts.num_ctx,
        sampling=modelfile.sampling(_generation(job)),
    )
    ollama.write(path, text)
    return path


def _generation(job: Job) -> dict[str, Any]:
    """The merged model's generation_config.json, else the base's, which is asked for only then: it may be gone."""
    return generation.config(job.merged) if (job.merged / generation.FILE).is_file() else generation.config(job.base)


def _check(job: Job) -> dict[str, Any]:
    found = records.plain(all_checks.run(job))
    outcomes = {str(row["name"]): row["passed"] for row in job.run.status.get("checks", [])}
    for path in {job.quantised(method) for method in job.settings.quantization.quantization_method}:
        try:
            provenance.fill(path, outcomes)
        except OSError as error:
            logger.warning("{} will not say what its checks found: {}", path.name, io_errors.told(error, path))
    return found


def finish(job: Job) -> None:
    """A run that had stopped before its end is done with this export: its state, its last event and its report say so.

    Not so where FAIL_IF_WORSE had ended it: that is a failure, exported or not.
    """
    run = job.run
    chosen = job.settings.training
    failed = chosen.fail_if_worse and gathering.worse(run, best=bool(chosen.early_stopping_patience))
    done = run.status.get("state") == "completed" and (run.path / runs.REPORT).is_file()
    if done or run.stage("train") is None or failed or not gathering.has_plan(run):
        return
    gathering.complete(run)
    Events(run.path / runs.EVENTS).emit("done", run=str(run.path), exit_code=0)


def failure(run: Run, code: int, said: dict[str, Any]) -> FinetuneError:
    """What a failed export process, and the last that it said, means to the run that started it."""
    safe = checkpoint.adapter_is(run.path, again=True)
    if code < 0:
        name = f"signal {-code}" + (" (probably out of memory)" if code == -9 else "")
        return RunError("export", f"its process was killed by {name}", safe)
    if "message" not in said:  # before it had read the run
        how = f"with exit code {code}, for the reason above" if code else "before its work was done"
        return RunError("export", f"its process ended {how}", safe)
    return Told(said["stage"], said["message"], said["safe"])


def tidy(job: Job) -> None:
    """Remove what was needed on the way and is not to be kept."""
    if not job.settings.quantization.keep_merged:
        shutil.rmtree(job.merged, ignore_errors=True)
    if job.f16.parent != job.run.path:
        files.remove(job.f16)


def _merged(job: Job) -> bool:
    """Whether the merged folder is there with all its files. A run of an older version does not say which those are."""
    names = (job.run.stage("merge") or {}).get("files")
    known = names if isinstance(names, list) else []
    return job.merged.is_dir() and all((job.merged / str(name)).exists() for name in known)


def _all_quantised(job: Job) -> bool:
    return all(job.quantised(method).is_file() for method in job.settings.quantization.quantization_method)


def _finished(job: Job) -> bool:
    """Everything is there and checked, so that what was only needed on the way may be gone."""
    return _all_quantised(job) and job.run.stage("check") is not None


# Is its result there; do it.
STAGES: dict[Stage, tuple[Callable[[Job], bool], Callable[[Job], dict[str, Any]]]] = {
    "merge": (lambda job: _merged(job) or _finished(job), _merge),
    "convert": (lambda job: job.f16.is_file() or _finished(job), _convert),
    "quantise": (_all_quantised, _quantise),
    "modelfile": (lambda job: (job.run.path / "Modelfile").is_file(), _modelfile),
    "check": (lambda job: True, _check),
}
