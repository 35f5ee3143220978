"""From the adapter to files that Ollama runs:  python training/export.py RUN [--only STAGE] [--name NAME]

Stages: merge, convert, quantise, modelfile, check. A stage that is done is not done again, unless --only names it. With
--adapter BASE_IN_OLLAMA it writes the adapter alone as GGUF, and a Modelfile that puts it on that model. Runs in a
process of its own, without the training's memory and without Unsloth. Prints the Modelfile's path on stdout.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from loguru import logger

from training import llama, ollama, runs
from training.base_model import base_files
from training.checks import all_checks
from training.errors import FinetuneError, RunError, UserError
from training.ollama import modelfile
from training.plan import plan as as_read
from training.report import gathering
from training.runs import FACTS, Run, directory
from training.settings.names import NEED_IMPORTANCE_MATRIX
from training.system import files, forkserver, launchers, log
from training.system.events import Events
from training.system.parent_watch import end_with_parent
from training.system.signals import Signals
from training.to_gguf import Job, adapter_gguf, conversion, importance, merging, reader_metadata
from training.to_gguf.importance import Importance
from training.to_gguf.job import what_is_safe


class Told(RunError):
    """A failure that the export's own process has told already."""


def keep_facts(
    run: Run,
    plan: Any,
    questions: Sequence[dict],
    sequences: Sequence[dict],
    rows: Any,
    end_ids: Sequence[int],
    calibration: Sequence[int] = (),
) -> None:
    """Write down what the export needs, so that it can be done later, again, and without the data file.

    questions, sequences: for the checks (stages.py). `rows` (stages.Rows): what base and tuned model are measured on, and
    the quantised one, too. calibration: tokens of training rows, for an importance matrix.
    """
    template = dataclasses.asdict(plan.template)
    # SYSTEM_PROMPT may hold what is nobody's business, and stands in the run's config.ini.
    del template["system"]
    template["today"] = plan.template.today and plan.template.today.isoformat()
    stops = modelfile.stop_texts(
        plan.template.eos, plan.template.end_tokens, (plan.tokenizer.decode([i]) for i in end_ids)
    )
    files.write_json(
        run.path / runs.CHECKPOINTS / FACTS,
        {
            "v": 1,
            "base": {
                **{"name": plan.base.name, "path": str(plan.base.path), "kind": plan.base.kind},
                "files": base_files.of(plan.base),
            },
            "template": template,
            "plain": plan.data.plain,
            "stops": stops,
            "end_ids": list(end_ids),
            "num_ctx": plan.settings.model.max_seq_length,
            "questions": list(questions),
            "sequences": list(sequences),
            "measured": [item.as_dict() for item in rows.measured],
            "asked": [item.as_dict() for item in rows.asked],
            "calibration": list(calibration),
            "row_texts": as_read.of_plan(plan, as_read.KEPT_CHARACTERS).without_secrets().as_dict(),
        },
    )


def export(job: Job, only: str | None = None, tell: Callable[[str, float], None] | None = None) -> None:
    """Do every stage that is not done yet (or the one named by `only`). Raises RunError naming the stage.

    `tell` hears of each stage that was done, and its seconds.
    """
    first = _gone(job, only) if only else ()
    with llama.kept():  # the stages that ask llama.cpp change no file
        _stages(job, only, first, tell)
    if only in (None, "check"):
        tidy(job)
    job.run.update(stage=None)


def _stages(job: Job, only: str | None, first: Sequence[str], tell: Callable[[str, float], None] | None) -> None:
    """The stages in their order: those that are not done, or `only` with those in `first` before it."""
    for name, (done, work) in STAGES.items():
        if only is None and job.run.stage(name) is not None and done(job):
            continue
        if only is not None and name != only and name not in first:
            continue
        began = time.perf_counter()
        job.run.update(stage=name)
        try:
            record = work(job)
        except OSError as error:
            raise RunError(name, str(error), what_is_safe(job)) from error
        except RunError as error:
            raise RunError(error.stage, error.message, error.safe or what_is_safe(job)) from error
        seconds = round(time.perf_counter() - began, 1)
        if name not in first:
            _forget_later(job, name)
        job.run.finish_stage(name, {"seconds": seconds, **record})
        logger.info("{}: {:.1f} s", name, seconds)
        if tell:
            tell(name, seconds)


def _gone(job: Job, only: str) -> tuple[str, ...]:
    """The stages whose files were not kept (KEEP_MERGED, KEEP_F16) and that `only` works on: they are made again."""
    f16 = only in ("quantise", "check") and not job.f16.is_file()
    run = only == "quantise" and any(m in NEED_IMPORTANCE_MATRIX for m in job.settings.quantization.quantization_method)
    merged = (only in ("convert", "check") or f16 or run) and not job.merged.is_dir()
    return ("merge",) * merged + ("convert",) * f16


def _forget_later(job: Job, name: str) -> None:
    """What follows from a stage that was done anew has to be done anew."""
    names = list(STAGES)
    later = names[names.index(name) + 1 :]
    kept = {stage: record for stage, record in job.run.status.get("stages", {}).items() if stage not in later}
    job.run.update(stages=kept)


