"""Fine-tune, check and export one model:  python training/finetune.py [arguments: ./run.sh --help]"""

# ruff: noqa: E402  what stands between the imports must come before some of them

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from training.system import own_python

    own_python.use()
    # While the modules are read nothing can be lost; main() hands the signals on.
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _frame: os._exit(128 + number))
    from training.settings import command_line

    # A wrong setting, and --help, are answered before the imports below take half a second. With --events the answer is
    # an event: it is given further down.
    code, asked = (0, None) if "--events" in sys.argv else command_line.checked(sys.argv[1:], check_packages=True)
    if code:
        raise SystemExit(code)

from training.system import before_torch, forkserver, launchers

before_torch.settle()
if __name__ == "__main__" and asked is not None and asked.processes == 1 and launchers.seat() is None:
    # It imports for seconds what the plan waits for, on a core that is idle while this process does the same.
    forkserver.start()

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import IO

from loguru import logger

from training import control, distributed, pipeline, proving, runs
from training.control import background, resume, several
from training.data import dataset
from training.distributed import launcher, notes, secondary, worker
from training.errors import EndedAtOnce, FinetuneError, Interrupted, Lost, RunError, UserError
from training.pipeline import failures, stages
from training.pipeline.export_stages import Told
from training.plan import Plan, lines, odd, prepare, time_estimate
from training.report import gathering
from training.runs import Run, State, checkpoint, directory, progress
from training.settings import command_line, load
from training.settings.command_line import Arguments
from training.settings.table import Hardware
from training.system import files, foreign_code, io_errors, last_net, log, parent_watch, records, shell, this_machine
from training.system.events import Events
from training.system.signals import Signals
from training.train import engine, trouble

# Seconds after which it is said that the end takes its time.
SOON = 1.0


def finetune(
    plan: Plan, run: Run, events: Events, signals: Signals, give_up: Callable[[RunError | Interrupted], None]
) -> None:
    """The story of one run, from a plan to the report. Every stage that a former attempt has done is left out.

    `give_up` ends the process where it hangs.
    """
    if run.stage("train") is None or run.stage("evaluate") is None:
        plan, loaded = pipeline.base_model_answers(plan, run, events)
        with distributed.started(plan, stages.marks(plan), run, give_up) as others:
            loaded = loaded or engine.load(plan.base, plan.settings, plan.longest, plan.tokenizer)
            rows = stages.held_out_rows(plan)
            to_train = run.stage("train") is None
            training_done = pipeline.trained(plan, loaded, rows, run, events, signals, others)
            with training_done if to_train else nullcontext() as layers:
                pipeline.evaluate_stage(plan, loaded, rows, run, events, layers)
        del loaded, training_done, layers
        trouble.free_memory()
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
    # The very command that began a run goes on with it, whatever was chosen since.
    run.update(state="running", started=time.time(), written=dict(plan.settings.replaced), **known)
    announce(plan, run, events)
    return events


def announce(plan: Plan, run: Run, events: Events) -> None:
    """The first events of a run, and the word to a waiting parent (--detach) that it has really started."""
    gathering.keep(plan, run)
    progress.expect(run, plan.base.parameters)
    events.emit(
        "started", run=str(run.path), pid=os.getpid(), total=plan.steps, name=plan.settings.model.new_model_name
    )
    events.emit("environment", **plan.machine.as_dict())
    events.emit("dataset", **records.plain(plan.data.counts), tokens=plan.summary.tokens, rejected=len(plan.rejected))
    events.emit("model", name=plan.base.name, revision=plan.base.revision, parameters=plan.base.parameters)
    background.tell_parent(run.path)
    if (seat := launchers.seat()) is not None and seat.folder is not None:
        notes.begin(seat.folder, run.path)


def run_or_resume(arguments: Arguments, stdout: IO[str]) -> int:
    """`./run.sh` and `./run.sh --resume`: plan, run, and tell how it ended, whichever way that was."""
    seat = launchers.seat()
    if seat is None and (hardware := several.to_launch(arguments)) is not None:
        return launched(hardware, arguments, stdout)
    if seat is not None:
        parent_watch.stop_with_launcher(seat.folder, notes.launcher(seat.folder) if seat.folder else None)
        if seat.local_rank > 0:
            return worker.main(seat)
        arguments = several.again(seat, several.seated(seat, arguments))
    ending, signals = Ending(arguments, stdout), Signals()
    signals.install(ending.give_up, ending.heard, ending.lost)
    try:
        old = resume.to_resume(arguments)
        if old is not None and directory.never_started(old):
            # It was queued. There is something on the disk already to tell of what its plan finds.
            resume.take(old)
            ending.run, ending.events = old, Events(old.path / runs.EVENTS, ending.events_on)
        plan = planned(arguments, old)
        if seat is not None and seat.rank > 0:  # machine 0 owns the run
            secondary.follow(seat, plan, stages.marks(plan), signals, ending.give_up)
            return ending.helped()
        run, events = started(plan, old, ending)
        with distributed.not_needed(run):
            finetune(plan, run, events, signals, ending.give_up)
        signals.delivered()
    except (Exception, Interrupted) as error:
        signals.delivered()
        return ending.failed(failures.told(error, ending.run))
    return ending.done(plan, run, events)


