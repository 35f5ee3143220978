"""Going on with a run that was stopped."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import IO

from loguru import logger

from training import runs, settings
from training.errors import UserError
from training.hubs.listing import SHA1
from training.plan import Plan
from training.report import gathering
from training.runs import Run, began, checkpoint, directory
from training.runs import processes as shares
from training.settings import Settings, as_text
from training.settings.command_line import Arguments
from training.system import files, launchers, log, shell
from training.system.events import Events
from training.system.foreign_json import Damaged
from training.system.this_machine import oom_kills
from training.system.wording import counted, listed

ADDRESS = "Hardware.MAIN_PROCESS_ADDRESS"
# What may be another when a run goes on: which machines there are, how many processes, and the line between them.
PLACES = (ADDRESS, "Hardware.NUM_PROCESSES", "Hardware.NUM_MACHINES", "Hardware.MACHINE_RANK", "Hardware.LINK_GBPS")
HANDED_OVER = 10.0  # seconds in which a queue lets go of a run that it has started
# Of a run that ended before its settings were written.
NEVER_BEGAN = f"ended before it began: it has no {runs.CONFIG}, and nothing was trained; start a new run"


def output_dir(arguments: Arguments) -> Path:
    """OUTPUT_DIR of the settings that the command line names."""
    return settings.load(arguments.config, arguments.overrides, check_files=False).training.output_dir


def new_run(arguments: Arguments) -> str:
    """The command of a new run with all that was typed to set something."""
    return shell.command("run.sh", *arguments.typed)


def only_helps(arguments: Arguments) -> bool:
    """Whether this machine has no runs of its own: it trains for those of machine 0, new or resumed ones."""
    return settings.load(arguments.config, arguments.overrides, check_files=False).hardware.machine_rank > 0


def to_resume(arguments: Arguments) -> Run | None:
    """The run that --resume is about: the one named, or the newest that is not done. UserError when there is none.

    None where a new run is asked for, and on a machine that only helps.
    """
    if arguments.command != "resume" or only_helps(arguments):
        return None
    if arguments.run is not None:
        run = runs.find(output_dir(arguments), arguments.run, new_run(arguments))
    else:
        every = [
            run
            for run in runs.history(output_dir(arguments))
            if directory.state(run) in ("interrupted", "failed", "killed")
            and (directory.begun(run) or directory.lost_settings(run))
        ]
        if not every:
            raise UserError(
                f"no run under {output_dir(arguments)} waits to be resumed; {new_run(arguments)} starts a new one"
            )
        run = every[-1]
    state = directory.state(run)
    if state in ("running", "queued") and not directory.waiting(run) and not _ours(run):
        shows = f"{shell.command('run.sh', '--follow', run.path)} shows it"
        raise UserError(f"{run.path} is running (process {run.status['pid']}); {shows}")
    if state == "completed":
        raise UserError(f"{run.path} is done already; {new_run(arguments)} starts a new run")
    if not directory.begun(run):
        raise UserError(f"{run.path} {directory.LOST_SETTINGS if directory.lost_settings(run) else NEVER_BEGAN}")
    return run


def _ours(run: Run) -> bool:
    """Whether a run was given to this process, or to the one that has started it as a rank."""
    seat = launchers.seat()
    launcher = [os.getppid()] if seat is not None and seat.folder is not None else []
    return run.status.get("pid") in (os.getpid(), *launcher)


def settings_of(run: Run, arguments: Arguments) -> Settings:
    """The run's own settings. UserError naming each setting of the command line that agrees neither with them nor with what
    was given when the run began, where the plan has chosen another value since."""
    with directory.reading_settings(run):
        own = at_its_commit(run, settings.of_run(run.path / runs.CONFIG, check_packages=True))
    given = run.status.get("written", {})
    # The last of each counts, as it did when the run began.
    last = {f"{override.section}.{override.key}": override for override in arguments.overrides}
    typed = {key: override for key, override in last.items() if key not in given or as_text(override) != given[key]}
    if not typed:
        return own
    changed = settings.of_run(run.path / runs.CONFIG, tuple(typed.values()), check_packages=True)
    if "Model.REVISION" not in typed:
        changed = at_its_commit(run, changed)
    problems = [
        f"{override.source}: {key} is {own.get(key)} in the run, not {changed.get(key)}"
        for key, override in typed.items()
        if key not in PLACES and own.get(key) != changed.get(key)
    ]
    if problems:
        raise UserError(
            [*problems, "leave it out, or start a new run with --fresh"], f"{run.path.name} has settings of its own"
        )
    # The machines may be others now.
    return same_step(own, changed) if any(own.get(key) != changed.get(key) for key in PLACES) else own


def at_its_commit(run: Run, own: Settings) -> Settings:
    """The settings of a run with the commit of its base model, as its record has it: what is newest there may be another now.

    Those of a run that an older version began do not name it, nor do those that name the model as Ollama does.
    """
    try:
        commit = gathering.as_planned(run).base.revision
    except (Damaged, OSError):  # a run that ended before there was one
        return own
    if commit == own.model.revision or not SHA1.fullmatch(commit or ""):
        return own
    return own.with_choice("Model.REVISION", commit, "the commit that the run began with")


def same_step(own: Settings, changed: Settings) -> Settings:
    """The settings for another number of processes, with as many rows a step as the run has. UserError where they cannot be
    shared out evenly."""
    rows, processes = own.rows_a_step, changed.processes
    if processes == own.processes:
        return changed
    if rows % processes:
        fitting = listed([str(number) for number in range(1, rows + 1) if rows % number == 0]).replace(" and ", " or ")
        raise UserError(
            f"{changed.place('Hardware.NUM_PROCESSES')}: a step of this run has {counted(rows, 'row')}, which {processes} "
            f"processes cannot share evenly; {fitting} can"
        )
    each = shares.divided(rows // processes, own.training.per_device_train_batch_size)
    reason = f"NUM_PROCESSES is {processes} in all, and was {own.processes}: a step keeps its {counted(rows, 'row')}"
    for key, value in zip(("PER_DEVICE_TRAIN_BATCH_SIZE", "GRADIENT_ACCUMULATION_STEPS"), each, strict=True):
        changed = changed.with_choice(f"Training.{key}", value, reason)
    return changed


def began_on(run: Run | None) -> date | None:
    """The day on which a run began."""
    return date.fromtimestamp(run.status["started"]) if run and run.status.get("started") else None


def offer_resume(folder: Path) -> None:
    """Say how a stopped run could go on, before a new one starts."""
    every = [run for run in runs.history(folder) if directory.begun(run)]
    if every and directory.state(every[-1]) in ("interrupted", "killed"):
        last = every[-1]
        logger.info(
            "the last run, {}, stopped at step {} of {}; `{}` goes on with it. This is a new run",
            last.path.name, last.status.get("step", 0), last.status.get("total", 0),
            shell.command("run.sh", "--resume", last.path),
        )  # fmt: skip


def tell_of_others(folder: Path) -> None:
    """Say that other runs of this folder are at work, before this one takes its share of the machine."""
    for run in runs.history(folder):
        if directory.state(run) in ("queued", "running") and not _ours(run):
            logger.warning(
                "{} is running, too (process {}, step {} of {}): both take longer, and share the memory",
                run.path.name, run.status["pid"], run.status.get("step", 0), run.status.get("total", 0),
            )  # fmt: skip


def refuse_changed(run: Run, marks: dict[str, object]) -> None:
    """Raise UserError, before anything is touched, where a run's newest checkpoint and its plan of today do not agree."""
    if stored := began.fingerprint(run):
        checkpoint.refuse_mismatch(stored, marks)


