"""Run directories: OUTPUT_DIR/finetune_YYYYmmdd_HHMMSS/, its status.json, and the link `latest`."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from training.errors import MachineError, UserError
from training.system import files, foreign_json, io_errors, privacy, shell
from training.system.foreign_json import (
    COUNT,
    MOMENT,
    NUMBER,
    OBJECT,
    OBJECTS,
    TABLE,
    TEXT,
    TEXTS,
    TRUTH,
    WORDS,
    Damaged,
    Kind,
)

CONFIG, LOG, EVENTS, STATUS = "config.ini", "finetune.log", "events.jsonl", "status.json"
CHECKPOINTS, ADAPTER, MERGED = "checkpoints", "adapter", "merged"
REPORT, REJECTED, TENSORBOARD = "report.json", "rejected.jsonl", "tensorboard"
ROWS = "rows.csv"
# In OUTPUT_DIR, for the newest run that is done.
RESULTS = {"lora_adapter": ADAPTER, "merged_model": MERGED, "final_model": MERGED}

Named = TypeVar("Named")
Read = TypeVar("Read")
Stage = Literal["train", "evaluate", "merge", "convert", "quantise", "modelfile", "check"]
State = Literal["queued", "running", "completed", "interrupted", "failed", "killed"]
PROCESSES = Path("/proc")
LOST_SETTINGS = f"has lost its {CONFIG}, without which nothing goes on: put that file back, or start a new run"
# The seconds after which the end of a run is tried to be written again: programs wait for it.
WAITS = (0.1, 0.5, 2.0)
SECONDS = Kind(
    "object of seconds",
    lambda value: isinstance(value, dict) and all(NUMBER.fits(item) and item >= 0 for item in value.values()),
)
# Of status.json: what everybody who opens a run relies on.
KINDS: dict[str, Kind] = {
    "state": foreign_json.one_of(get_args(State)),
    **dict.fromkeys(("run", "model"), TEXT),
    **dict.fromkeys(("stage", "error", "reason"), TEXT.or_none()),
    **dict.fromkeys(("v", "step", "total"), COUNT),
    **dict.fromkeys(("pid", "pid_started", "oom_kills"), COUNT.or_none()),
    "updated": MOMENT,
    **dict.fromkeys(("started", "eta", "queued"), MOMENT.or_none()),
    "asked": OBJECT,
    "progress": NUMBER,
    "resumed_after_training": TRUTH,
    **dict.fromkeys(("stopping", "lost"), TRUTH.or_none()),
    "stages": TABLE,
    "expected": SECONDS,
    "written": WORDS,
    "parameters": COUNT.or_none(),
    **dict.fromkeys(("checks", "quantised"), OBJECTS),
    **dict.fromkeys(("warnings", "check_warnings"), TEXTS),
}

# A signal is told of by another thread than that which trains.
_WRITING = threading.Lock()


@dataclass
class Run:
    """One run: its directory and what status.json says of it. `update` writes status.json, whole or not at all."""

    path: Path
    status: dict[str, Any] = field(default_factory=dict)
    # The lock on the directory, while this process works on it.
    held: int | None = field(default=None, repr=False)

    def update(self, **changes: object) -> bool:
        """Change fields of status.json, which holds no secrets. One that cannot be written (full disk) stops nothing.

        The state in which a run ends is the last that is written of it: it is tried again. Whether it could be written.
        """
        ends = changes.get("state") in ("completed", "interrupted", "failed")
        for wait in (*WAITS, None) if ends else (None,):
            try:
                with _WRITING:
                    self.status.update(changes)
                    self.status["updated"] = round(time.time(), 3)
                    files.write_json(self.path / STATUS, privacy.hidden(self.status))
                return True
            except OSError as error:
                if wait is not None:
                    time.sleep(wait)
                    continue
                from loguru import logger

                logger.warning("cannot write {}", io_errors.told(error, self.path / STATUS))
        return False

    def reload(self) -> None:
        """Read status.json again, after another process has worked on the run."""
        self.status = open_run(self.path).status

    def finish_stage(self, name: Stage, record: dict[str, Any]) -> None:
        """Remember that a stage is done, with its figures; a resumed run does not do it again."""
        self.update(stages={**self.status.get("stages", {}), name: record})

    def stage(self, name: Stage) -> dict[str, Any] | None:
        """The figures of a finished stage, or None when it has still to run."""
        stages: dict[str, dict[str, Any]] = self.status.get("stages", {})
        return stages.get(name)


def create(output_dir: Path) -> Run:
    """Make the next run directory and point `latest` at it. Raises MachineError when OUTPUT_DIR cannot be written."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        run = Run(_new_directory(output_dir))
        try:
            lock(run)
            files.private_folder(run.path / CHECKPOINTS)
        except OSError:
            shutil.rmtree(run.path, ignore_errors=True)
            raise
    except OSError as error:
        raise MachineError(
            f"OUTPUT_DIR {output_dir} cannot be written: {error.strerror}; "
            "choose another one (OUTPUT_DIR in config.ini, or --output DIR)"
        ) from None
    path = run.path
    run.update(v=1, run=path.name, state="queued", step=0, total=0, progress=0, eta=None, **identity())
    point_latest(path)
    return run


