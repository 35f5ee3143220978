"""Runs from outside: resume, detach, status, follow, stop, history."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import IO, Any

from loguru import logger

from training import runs, settings
from training.errors import MachineError, UserError
from training.runs import Run, checkpoint, directory
from training.settings.command_line import Arguments
from training.system import files, log, paths, privacy
from training.system.events import Events
from training.system.events import read as read_events
from training.system.this_machine import oom_kills
from training.system.wording import clock

PARENT = "FINETUNE_PARENT"  # the descriptor on which a detached run tells its parent that it has started
WAIT_TO_STOP = 60  # seconds that --stop waits for the checkpoint


def output_dir(arguments: Arguments) -> Path:
    """OUTPUT_DIR of the settings that the command line names."""
    return settings.load(arguments.config, arguments.overrides, check_files=False).training.output_dir


def found(arguments: Arguments) -> Run:
    """The run that --status, --follow or --stop is about."""
    return runs.find(output_dir(arguments), arguments.run)


def only_helps(arguments: Arguments) -> bool:
    """Whether this machine has no runs of its own: it trains for those of machine 0, new or resumed ones."""
    return settings.load(arguments.config, arguments.overrides, check_files=False).hardware.machine_rank > 0


def to_resume(arguments: Arguments) -> Run:
    """The run that --resume is about: the one named, or the newest that is not done. UserError when there is none."""
    if arguments.run is not None:
        run = runs.find(output_dir(arguments), arguments.run)
    else:
        every = [
            run
            for run in runs.history(output_dir(arguments))
            if directory.state(run) in ("interrupted", "failed", "killed")
        ]
        if not every:
            raise UserError(f"no run under {output_dir(arguments)} waits to be resumed; ./run.sh starts a new one")
        run = every[-1]
    state = directory.state(run)
    if state in ("running", "queued"):
        raise UserError(f"{run.path} is running (process {run.status['pid']}); ./run.sh --follow {run.path} shows it")
    if state == "completed":
        raise UserError(f"{run.path} is done already; ./run.sh starts a new run")
    return run


def settings_of(run: Run, arguments: Arguments) -> Any:
    """The run's own settings. UserError naming each setting of the command line that does not agree with them."""
    own = settings.load(run.path / runs.CONFIG, check_packages=True)
    if not arguments.overrides:
        return own
    changed = settings.load(run.path / runs.CONFIG, arguments.overrides, check_packages=True)
    problems = [
        f"{override.source}: {override.section}.{override.key} is {own.get(key)} in the run, not {changed.get(key)}"
        for override in arguments.overrides
        if own.get(key := f"{override.section}.{override.key}") != changed.get(key)
    ]
    if problems:
        raise UserError(
            [*problems, "leave it out, or start a new run with --fresh"], f"{run.path.name} has settings of its own"
        )
    return own


def began_on(run: Run | None) -> date | None:
    """The day on which a run began."""
    return date.fromtimestamp(run.status["started"]) if run and run.status.get("started") else None


def offer_resume(folder: Path) -> None:
    """Say how a stopped run could go on, before a new one starts."""
    every = runs.history(folder)
    if every and directory.state(every[-1]) in ("interrupted", "killed"):
        last = every[-1]
        logger.info(
            "the last run, {}, stopped at step {} of {}; `./run.sh --resume` goes on with it. This is a new run",
            last.path.name, last.status.get("step", 0), last.status.get("total", 0),
        )  # fmt: skip


def refuse_mismatch(run: Run, marks: dict[str, Any]) -> None:
    """Raise UserError, before anything is touched, where a run's newest checkpoint and its plan of today do not agree."""
    trained = run.stage("train")
    found = checkpoint.newest(run.path / runs.CHECKPOINTS) if trained is None else None
    if trained is not None or found is not None:
        checkpoint.refuse_mismatch(trained["fingerprint"] if trained else found.manifest["fingerprint"], marks)


def reopen(run: Run, plan: Any, stdout: IO[str] | None) -> tuple[Run, Events]:
    """Take a stopped run up again, in its own directory."""
    directory.lock(run)
    # A run that an older version began left them to be read by everybody.
    files.private_folder(run.path / runs.CHECKPOINTS)
    files.private(run.path / runs.CONFIG)
    log.join_run(run.path / runs.LOG)
    files.remove_partial(run.path)
    done = run.stage("train") is not None
    run.update(
        state="running",
        error=None,
        resumed_after_training=done,
        total=plan.steps,
        oom_kills=oom_kills(),
        **directory.identity(),
    )
    logger.info("resuming {}", run.path)
    return run, Events(run.path / runs.EVENTS, stdout)