def take(run: Run) -> None:
    """Work on a run that was never started, from here on: whoever comes next is refused."""
    # Whoever started this process may still be writing that it did, on a slow disk.
    directory.lock_within(run, HANDED_OVER)
    log.join_run(run.path / runs.LOG)
    run.update(state="queued", error=None, **directory.identity())


def reopen(run: Run, plan: Plan, stdout: IO[str] | None) -> tuple[Run, Events]:
    """Take a stopped run up again, in its own directory."""
    directory.lock(run)
    # A run that an older version began left them to be read by everybody.
    files.private_folder(run.path / runs.CHECKPOINTS)
    files.private(run.path / runs.CONFIG)
    log.join_run(run.path / runs.LOG)
    files.remove_partial(run.path)
    events = Events(run.path / runs.EVENTS, stdout)
    if run.stage("train") is not None and not checkpoint.has_adapter(run.path):
        logger.warning("{}", checkpoint.adapter_is(run.path))
        run.update(stages={})
    done = run.stage("train") is not None
    run.update(
        state="running",
        error=None,
        stopping=None,
        lost=None,
        resumed_after_training=done,
        total=plan.steps,
        oom_kills=oom_kills(),
        **directory.identity(),
    )
    logger.info("resuming {}", run.path)
    return run, events