def _merge(job: Job) -> dict[str, Any]:
    template = job.trained_template
    record = merging.merge(job.base, job.run.path / runs.ADAPTER, job.merged, template and template.exported)
    return {"merge": dataclasses.asdict(record)}


def _convert(job: Job) -> dict[str, Any]:
    pairs = reader_metadata.pairs(reader_metadata.tokenizer(job.merged), job.trained_template)
    with merging.without_template(job.merged) if job.facts["plain"] else nullcontext(job.merged) as folder:
        conversion.to_gguf(folder, job.f16, pairs=pairs)
    return {"bytes": job.f16.stat().st_size}


def _quantise(job: Job) -> dict[str, Any]:
    methods = job.settings.quantization.quantization_method
    matrix = job.run.path / runs.CHECKPOINTS / f"importance.npz{files.PARTIAL}"
    try:
        measured = _measure(job, matrix) if any(method in NEED_IMPORTANCE_MATRIX for method in methods) else None
        table = [_quantised(job, method, matrix) for method in methods]
    finally:
        matrix.unlink(missing_ok=True)
    return {"quantised": table} | ({"importance": measured.as_dict()} if measured else {})


def _measure(job: Job, out: Path) -> Importance:
    """The importance matrix of the merged model, from the rows that training left for it."""
    try:
        measured = importance.write(job.merged, job.f16, job.facts.get("calibration", ()), out)
    except RunError as error:
        needing = [m for m in job.settings.quantization.quantization_method if m in NEED_IMPORTANCE_MATRIX]
        raise RunError("quantise", f"the importance matrix for {', '.join(needing)}: {error.message}") from error
    idle = f"; {measured.idle} experts were reached by none" if measured.idle else ""
    logger.info("importance matrix: {:,} tokens of training rows, {:.1f} s{}", measured.tokens, measured.seconds, idle)
    return measured


def _quantised(job: Job, method: str, matrix: Path) -> dict[str, Any]:
    """Make one file; its row of the report's table."""
    if method == "f16":
        return {"file": job.f16.name, "method": "f16", "bytes": job.f16.stat().st_size}
    needs = method in NEED_IMPORTANCE_MATRIX  # the others are what they would be without: the same in every run
    made = conversion.quantise(job.f16, job.quantised(method), method, importance=matrix if needs else None)
    kinds = ", ".join(f"{count} {what}" for what, count in made.fallbacks.items())
    fallback = f"{made.fell_back} of {made.tensors} tensors: {kinds}" if made.fell_back else None
    if fallback:
        logger.info("{}: rows do not fit the type for {}", method, fallback)
    row = {"file": made.path.name, "method": method, "bytes": made.size, "fallback": fallback}
    return row | ({"importance": True} if needs else {})


def _modelfile(job: Job) -> dict[str, Any]:
    path = write_modelfile(job, job.run.path / "Modelfile")
    held = ollama.verify(path, job.chat(job.adds_bos), job.facts["stops"])
    if not held["passed"]:
        raise RunError("modelfile", held["note"])
    logger.info("Modelfile: {}", held["note"])
    return {"modelfile": held}


def write_modelfile(job: Job, path: Path) -> Path:
    """Write a Modelfile for the run's first quantised file to `path`, which must be in the run directory."""
    generation = job.merged / "generation_config.json"
    if not generation.is_file():
        generation = job.base / "generation_config.json"
    values = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    text = ollama.compose(
        job.quantised(job.settings.quantization.quantization_method[0]).name,
        job.chat(job.adds_bos),
        stops=job.facts["stops"],
        num_ctx=job.facts["num_ctx"],
        sampling=modelfile.sampling(values),
    )
    ollama.write(path, text)
    return path


def _check(job: Job) -> dict[str, Any]:
    return all_checks.run(job)


def finish(job: Job) -> None:
    """A run that had stopped before its end is done with this export: its state, its last event and its report say so.

    Not so where FAIL_IF_WORSE had ended it: that is a failure, exported or not.
    """
    run = job.run
    planned = (run.path / runs.CHECKPOINTS / gathering.PLANNED).is_file()
    chosen = job.settings.training
    failed = chosen.fail_if_worse and gathering.worse(run, best=bool(chosen.early_stopping_patience))
    if run.status.get("state") == "completed" or run.stage("train") is None or failed or not planned:
        return
    gathering.complete(run)
    Events(run.path / runs.EVENTS).emit("done", run=str(run.path), exit_code=0)


def failure(run: Run, code: int, said: dict[str, Any]) -> FinetuneError:
    """What a failed export process, and the last that it said, means to the run that started it."""
    if code < 0:
        name = f"signal {-code}" + (" (probably out of memory)" if code == -9 else "")
        adapter = run.path / runs.ADAPTER
        return RunError(
            "export",
            f"its process was killed by {name}",
            f"the adapter is safe in {adapter}; `./run.sh --resume {run.path}` does the rest again",
        )
    if "message" not in said:
        return Told("export", f"exit code {code}")
    return Told(said["stage"], said["message"], said["safe"])