def detach(argv: Sequence[str], stdout: IO[str]) -> int:
    """Start the run in a session of its own; print its directory once it has really started, or its error."""
    rest = [word for word in argv if word.replace("_", "-") != "--detach"]
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [sys.executable, str(paths.TRAINING / "finetune.py"), *rest],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
            pass_fds=[writing],
            env={**os.environ, PARENT: str(writing)},
        )
        os.close(writing)
        try:
            with os.fdopen(reading, encoding="utf-8") as pipe:
                path = pipe.readline().strip()
        except KeyboardInterrupt:  # before it has started: the child has a session of its own and would go on
            child.terminate()
            child.wait()
            return 130
        if path:
            log.say_path(stdout, Path(path))
            logger.info("running as process {}; ./run.sh --follow shows it, ./run.sh --stop ends it", child.pid)
            return 0
        code = child.wait()
        said.seek(0)
        sys.stderr.write(privacy.shown(said.read().decode("utf-8", "replace")))
        return code


def tell_parent(path: Path | None) -> None:
    """Tell a waiting parent the run directory (or, with None, that there will be none), once; then forget the terminal."""
    number = os.environ.pop(PARENT, None)
    if number is None:
        return
    with os.fdopen(int(number), "w", encoding="utf-8") as pipe:
        pipe.write(f"{path or ''}\n")
    if path is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)  # the log files have everything
        os.close(null)


def status(arguments: Arguments, stdout: IO[str]) -> int:
    """What state a run is in."""
    run = found(arguments)
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
    if record.get("error") and record["state"] != "running":
        words += f"\n{record['error']}"
    log.say(stdout, words)
    return 0


def killed_by(run: Run) -> str:
    """Why a process is gone without a word: out of memory where the kernel counts a kill since the run began."""
    before = run.status.get("oom_kills")
    now = oom_kills()
    if before is not None and now is not None and now > before:
        return "the kernel killed a process because memory ran out; close other programs and ./run.sh --resume, or start a new run with a smaller MAX_SEQ_LENGTH or PER_DEVICE_TRAIN_BATCH_SIZE"
    return "its process is gone; ./run.sh --resume goes on"


def history(arguments: Arguments, stdout: IO[str]) -> int:
    """All runs of OUTPUT_DIR, oldest first."""
    rows = [_described(run) for run in runs.history(output_dir(arguments))]
    if arguments.json:
        log.say_json(stdout, rows)
        return 0
    for row in rows:
        loss = f"loss {row['loss']:.4f}" if row["loss"] is not None else "no loss yet"
        validation = f", validation {row['validation_loss']:.4f}" if row["validation_loss"] is not None else ""
        began = datetime.fromtimestamp(row["started"]).strftime("%Y-%m-%d %H:%M") if row["started"] else "not started"
        took = clock(row["seconds"]) if row["seconds"] is not None else "?"
        log.say(stdout, f"{row['run']}  {row['state']:<11}  {began}  {took:>8}  {loss}{validation}  {row['model']}")
    if not rows:
        log.say(stdout, f"no runs under {output_dir(arguments)}")
    return 0


def _described(run: Run) -> dict[str, Any]:
    loss = validation = None
    for event in read_events(run.path / runs.EVENTS):
        if event.get("event") == "step":
            loss = event.get("loss")
        elif event.get("event") == "evaluation":
            validation = event.get("loss")
    started = run.status.get("started")
    return {
        "run": run.path.name,
        "state": directory.state(run),
        "started": started,
        "seconds": run.status["updated"] - started if started else None,
        "loss": loss,
        "validation_loss": validation,
        "model": run.status.get("model", ""),
    }


def follow(arguments: Arguments, stdout: IO[str]) -> int:
    """Show the log of a run (or, with --events, its events) as it grows, until the run ends. Ctrl-C leaves the run alone."""
    run = found(arguments)
    path = run.path / (runs.EVENTS if arguments.events else runs.LOG)
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
    run = found(arguments)
    if directory.state(run) not in ("running", "queued"):
        raise UserError(f"{run.path.name} is not running: it is {directory.state(run)}")
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
    from training.evaluation import talk, target

    talk.with_gguf(target.of_run(found(arguments).path))
    return 0


def compare(arguments: Arguments, stdout: IO[str]) -> int:
    """One page of several runs, in OUTPUT_DIR."""
    from training.report import comparison

    folder = output_dir(arguments)
    log.say_path(stdout, comparison.compare([runs.find(folder, run) for run in arguments.runs], folder))
    return 0


COMMANDS = {"status": status, "history": history, "follow": follow, "stop": stop, "chat": chat, "compare": compare}
