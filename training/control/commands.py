"""Runs from outside: status, follow, stop, chat, compare."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import IO

from loguru import logger

from training import runs
from training.control.history import history, worked
from training.control.resume import NEVER_BEGAN, output_dir
from training.errors import MachineError, UserError
from training.runs import Run, directory
from training.settings.command_line import Arguments
from training.system import log
from training.system.this_machine import oom_kills
from training.system.wording import clock

WAIT_TO_STOP = 60  # seconds that --stop waits for the checkpoint


def asked_for(arguments: Arguments) -> Run:
    """The run that --status, --follow, --stop or --chat is about."""
    return runs.find(output_dir(arguments), arguments.run)


def status(arguments: Arguments, stdout: IO[str]) -> int:
    """What state a run is in."""
    run = asked_for(arguments)
    record = {**run.status, "state": directory.state(run), "path": str(run.path)}
    if record["state"] == "killed":
        record["reason"] = killed_by(run)
    if arguments.json:
        log.say_json(stdout, {k: v for k, v in record.items() if k != "stages"})
        return 0
    words = f"{run.path.name}: {record['state']}, step {record.get('step', 0)} of {record.get('total', 0)}"
    if record["state"] == "running" and record.get("stage"):
        words += f", in {record['stage']}"
    if record["state"] == "running" and record.get("eta"):
        words += f", about {clock(max(0, record['eta'] - time.time()))} left in training"
    if record.get("reason"):
        words += f" ({record['reason']})"
    if time_worked := worked(run):
        words += f"\nworking time {time_worked.words()}"
    if record.get("error") and record["state"] != "running":
        words += f"\n{record['error']}"
    log.say(stdout, words)
    return 0


def killed_by(run: Run) -> str:
    """Why a process is gone without a word: out of memory where the kernel counts a kill since the run began."""
    if not directory.begun(run):
        return NEVER_BEGAN
    before = run.status.get("oom_kills")
    now = oom_kills()
    if before is not None and now is not None and now > before:
        return "the kernel killed a process because memory ran out; close other programs and ./run.sh --resume, or start a new run with a smaller MAX_SEQ_LENGTH or PER_DEVICE_TRAIN_BATCH_SIZE"
    return "its process is gone; ./run.sh --resume goes on"


def follow(arguments: Arguments, stdout: IO[str]) -> int:
    """Show the log of a run (or, with --events, its events) as it grows, until the run ends. Ctrl-C leaves the run alone."""
    run = asked_for(arguments)
    path = run.path / (runs.EVENTS if arguments.events else runs.LOG)
    if not path.is_file():
        raise UserError(f"{run.path} has no {path.name} that could be followed")
    say = _say_event if arguments.events else log.say
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        while True:
            line = file.readline()
            if line:
                say(stdout, line.rstrip("\n"))
                continue
            if directory.state(runs.open_run(run.path)) not in ("running", "queued"):
                for line in file:
                    say(stdout, line.rstrip("\n"))
                return 0
            time.sleep(0.5)


def _say_event(stdout: IO[str], line: str) -> None:
    """Print a line of events.jsonl, which another program may have written to; what is no JSON goes out as text."""
    try:
        log.say_json(stdout, json.loads(line))
    except (ValueError, RecursionError):
        log.say(stdout, line)


def stop(arguments: Arguments, stdout: IO[str]) -> int:
    """End a run after a full checkpoint, and wait for it."""
    run = asked_for(arguments)
    if directory.state(run) not in ("running", "queued"):
        raise UserError(f"{run.path.name} is not running: it is {directory.state(run)}")
    if directory.waiting(run):
        directory.cancel(run)
        log.say(stdout, f"{run.path.name}: {directory.state(run)}")
        return 0
    os.kill(run.status["pid"], signal.SIGTERM)
    for _ in range(WAIT_TO_STOP * 10):
        time.sleep(0.1)
        if not directory.alive(run):
            log.say(stdout, f"{run.path.name}: {directory.state(runs.open_run(run.path))}")
            return 0
    raise MachineError(
        f"{run.path.name} (process {run.status['pid']}) has not ended within {WAIT_TO_STOP} s; it is still saving"
    )


def chat(arguments: Arguments, stdout: IO[str]) -> int:
    """Talk to a run's GGUF file."""
    from training.evaluation import talk
    from training.evaluation.target import Target

    talk.with_gguf(Target.of_run(asked_for(arguments).path))
    return 0


def compare(arguments: Arguments, stdout: IO[str]) -> int:
    """One page of several runs, in OUTPUT_DIR, and what it says on stderr; stdout has its path."""
    from training.report import comparison

    folder = output_dir(arguments)
    wanted = directory.to_compare(arguments.runs, lambda name: runs.find(folder, name))
    page, words = comparison.compare(wanted, folder)
    logger.info("{}", words)
    log.say_path(stdout, page)
    return 0


COMMANDS = {"status": status, "history": history, "follow": follow, "stop": stop, "chat": chat, "compare": compare}