def waiting(run: Run) -> bool:
    """Whether a run was queued, and nobody has started it yet."""
    return run.status.get("state") == "queued" and run.status.get("pid") is None


def never_started(run: Run) -> bool:
    """Whether a run has its settings, and nothing else yet: it is begun, not resumed."""
    return begun(run) and not any(run.status.get(sign) for sign in ("started", "step", "stages"))


def _new_directory(output_dir: Path) -> Path:
    stamp = f"finetune_{datetime.now():%Y%m%d_%H%M%S}"
    number = 1
    while True:
        path = output_dir / (stamp if number == 1 else f"{stamp}_{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def lock(run: Run) -> None:
    """Hold the run's directory for this process as long as it lives. UserError when another one works on the run."""
    handle = os.open(run.path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            f"{run.path} is being worked on by another process; {shell.command('run.sh', '--status', run.path)} tells"
        ) from None
    except OSError:  # a file system without locks
        pass
    run.held = handle


def lock_within(run: Run, seconds: float) -> None:
    """`lock`, once whoever holds the directory has let go of it. UserError where that takes longer than these seconds."""
    end = time.monotonic() + seconds
    while True:
        try:
            return lock(run)
        except UserError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def unlock(run: Run) -> None:
    """Let go of a run's directory."""
    if run.held is not None:
        os.close(run.held)
        run.held = None


def point_latest(path: Path) -> None:
    """Let OUTPUT_DIR/latest name this run; on a file system without links, or with a real folder there, leave it."""
    _point(path.parent / "latest", path.name)


def point_results(path: Path) -> None:
    """Let the names that guides have for what a run makes, beside `latest`, stand for what this finished run has made.

    A name of what it has not made (KEEP_MERGED = false) is taken away: it would stand for an older run.
    """
    for name, made in RESULTS.items():
        link = path.parent / name
        if (path / made).is_dir():
            _point(link, f"{path.name}/{made}")
        elif link.is_symlink():
            files.remove(link)


def _point(link: Path, to: str) -> None:
    partial = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        if link.is_symlink() or not link.exists():
            partial.symlink_to(to)
            partial.replace(link)
    except OSError:
        files.remove(partial)


def open_run(path: Path) -> Run:
    """Read a run directory. Raises UserError when it is not one: Damaged where its status.json is not what it should be."""
    status = path / STATUS
    if not status.exists():
        raise UserError(f"{path} is not a run directory: it has no {STATUS}")
    return Run(path, foreign_json.read(status, KINDS))


def find(output_dir: Path, wanted: Path | str | None, starts: str = "") -> Run:
    """The run that was asked for: a path, a name under OUTPUT_DIR, or (None) the newest one.

    `starts`: the command that makes one, for the error's message.
    """
    if wanted is None:
        every = history(output_dir)
        if not every:
            raise UserError(f"there is no run under {output_dir} yet" + (f"; {starts} starts one" if starts else ""))
        return every[-1]
    for path in (Path(wanted), output_dir / str(wanted)):
        if path.is_symlink():  # OUTPUT_DIR/merged_model
            path = path.resolve()
        if (path / STATUS).is_file():
            return open_run(path.resolve())
        if path.name in (MERGED, ADAPTER) and (path.parent / STATUS).is_file():
            return open_run(path.parent.resolve())
    known = ", ".join(run.path.name for run in history(output_dir)[-3:]) or "none"
    raise UserError(f"{wanted} is not a run directory (runs under {output_dir}: {known})")


def history(output_dir: Path) -> list[Run]:
    """All runs under OUTPUT_DIR, oldest first; folders that are no runs are left out, and damaged runs named, once each."""
    every = []
    for path in sorted(output_dir.glob("finetune_*"), key=_age) if output_dir.is_dir() else []:
        try:
            every.append(open_run(path))
        except Damaged as damage:
            _left_out(str(damage))
        except UserError:
            continue
        except OSError as error:
            _left_out(io_errors.told(error, path / STATUS))
    return every


def to_compare(every: Sequence[Named], read: Callable[[Named], Read]) -> list[Read]:
    """What `read` makes of each; a damaged run is named in the log and left out, as long as two are left."""
    whole, problems = [], []
    for one in every:
        try:
            whole.append(read(one))
        except Damaged as damage:
            problems += damage.problems
            _left_out(str(damage))
    if len(whole) < min(len(every), 2):
        raise UserError(problems, "too few runs to compare are whole")
    return whole


@functools.cache
def _left_out(damage: str) -> None:
    from loguru import logger

    logger.warning("{}; this run is left out", damage)


def _age(path: Path) -> tuple[str, int]:
    stamp, _, number = path.name.removeprefix("finetune_").rpartition("_")
    return (path.name, 1) if "_" not in stamp else (f"finetune_{stamp}", int(number) if number.isdigit() else 0)


def identity() -> dict[str, Any]:
    """Who is working on a run: the pid, and when that process started, for a pid alone is given out again."""
    return {"pid": os.getpid(), "pid_started": started(os.getpid())}


def started(pid: int) -> int | None:
    """The start time of a process in clock ticks since boot (/proc/PID/stat, field 22), or None if there is none."""
    try:
        stat = (PROCESSES / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] == "Z" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def alive(run: Run) -> bool:
    """Whether the process that works on the run is still the one that wrote status.json."""
    pid, since = run.status.get("pid"), run.status.get("pid_started")
    if pid is None or since is not None:
        return pid is not None and started(int(pid)) == since
    # Written, and looked at, where /proc tells nothing: then the pid must do.
    return started(os.getpid()) is None and _is_there(int(pid))


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return pid > 0


def state(run: Run) -> State:
    """The run's state as it is now: a run that says `running` but whose process is gone has been killed."""
    stored: State = run.status.get("state", "failed")
    if waiting(run):
        return "queued"
    if stored in ("running", "queued") and not alive(run):
        # The report is the last but one that is written: then it was the word "completed" that the disk did not take.
        return "completed" if (run.path / REPORT).is_file() and run.stage("check") is not None else "killed"
    return stored


def begun(run: Run) -> bool:
    """Whether a run got as far as its own settings, without which nothing was trained and nothing can go on."""
    return (run.path / CONFIG).is_file()


def lost_settings(run: Run) -> bool:
    """Whether a run did get as far as its own settings, and has them no more."""
    return not begun(run) and any(run.status.get(sign) for sign in ("step", "stages"))


@contextmanager
def reading_settings(run: Run) -> Iterator[None]:
    """While a run's own settings are read: a UserError that says what to do where they have gone, however late."""
    try:
        yield
    except UserError as error:
        if lost_settings(run):
            raise UserError(f"{run.path} {LOST_SETTINGS}") from error
        raise


def seconds_of_stages(run: Run) -> dict[str, float]:
    """How long each finished stage took, in order, as far as status.json tells it."""
    stages = run.status.get("stages", {})
    taken = {name: stage.get("seconds") for name, stage in stages.items() if isinstance(stage, dict)}
    return {name: seconds for name, seconds in taken.items() if isinstance(seconds, (int, float))}


def size(run: Run | None) -> int:
    """Bytes that a run to be resumed has on the disk already."""
    return sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file()) if run else 0
