"""Runs from outside: status, follow, stop, chat, compare, whois."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from loguru import logger

from training import runs
from training.control.history import history, worked
from training.control.resume import NEVER_BEGAN, new_run, output_dir
from training.control.whois import whois
from training.errors import EndedAtOnce, MachineError, RunError, UserError
from training.runs import Run, checkpoint, directory, queued
from training.settings.command_line import Arguments
from training.system import log, shell
from training.system.events import read as read_events
from training.system.this_machine import oom_kills
from training.system.wording import clock

WAIT_TO_STOP = 60  # seconds that --stop waits for the checkpoint


def asked_for(arguments: Arguments) -> Run:
    """The run that --status, --follow, --stop or --chat is about."""
    return runs.find(output_dir(arguments), arguments.run, new_run(arguments))


def status(arguments: Arguments, stdout: IO[str]) -> int:
    """What state a run is in."""
    run = asked_for(arguments)
    record = {**run.status, "state": directory.state(run), "path": str(run.path)}
    if record["state"] == "killed":
        record["reason"] = killed_by(run)
    if arguments.json:
        log.say_json(stdout, {k: v for k, v in record.items() if k not in ("stages", "expected")})
        return 0
    words = f"{run.path.name}: {record['state']}, step {record.get('step', 0)} of {record.get('total', 0)}"
    if record["state"] == "running" and record.get("stage"):
        words += f", in {record['stage']}"
    if record["state"] == "running" and record.get("eta"):
        left = clock(max(0, record["eta"] - time.time()))
        words += f", {record.get('progress', 0):.0f} % of all stages, about {left} until all is done"
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
        return directory.LOST_SETTINGS if directory.lost_settings(run) else NEVER_BEGAN
    before = run.status.get("oom_kills")
    now = oom_kills()
    if before is not None and now is not None and now > before:
        return (
            f"the kernel killed a process because memory ran out; {checkpoint.left(run)}; close other programs first, or "
            "start a new run with a smaller MAX_SEQ_LENGTH or PER_DEVICE_TRAIN_BATCH_SIZE"
        )
    return f"its process is gone; {checkpoint.left(run)}"


def follow(arguments: Arguments, stdout: IO[str]) -> int:
    """Show the log of a run (or, with --events, its events) as it grows, until the run ends; say how, and end as it did.

    Ctrl-C leaves the run alone.
    """
    run = asked_for(arguments)
    path = run.path / (runs.EVENTS if arguments.events else runs.LOG)
    if not path.is_file():
        raise UserError(f"{run.path} has no {path.name} that could be followed")
    say = _say_event if arguments.events else log.say
    shows = log.for_people() if not arguments.events else lambda _: True
    try:
        _shown_to_its_end(run, path, lambda line: say(stdout, line) if shows(line) else None)
    except KeyboardInterrupt:
        again = shell.command("run.sh", "--follow", run.path)
        logger.info("{} goes on without being looked at; `{}` shows it again", run.path.name, again)
        raise
    ended = runs.open_run(run.path)
    words, code = end_of(ended)
    (logger.info if code == 0 else logger.warning)("{}: {}", ended.path.name, words)
    return code


def end_of(run: Run) -> tuple[str, int]:
    """What became of a run that has ended, with how to go on; and its exit code."""
    state = directory.state(run)
    if state == "completed":
        return f"completed; `{shell.command('export_ollama.sh', run.path)}` puts it into Ollama", 0
    if state == "killed":
        return f"killed: {killed_by(run)}", RunError.exit_code
    code = EndedAtOnce.exit_code if state == "interrupted" else RunError.exit_code
    for event in read_events(run.path / runs.EVENTS):
        if event.get("event") == state and isinstance(event.get("exit_code"), int):
            code = event["exit_code"]
    words = f"{state}: {run.status.get('error') or 'without a word'}"
    # Its own error says what is safe, too; how to go on is said here at the latest.
    return words if "--resume" in words else f"{words}\n{checkpoint.left(run)}", code


def _shown_to_its_end(run: Run, path: Path, say: Callable[[str], None]) -> None:
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        while True:
            line = file.readline()
            if line:
                say(line.rstrip("\n"))
                continue
            if directory.state(runs.open_run(run.path)) not in ("running", "queued"):
                for line in file:
                    say(line.rstrip("\n"))
                return
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
        queued.cancel(run)
        log.say(stdout, f"{run.path.name}: {directory.state(run)}")
        return 0
    # A second signal would end it at once, and what is not in a checkpoint would be lost.
    asked_before = bool(run.status.get("stopping"))
    if not asked_before:
        os.kill(run.status["pid"], signal.SIGTERM)
    logger.info(
        "{}: {}; {}", run.path.name, "asked to stop before" if asked_before else "asked to stop", waits_for(run)
    )
    for _ in range(WAIT_TO_STOP * 10):
        time.sleep(0.1)
        if not directory.alive(run):
            log.say(stdout, f"{run.path.name}: {directory.state(runs.open_run(run.path))}")
            return 0
    raise MachineError(
        f"{run.path.name} (process {run.status['pid']}) has not ended within {WAIT_TO_STOP} s: "
        f"{waits_for(runs.open_run(run.path))}. It ends by itself then; "
        f"`{shell.command('run.sh', '--status', run.path)}` tells, and asking again does it no harm"
    )


def waits_for(run: Run) -> str:
    """What a run does before it obeys a signal."""
    stage, step, total = run.status.get("stage"), run.status.get("step", 0), run.status.get("total", 0)
    if stage != "train":
        return f"it ends what it is at ({stage or 'preparing'})"
    return f"it ends after the batch at hand, of step {min(step + 1, total)} of {total}, with a checkpoint"


def chat(arguments: Arguments, stdout: IO[str]) -> int:
    """Talk to a run's GGUF file."""
    from training.evaluation import talk
    from training.evaluation.target import Target

    run = asked_for(arguments)
    target = Target.of_run(run.path)
    if target.gguf is None:
        resume = shell.command("run.sh", "--resume", run.path)
        raise UserError(f"{run.path.name} has no GGUF file yet; {resume} finishes it")
    talk.with_gguf(target)
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


COMMANDS = {
    "status": status,
    "history": history,
    "follow": follow,
    "stop": stop,
    "chat": chat,
    "compare": compare,
    "whois": whois,
}
