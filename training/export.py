"""From the adapter to files that Ollama runs:  python training/export.py RUN [--only STAGE] [--name NAME]

Stages: merge, convert, quantise, modelfile, check. A stage that is done is not done again, unless --only names it. With
--adapter BASE_IN_OLLAMA it writes the adapter alone as GGUF, and a Modelfile that puts it on that model. Runs in a
process of its own, without the training's memory and without Unsloth. Prints the Modelfile's path on stdout.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from training.system import own_python

    own_python.use()

from loguru import logger

from training import runs
from training.errors import FinetuneError, Interrupted, RunError, UserError
from training.pipeline.export_stages import STAGES, export, finish, write_modelfile
from training.runs import Run, Stage, directory
from training.system import files, forkserver, io_errors, launchers, listeners, log, privacy, shell
from training.system.parent_watch import end_with_parent
from training.system.plain_parser import wrong
from training.system.signals import Signals
from training.to_gguf import adapter_gguf
from training.to_gguf.job import Job, what_is_safe

SELF = "export.py"
USAGE = "python training/export.py RUN [--only STAGE | --adapter BASE_IN_OLLAMA] [--name NAME]"


def main(argv: Sequence[str]) -> int:
    """The command line; errors go to the log, the Modelfile's path to stdout.

    To the run that started it, it tells its stages and its error as JSON on stdout: status.json may be what cannot be
    written.
    """
    stdout = log.claim_stdout()
    launchers.leave_out()
    signals = Signals()
    signals.install()
    alone = True

    def say(**words: object) -> None:
        log.say_json(stdout, words)

    if {"--help", "-h"} & set(argv):
        return _help(stdout)
    try:
        arguments = parse(argv)
    except UserError as error:
        privacy.tell(error)
        return error.exit_code
    log.start()  # else a traceback that is for the log alone would be on the terminal
    try:
        job = Job.of_run(arguments.run)
        alone = _alone(job.run)
        log.start(job.run.path / runs.LOG)
        launchers.tell()
        files.remove_partial(job.run.path)
        if not alone:
            _for_its_run(job, say)
            return 0
        with _working(job.run):
            log.say_path(stdout, _by_itself(job, arguments))
        return 0
    except (FinetuneError, Interrupted) as error:
        signals.delivered()
        of_drive = isinstance(error, UserError) and io_errors.behind(error)
        if of_drive:
            error = _not_read(io_errors.instead(str(error), error), arguments)
        _tell(error, alone)
        if not alone:
            told = error if isinstance(error, RunError) else RunError("export", str(error))
            say(stage=told.stage, message=told.message, safe=what_is_safe(job) if of_drive else told.safe)
        return error.exit_code
    except Exception as error:  # our own mistake, or a library's
        told = _unforeseen(error, arguments)
        if not alone:
            say(stage="export", message=told.message, safe=what_is_safe(job))
        return 1


def _tell(error: FinetuneError | Interrupted, alone: bool) -> None:
    """Log what ended the export. A signal is told by the run that it is for, where there is one."""
    if not isinstance(error, Interrupted):
        logger.error("{}", error)
    elif alone:
        logger.warning("{}; what is made stays, and the same command does the rest", error)


def _help(stdout: IO[str]) -> int:
    listeners.tell(stdout, f"usage: {USAGE}\n\n{(__doc__ or '').partition(chr(10) * 2)[2]}")
    return 0


def _not_read(words: str, arguments: Arguments) -> RunError:
    """A file that could not be read or written, outside of all stages."""
    return RunError("export", words, f"the run in {arguments.run} is as safe as it was")


def _for_its_run(job: Job, say: Callable[..., None]) -> None:
    """The whole export of a run that waits for it, and hears how far it is."""
    export(
        job,
        tell=lambda stage, seconds: say(stage=stage, seconds=seconds),
        hear=lambda far: say(stage=far.stage, progress=far.progress, left=round(far.left, 1)),
    )


def _unforeseen(error: Exception, arguments: Arguments) -> RunError:
    """Tell in one line what nobody has foreseen; the traceback is in the log."""
    logger.opt(exception=error).debug("unexpected")
    if io_errors.is_one(error):
        told = _not_read(io_errors.told(error, arguments.run), arguments)
        logger.error("{}", told)
    else:
        told = RunError("export", f"{type(error).__name__}: {error}")
        logger.error("{}; the traceback is in {}", told, log.SHARED_LOG)
    return told


def _by_itself(job: Job, arguments: Arguments) -> Path:
    """What the command line asks for; the Modelfile that was written."""
    named = _modelfile_of(job, arguments.name) if arguments.name else None
    if arguments.adapter_of:
        return adapter_gguf.export(job, arguments.adapter_of, named)
    export(job, arguments.only)
    if arguments.only is None:
        finish(job)
    return write_modelfile(job, named) if named else job.run.path / "Modelfile"


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
    raise UserError(
        f"{run.path} is running (process {run.status['pid']}); wait for it, or {shell.command('run.sh', '--stop', run.path)}"
    )


def _modelfile_of(job: Job, name: str) -> Path:
    return job.run.path / f"Modelfile.{name.replace('/', '-').replace(':', '-')}"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What the command line asks for. `adapter_of`: the model in Ollama that the adapter alone is written for."""

    run: Path
    only: Stage | None = None
    name: str | None = None
    adapter_of: str | None = None


def parse(words: Sequence[str]) -> Arguments:
    """The command line. UserError where it asks for what is not there."""
    rest = list(words)
    found: dict[str, str] = {}
    for flag, allowed in (("--only", list(STAGES)), ("--name", None), ("--adapter", None)):
        if flag in rest:
            at = rest.index(flag)
            value = "".join(rest[at + 1 : at + 2])
            if not value or (allowed and value not in allowed):
                raise wrong(
                    f"{flag} {value}: {'one of ' + ', '.join(allowed) if allowed else 'a name must follow'}", SELF
                )
            found[flag] = value
            del rest[at : at + 2]
    if "--only" in found and "--adapter" in found:
        raise wrong("--adapter makes the adapter's file alone; --only STAGE is about the merged model's", SELF)
    if len(rest) != 1 or rest[0].startswith("-"):
        raise wrong("one RUN is to be named, a run's folder", SELF)
    path = Path(rest[0]).resolve()
    return Arguments(
        run=path.parent if path.name in (runs.MERGED, runs.ADAPTER) else path,
        only=next((stage for stage in STAGES if stage == found.get("--only")), None),
        name=found.get("--name"),
        adapter_of=found.get("--adapter"),
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
