"""Fine-tune, check and export one model:  python training/finetune.py [arguments: ./run.sh --help]"""

# ruff: noqa: E402  what stands between the imports must come before some of them

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    # While the modules are read nothing can be lost; main() hands the signals on.
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _frame: os._exit(128 + number))
    from training.settings import command_line

    # A wrong setting, and --help, are answered before the imports below take half a second. With --events the answer is
    # an event: it is given further down.
    if "--events" not in sys.argv and (code := command_line.main(sys.argv[1:], check_packages=True)):
        raise SystemExit(code)

from training.system import before_torch

before_torch.settle()

import gc
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

from loguru import logger

from training import control, distributed, pipeline, runs, settings
from training.control import background, resume
from training.data import dataset
from training.distributed import secondary
from training.errors import FinetuneError, Interrupted, MachineError, RunError, UserError
from training.pipeline import stages
from training.pipeline.export_stages import Told
from training.plan import Plan, lines, prepare, time_estimate
from training.report import gathering
from training.runs import Run, State, checkpoint, directory
from training.settings import command_line
from training.settings.command_line import Arguments
from training.system import files, foreign_code, forkserver, launchers, log, paths, records, this_machine
from training.system.events import Events
from training.system.signals import Signals
from training.train import engine


def finetune(plan: Plan, run: Run, events: Events, signals: Signals, give_up: Callable[[RunError], None]) -> None:
    """The story of one run, from a plan to the report. Every stage that a former attempt has done is left out.

    `give_up` ends the process where it hangs.
    """
    if run.stage("train") is None or run.stage("evaluate") is None:
        with distributed.started(plan, stages.marks(plan), run, give_up) as others:
            loaded = engine.load(plan.base, plan.settings, plan.summary.total[3], plan.tokenizer)
            rows = stages.held_out_rows(plan)
            if run.stage("train") is None:
                pipeline.train_stage(plan, loaded, rows, run, events, signals, others)
        pipeline.evaluate_stage(plan, loaded, rows, run, events)
        del loaded
        gc.collect()
    pipeline.judge(plan.settings, run, events)
    pipeline.export_stage(run, events)
    gathering.complete(run)


def begin(plan: Plan, run: Run, stdout: IO[str] | None) -> Events:
    """Fill a new run directory with what is known before training; `stdout`: where events go too (--events)."""
    log.join_run(run.path / runs.LOG)
    files.write_text(run.path / runs.CONFIG, plan.settings.to_ini())
    if plan.rejected:
        dataset.write_rejected(run.path / runs.REJECTED, plan.rejected)
    events = Events(run.path / runs.EVENTS, stdout)
    known = {"total": plan.steps, "model": plan.settings.model.new_model_name, "oom_kills": this_machine.oom_kills()}
    run.update(state="running", started=time.time(), **known)
    announce(plan, run, events)
    return events


def announce(plan: Plan, run: Run, events: Events) -> None:
    """The first events of a run, and the word to a waiting parent (--detach) that it has really started."""
    gathering.keep(plan, run)
    events.emit(
        "started", run=str(run.path), pid=os.getpid(), total=plan.steps, name=plan.settings.model.new_model_name
    )
    events.emit("environment", **plan.machine.as_dict())
    events.emit("dataset", **records.plain(plan.data.counts), tokens=plan.summary.tokens, rejected=len(plan.rejected))
    events.emit("model", name=plan.base.name, revision=plan.base.revision, parameters=plan.base.parameters)
    background.tell_parent(run.path)