def launched(hardware: Hardware, arguments: Arguments, stdout: IO[str]) -> int:
    """Start the processes of a training, each with this same command; the exit code of the first."""

    def killed(path: Path | None, words: str) -> int:
        ending = Ending(arguments, stdout)
        if path is not None:
            ending.run = runs.open_run(path)
            ending.events = Events(path / runs.EVENTS, ending.events_on)
            log.join_run(path / runs.LOG)
        at = "train" if ending.run is None else ending.run.status.get("stage") or "train"
        error = Lost("training", words) if at == "train" else RunError(at, words)
        return ending.failed(failures.told(error, ending.run))

    background.take_parent()
    return launcher.launch(hardware, stdout, background.tell_parent, killed)


def planned(arguments: Arguments, old: Run | None) -> Plan:
    """The plan of a new run, or of the `old` one that is resumed, with its lines in the log."""
    if old is not None:
        settings = resume.settings_of(old, arguments)
    else:
        settings = load(arguments.config, arguments.overrides, check_packages=True)
        if not arguments.fresh and settings.hardware.machine_rank == 0:
            resume.offer_resume(settings.training.output_dir)
    dataset.refuse_early(settings)
    resume.tell_of_others(settings.training.output_dir)
    forkserver.start()
    plan = prepare(settings, resume.began_on(old), directory.size(old), run=old.path if old else None)
    for line in lines(plan):
        logger.info(line)
    for line in odd(plan) if old is None or directory.never_started(old) else ():
        logger.warning(line)
    return plan


def started(plan: Plan, old: Run | None, ending: Ending) -> tuple[Run, Events]:
    """A new run, or the `old` one taken up again. From here on `ending` has something on the disk to tell it in."""
    if old is None or directory.never_started(old):
        ending.run = run = old or runs.create(plan.settings.training.output_dir)
        ending.events = events = begin(plan, run, ending.events_on)
        return run, events
    resume.refuse_changed(old, stages.marks(plan))
    ending.run, ending.events = run, events = resume.reopen(old, plan, ending.events_on)
    announce(plan, run, events)
    return run, events