def tidy(job: Job) -> None:
    """Remove what was needed on the way and is not to be kept."""
    if not job.settings.quantization.keep_merged:
        shutil.rmtree(job.merged, ignore_errors=True)
    if job.f16.parent != job.run.path:
        job.f16.unlink(missing_ok=True)


def _all_quantised(job: Job) -> bool:
    return all(job.quantised(method).is_file() for method in job.settings.quantization.quantization_method)


def _finished(job: Job) -> bool:
    """Everything is there and checked, so that what was only needed on the way may be gone."""
    return _all_quantised(job) and job.run.stage("check") is not None


STAGES: dict[str, tuple[Callable[[Job], bool], Callable[[Job], dict[str, Any]]]] = {  # is its result there; do it
    "merge": (lambda job: job.merged.is_dir() or _finished(job), _merge),
    "convert": (lambda job: job.f16.is_file() or _finished(job), _convert),
    "quantise": (_all_quantised, _quantise),
    "modelfile": (lambda job: (job.run.path / "Modelfile").is_file(), _modelfile),
    "check": (lambda job: True, _check),
}


def main(argv: Sequence[str]) -> int:
    """The command line; errors go to the log, the Modelfile's path to stdout.

    To the run that started it, it tells its stages and its error as JSON on stdout: status.json may be what cannot be
    written.
    """
    stdout = log.claim_stdout()
    launchers.leave_out()
    Signals().install()
    alone = True

    def say(**words: Any) -> None:
        log.say_json(stdout, words)

    try:
        path, only, name, base = _arguments(list(argv))
        job = Job.of_run(path)
        alone = _alone(job.run)
        log.start(job.run.path / runs.LOG)
        launchers.tell()
        files.remove_partial(job.run.path)
        if not alone:
            export(job, tell=lambda stage, seconds: say(stage=stage, seconds=seconds))
            return 0
        with _working(job.run):
            log.say_path(stdout, _by_itself(job, only, name, base))
        return 0
    except FinetuneError as error:
        logger.error("{}", error)
        if not alone:
            told = error if isinstance(error, RunError) else RunError("export", str(error))
            say(stage=told.stage, message=told.message, safe=told.safe)
        return error.exit_code
    except Exception as error:  # our own mistake, or a library's: told in one line, the traceback is in the log
        logger.opt(exception=True).debug("unexpected")
        words = f"{type(error).__name__}: {error}"
        logger.error("export: {}; the traceback is in {}", words, log.SHARED_LOG)
        if not alone:
            say(stage="export", message=words, safe=what_is_safe(job))
        return 1


def _by_itself(job: Job, only: str | None, name: str | None, base: str | None) -> Path:
    """What the command line asks for; the Modelfile that was written."""
    if base:
        return adapter_gguf.export(job, base, name and _modelfile_of(job, name))
    export(job, only)
    if only is None:
        finish(job)
    return write_modelfile(job, _modelfile_of(job, name)) if name else job.run.path / "Modelfile"


@contextmanager
def _working(run: Run) -> Iterator[None]:
    """Let status.json name this process as the one that works on a run; in the end, who was there before."""
    before = {key: run.status.get(key) for key in ("state", "pid", "pid_started")}
    if before["state"] != "completed":
        run.update(state="running", **directory.identity())
    try:
        yield
    finally:
        if run.status["state"] == "running":
            run.update(**before)


def _alone(run: Run) -> bool:
    """Make sure that no other process works on the run: only the run itself may start its export while it is running.

    Whether this export was started by itself.
    """
    if directory.state(run) != "running":
        directory.lock(run)
        return True
    if run.status["pid"] == forkserver.starter():
        end_with_parent()
        return False
    raise UserError(f"{run.path} is running (process {run.status['pid']}); wait for it, or ./run.sh --stop {run.path}")


def _modelfile_of(job: Job, name: str) -> Path:
    return job.run.path / f"Modelfile.{name.replace('/', '-').replace(':', '-')}"


def _arguments(words: list[str]) -> tuple[Path, str | None, str | None, str | None]:
    found: dict[str, str] = {}
    for flag, allowed in (("--only", list(STAGES)), ("--name", None), ("--adapter", None)):
        if flag in words:
            at = words.index(flag)
            value = "".join(words[at + 1 : at + 2])
            if not value or (allowed and value not in allowed):
                raise UserError(
                    f"{flag} {value}: {'one of ' + ', '.join(allowed) if allowed else 'a name must follow'}"
                )
            found[flag] = value
            del words[at : at + 2]
    if "--only" in found and "--adapter" in found:
        raise UserError("--adapter makes the adapter's file alone; --only STAGE is about the merged model's")
    if len(words) != 1 or words[0].startswith("-"):
        raise UserError("usage: python training/export.py RUN [--only STAGE | --adapter BASE_IN_OLLAMA] [--name NAME]")
    path = Path(words[0]).resolve()
    path = path.parent if path.name in (runs.MERGED, runs.ADAPTER) else path
    return path, found.get("--only"), found.get("--name"), found.get("--adapter")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
