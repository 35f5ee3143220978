"""The runs that the service knows: they are directories under OUTPUT_DIR, and nothing is remembered besides.

A run that is asked for elsewhere has a link in OUTPUT_DIR, so that a server that is started again knows it, too.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training import runs
from training.control.commands import killed_by
from training.errors import MachineError, UserError
from training.report.curves import finite
from training.runs import Run, directory, queued
from training.service.places import Places
from training.settings import Settings
from training.system import events, foreign_json, privacy
from training.system.foreign_json import Damaged

ID = re.compile(r"finetune_[0-9]{8}_[0-9]{6}(_[0-9]{1,6})?")
PAGE = "report.html"
TAIL = 1 << 16  # bytes at the end of events.jsonl in which the last step is looked for
ENDING = 10.0  # seconds in which a run ends after it has said so
ACTIVE = ("queued", "running")


class NotFound(UserError):
    """There is no such run, model or file."""


class WrongState(UserError):
    """The run is not in a state in which this can be done."""


class Jobs:
    """All runs of one OUTPUT_DIR (`home`)."""

    def __init__(self, own: Settings, places: Places) -> None:
        self.own, self.places = own, places
        self.home = own.training.output_dir
        self._making = threading.Lock()
        self._signalled: set[tuple[int, int]] = set()

    def create(self, settings: Settings, asked: Mapping[str, object]) -> Run:
        """Put a new run into the queue. `asked`: what the request said besides the settings, kept with the run."""
        folder = settings.training.output_dir
        with self._making:
            known = {"model": settings.model.new_model_name, "asked": dict(asked)}
            for _ in range(50):
                run = queued.put(folder, settings.to_ini(), **known)
                if folder.resolve() == self.home.resolve() or self._linked(run):
                    return run
                shutil.rmtree(run.path, ignore_errors=True)
                time.sleep(0.1)
        raise MachineError(f"{self.home} has a run of the same name; try again")

    def _linked(self, run: Run) -> bool:
        self.home.mkdir(parents=True, exist_ok=True)
        try:
            (self.home / run.path.name).symlink_to(run.path)
        except FileExistsError:
            return False
        return True

    def every(self) -> list[Run]:
        """All runs, oldest first, but for those that lie where requests may not reach."""
        return [run for run in runs.history(self.home) if self.places.has(run.path)]

    def find(self, name: str) -> Run:
        """The run of this id. NotFound where there is none."""
        path = self.home / name
        if not ID.fullmatch(name) or self.file(path, runs.STATUS) is None or not self.places.has(path):
            raise NotFound(f"there is no run {name[:80]!r}")
        return runs.open_run(path.resolve())

    def file(self, run: Path, name: str) -> Path | None:
        """A file of a run. None where there is none, or one that requests may not reach."""
        return self.places.file(run / name)

    def told(self, run: Run) -> Iterator[dict[str, Any]]:
        """The events of a run, in order."""
        path = self.file(run.path, runs.EVENTS)
        return events.read(path) if path is not None else iter(())

    def waiting(self) -> list[Run]:
        """The runs in the queue, in the order in which they will be started."""
        queue = [run for run in self.every() if directory.waiting(run)]
        return sorted(queue, key=lambda run: (run.status.get("queued") or 0, run.path.name))

    def at_work(self) -> list[Run]:
        """The runs that have a process now, whoever started them."""
        return [run for run in self.every() if directory.state(run) in ACTIVE and not directory.waiting(run)]

    def stop(self, name: str) -> Run:
        """Have a run end after a full checkpoint; one that waits leaves the queue. WrongState where there is nothing to stop."""
        run, end = self.find(name), time.monotonic() + ENDING
        while directory.waiting(run):
            try:
                queued.cancel(run)
                return run
            except UserError:  # it is being started just now, and will have a process in a moment
                if time.monotonic() > end:
                    raise WrongState(f"{name} is being started; try again") from None
                time.sleep(0.05)
                run = self.find(name)
        state = directory.state(run)
        if state not in ACTIVE:
            raise WrongState(f"{name} is not running: it is {state}")
        process = (int(run.status["pid"]), int(run.status["pid_started"]))
        # A second signal would end it at once, without its checkpoint.
        if process not in self._signalled:
            self._signalled.add(process)
            os.kill(process[0], signal.SIGTERM)
        return run

    def resume(self, name: str) -> Run:
        """Put a stopped run into the queue again. WrongState where it cannot go on."""
        run = self.find(name)
        state = directory.state(run)
        if state in ACTIVE or state == "completed":
            raise WrongState(f"{name} cannot be resumed: it is {state}")
        if not directory.begun(run):
            raise WrongState(f"{name} ended before it began; start a new run")
        try:
            # One that was stopped just now writes its report, and ends.
            directory.lock_within(run, ENDING)
        except UserError as error:
            raise WrongState(str(error)) from None
        try:
            run.reload()
            if directory.state(run) != state:
                raise WrongState(f"{name} has just changed: it is {directory.state(run)}")
            run.update(state="queued", error=None, pid=None, pid_started=None, eta=None, queued=round(time.time(), 3))
        finally:
            directory.unlock(run)
        return run

    def described(self, run: Run) -> dict[str, Any]:
        """What is told of a run."""
        status, state = run.status, directory.state(run)
        last = last_figures(self.file(run.path, runs.EVENTS))
        error = status.get("error") if state not in ACTIVE else None
        eta = status.get("eta") if state == "running" else None
        progress = status.get("progress")
        found = {
            "task_id": run.path.name,
            "status": state,
            "progress": float(progress) if isinstance(progress, (int, float)) else 0.0,
            "stage": status.get("stage") if state == "running" else None,
            "epoch": last.get("epoch"),
            "step": int(status.get("step") or 0),
            "total_steps": int(status.get("total") or 0),
            "loss": last.get("loss"),
            "validation_loss": last.get("validation_loss"),
            "eta": round(max(0.0, eta - time.time()), 1) if isinstance(eta, (int, float)) else None,
            "error": killed_by(run) if state == "killed" else error,
            "output_dir": str(run.path.resolve()),
            "model": str(status.get("model") or ""),
            "created": status.get("queued") or status.get("started"),
            "started": status.get("started"),
            "updated": status.get("updated"),
            "has_report": self.file(run.path, PAGE) is not None,
        }
        hidden: dict[str, Any] = dict(privacy.hidden(found).items())  # type: ignore[attr-defined]
        return {**hidden, "output_dir": found["output_dir"]}


def last_figures(path: Path | None) -> dict[str, float | None]:
    """The loss, epoch and validation loss that a run came to last, from the end of its events."""
    found: dict[str, float | None] = {}
    if path is None:
        return found
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read(TAIL).split(b"\n")
    except OSError:
        return found
    wanted = {b'"step"', b'"evaluation"'}
    for line in reversed(lines):
        # Asked for every run of a list: a line that can say nothing more is not read.
        if not any(name in line for name in wanted):
            continue
        try:
            event = foreign_json.parse(line, runs.EVENTS, events.KINDS)
        except Damaged:
            continue
        if event.get("event") == "step" and "loss" not in found:
            found["loss"], found["epoch"] = finite(event.get("loss")), finite(event.get("epoch"))
            wanted.discard(b'"step"')
        elif event.get("event") == "evaluation" and "validation_loss" not in found:
            found["validation_loss"] = finite(event.get("loss"))
            wanted.discard(b'"evaluation"')
    return found