def run_or_resume(arguments: Arguments, stdout: IO[str]) -> int:
    """`./run.sh` and `./run.sh --resume`: plan, run, and put every way it can end on the disk, the stdout and the exit code."""
    signals = Signals()
    run: Run | None = None
    events: Events | None = None
    plan = None

    def give_up(error: FinetuneError) -> None:
        os._exit(ended(error, run, events, arguments, stdout))

    signals.install(give_up)
    try:
        resumes = arguments.command == "resume" and not resume.only_helps(arguments)
        old = resume.to_resume(arguments) if resumes else None
        given = (
            resume.settings_of(old, arguments)
            if old
            else settings.load(arguments.config, arguments.overrides, check_packages=True)
        )
        if old is None and not arguments.fresh:
            resume.offer_resume(given.training.output_dir)
        forkserver.start()
        plan = prepare(given, resume.began_on(old), directory.size(old))
        for line in lines(plan):
            logger.info(line)
        told = stdout if arguments.events else None
        if plan.settings.hardware.machine_rank > 0:  # machine 0 owns the run
            secondary.follow(plan, stages.marks(plan), signals, give_up)
            Events(Path(os.devnull), told).emit("done", exit_code=0)
            return 0
        if old is not None:
            resume.refuse_mismatch(old, stages.marks(plan))
            run, events = resume.reopen(old, plan, told)
            announce(plan, run, events)
        else:
            run = runs.create(plan.settings.training.output_dir)  # from here on there is something on the disk
            events = begin(plan, run, told)
        finetune(plan, run, events, signals, give_up)
    except FinetuneError as error:
        return ended(error, run, events, arguments, stdout)
    except Exception as error:  # our own mistake, or a library's: the traceback belongs into the log, not on the screen
        logger.opt(exception=True).debug("unexpected")
        safe = checkpoint.where(run.path / runs.CHECKPOINTS) if run else ""
        unexpected = RunError(
            "unexpected", f"{type(error).__name__}: {error}; the traceback is in {log.SHARED_LOG}", safe
        )
        return ended(unexpected, run, events, arguments, stdout)
    first = plan.settings.quantization.quantization_method[0]
    made = run.path / f"{plan.settings.name}.{first.upper()}.gguf"
    logger.info("done: {}\nnext: {}/export_ollama.sh {}", made, paths.ROOT, run.path)
    events.emit("done", run=str(run.path), exit_code=0)
    if not arguments.events:
        log.say_path(stdout, run.path)
    return 0


def ended(error: FinetuneError, run: Any, events: Any, arguments: Any, stdout: IO[str]) -> int:
    """A run that did not get to its end: say why, keep its state, report what there is."""
    told = isinstance(error, Told)
    state: State = "interrupted" if isinstance(error, Interrupted) else "failed"
    if not told:
        (logger.warning if state == "interrupted" else logger.error)("{}", error)
    fields = {"exit_code": error.exit_code, "error": str(error)}
    if run is None:
        if arguments.events:
            Events(Path(os.devnull), stdout).emit(state, **fields)
        background.tell_parent(None)
        return error.exit_code
    run.update(state=state, error=str(error), eta=None)
    try:
        gathering.write(run, state, error)
    except Exception as problem:  # the run has failed already: that, and where it is, must still be told
        logger.warning("no report: {}", problem)
    if events is not None:
        events.emit(state, run=str(run.path), **fields)
    if not arguments.events:
        log.say_path(stdout, run.path)
    return error.exit_code


def check(arguments: Arguments, stdout: IO[str]) -> int:
    """`./run.sh --check`: everything short of training, and the plan on stdout."""
    given = settings.load(arguments.config, arguments.overrides, check_packages=True)
    forkserver.start()
    plan = prepare(given, weights=False)
    for line in (*lines(plan), time_estimate.line(plan)):
        log.say(stdout, line)
    log.say(stdout, "ready: ./run.sh starts it")
    return 0


COMMANDS = {"run": run_or_resume, "resume": run_or_resume, "check": check, **control.COMMANDS}


# Those that load what reads launchers' variables.
LOADING = ("run", "resume", "check", "chat")


def main(argv: Sequence[str]) -> int:
    """The command line. Returns the exit code (DESIGN: 0, 1, 2, 3, 130, 143)."""
    foreign_code.trust(False)  # until settings say otherwise
    try:
        arguments = command_line.parse(argv)
    except UserError as error:
        return command_line.refuse(error, argv)
    stdout = sys.stdout if arguments.command == "chat" else log.claim_stdout()  # a talk is for a person
    log.start()
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if arguments.command in LOADING:
        launchers.tell()
    if arguments.detach:
        return background.detach(argv, stdout)
    try:
        return COMMANDS[arguments.command](arguments, stdout)
    except (UserError, MachineError, FinetuneError) as error:
        logger.error("{}", error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