@dataclass
class Ending:
    """How the end of a run is told: in its status and report, as an event, on stdout, and by the exit code.

    `run`, `events`: None as long as nothing is on the disk.
    """

    arguments: Arguments
    stdout: IO[str]
    run: Run | None = None
    events: Events | None = None
    # Of the threads, one tells the end: the main one, or that which a signal woke.
    telling: threading.Lock = field(default_factory=threading.Lock)
    named: bool = False

    @property
    def events_on(self) -> IO[str] | None:
        """Where events go besides the run's file: to stdout with --events."""
        return self.stdout if self.arguments.events else None

    def done(self, plan: Plan, run: Run, events: Events) -> int:
        """It got to its end: say what was made, and what to do with it."""
        self._claim()
        first = plan.settings.quantization.quantization_method[0]
        made = run.path / f"{plan.settings.name}.{first.upper()}.gguf"
        logger.info("done: {}\nnext: {}", made, shell.lasting("export_ollama.sh", run.path))
        events.emit("done", run=str(run.path), exit_code=0)
        self._name(run)
        return 0

    def helped(self) -> int:
        """The training that this machine helped with got to its end; what comes of it is on machine 0."""
        Events(Path(os.devnull), self.events_on).emit("done", exit_code=0)
        return 0

    def failed(self, error: FinetuneError | Interrupted) -> int:
        """It did not get to its end: keep its state, say why, report what there is."""
        self._claim()
        if isinstance(error, Lost) and self._goes_on(error):
            return error.exit_code
        state: State = "interrupted" if isinstance(error, Interrupted) else "failed"
        if self.run is not None:
            # Before all else: from here on a second signal loses nothing.
            self.run.update(state=state, error=str(error), eta=None, lost=isinstance(error, Lost) or None)
            if isinstance(error, Interrupted):
                error = failures.stopped(error, self.run)
                self.run.update(error=str(error))
        if not isinstance(error, Told):
            (logger.warning if state == "interrupted" else logger.error)("{}", error)
        fields = {"exit_code": error.exit_code, "error": str(error), **error.parts()}
        if self.run is None:
            if self.arguments.events:
                Events(Path(os.devnull), self.stdout).emit(state, **fields)
            background.tell_parent(None)
            return error.exit_code
        try:
            if gathering.has_plan(self.run):
                gathering.write(self.run, state, error)
        except OSError as problem:
            logger.warning("no report: {}", io_errors.told(problem, self.run.path))
        except Exception as problem:
            # The run has failed already: that, and where it is, must still be told.
            logger.warning("no report: {}", problem)
        if self.events is not None:
            self.events.emit(state, run=str(self.run.path), **fields)
        self._name(self.run)
        return error.exit_code

    def _goes_on(self, error: Lost) -> bool:
        """Where another process has died, and the launcher starts all again: no end is told, for it is none."""
        seat = launchers.seat()
        if seat is None or seat.folder is None or seat.restart >= seat.restarts:
            return False
        if self.run is not None:
            self.run.update(state="interrupted", error=str(error), eta=None)
        logger.warning("{}", error)
        notes.broken(seat.folder)
        return True

    def heard(self, _number: int, noted: bool) -> None:
        """A first signal has come. What is obeyed after the batch takes its time, and so may the end of a stage: say so."""
        if (seat := launchers.seat()) is not None and seat.folder is not None:
            notes.stopping(seat.folder)
        if noted:
            logger.warning(
                "stopping after this batch, with a checkpoint; Ctrl-C (or SIGTERM) again ends at once, and the steps since "
                "the last checkpoint are lost"
            )
            if self.run is not None:
                self.run.update(stopping=True)
            return
        time.sleep(SOON)
        if not self.telling.locked():
            at = "preparing"
            if self.run is not None:
                with suppress(FinetuneError, OSError):
                    # While the export is at work the file is its own.
                    at = runs.open_run(self.run.path).status.get("stage") or at
            logger.warning("stopping; it ends what it is at ({}) first. Ctrl-C (or SIGTERM) again ends at once", at)

    def lost(self, number: int) -> int:
        """A second signal: keep and tell what it cost; the exit code. No report: that would take its time.

        The path first, then the state: what comes after may wait for what the main thread is at.
        """
        run = self.run
        if run is None:
            return 128 + number
        if not self.telling.acquire(blocking=False):
            # Its end was told when this came: only the report is missing.
            self._name(run)
            return 0 if run.status.get("state") == "completed" else 128 + number
        with suppress(FinetuneError, OSError):
            run.reload()  # the export writes there, too
        self._name(run)
        error = EndedAtOnce(number, f"ended at once by a second signal: {checkpoint.left(run)}")
        state: State = "interrupted"
        fields = {"exit_code": error.exit_code, "error": str(error)}
        run.update(state=state, error=str(error), eta=None)
        if self.events is not None:
            self.events.emit(state, run=str(run.path), **fields)
        logger.warning("{}", error)
        return error.exit_code

    def _claim(self) -> None:
        """Be the one that tells the end; where another thread does, wait for it to end the process."""
        while not self.telling.acquire(blocking=False):
            time.sleep(SOON)

    def _name(self, run: Run) -> None:
        """The line of result on stdout, once; with --events the last event has it."""
        if not self.named and not self.arguments.events:
            self.named = True
            log.say_path(self.stdout, run.path)

    def give_up(self, error: FinetuneError | Interrupted) -> None:
        """Tell the end of a process that hangs in a library, and end it."""
        os._exit(self.failed(error))


def check(arguments: Arguments, stdout: IO[str]) -> int:
    """`./run.sh --check`: everything short of training, and the plan on stdout."""
    settings = load(arguments.config, arguments.overrides, check_packages=True)
    dataset.refuse_early(settings)
    forkserver.start()
    plan = prepare(settings, weights=False)
    for line in (*lines(plan), *time_estimate.lines(plan)):
        log.say(stdout, line)
    for line in odd(plan):
        log.say(stdout, f"warning: {line}")
    log.say(stdout, f"ready: {shell.command('run.sh', *arguments.typed)} starts it")
    return 0


COMMANDS = {"run": run_or_resume, "resume": run_or_resume, "check": check, "prove": proving.prove, **control.COMMANDS}
# The commands that load libraries which read the variables of launchers such as torchrun.
LOADING = ("run", "resume", "check", "prove", "chat")


def main(argv: Sequence[str]) -> int:
    """The command line. Returns the exit code (docs/command-line.md: 0, 1, 2, 3, 4, 130, 143)."""
    foreign_code.trust(False)  # until settings say otherwise
    try:
        arguments = command_line.parse(argv)
    except UserError as error:
        return command_line.refuse(error, argv)
    if arguments.command == "serve":
        return background.serve(argv)
    # A talk is for a person, and all else on stdout for programs.
    stdout = sys.stdout if arguments.command == "chat" else log.claim_stdout()
    log.start()
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if arguments.command in LOADING:
        launchers.tell()
    if (seat := launchers.seat()) is not None and seat.rank > 0 and arguments.command not in ("run", "resume"):
        # The first one answers for all.
        return 0
    if arguments.detach:
        return background.detach(argv, stdout)
    try:
        return COMMANDS[arguments.command](arguments, stdout)
    except (FinetuneError, Interrupted) as error:
        logger.error("{}", error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        told = last_net.caught(error)
        logger.error("{}", told)
        return told.exit_code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
