"""Starts the runs that wait, so many at a time. A run is a program of its own, which outlives the server.

All that decides is read from the run directories: a server that was killed, and started again, goes on where it was.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import IO

from loguru import logger

from training import runs
from training.errors import FinetuneError
from training.runs import Run, directory, queued
from training.service.jobs import Jobs
from training.system import paths, privacy

EVERY, AFTER_TROUBLE = 0.5, 10.0  # seconds between two looks at the queue
MOST_SAID = 2000  # characters of what a program printed last


@dataclass
class _Started:
    """A run that this server has started, and what its program says before it has a log."""

    run: Run
    process: subprocess.Popen[bytes]
    said: IO[bytes]


class Scheduler:
    """A thread that looks at the queue until `stop`."""

    def __init__(self, jobs: Jobs, at_a_time: int) -> None:
        self.jobs, self.at_a_time = jobs, at_a_time
        self._started: list[_Started] = []
        self._wake, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Look at the queue now."""
        self._wake.set()

    def stop(self) -> None:
        """Start no more runs. Those that work go on."""
        self._over = True
        self.wake()
        self._thread.join()

    def _work(self) -> None:
        while not self._over:
            wait = EVERY
            try:
                self.look()
            except Exception as error:  # such as a full disk: a later look may find room
                logger.opt(exception=error).debug("queue")
                logger.error("queue: {}", error)
                wait = AFTER_TROUBLE
            self._wake.wait(wait)
            self._wake.clear()

    def look(self) -> None:
        """Tell the ends of what was started here, and start what there is room for."""
        for one in [one for one in self._started if one.process.poll() is not None]:
            self._started.remove(one)
            self._ended(one)
        queue = self.jobs.waiting()
        if not queue:
            return
        at_work = {run.path.resolve() for run in self.jobs.at_work()} | {one.run.path for one in self._started}
        for run in queue[: max(0, self.at_a_time - len(at_work))]:
            try:
                directory.lock(run)
            except (FinetuneError, OSError):  # somebody starts it by hand, or takes it out of the queue
                continue
            try:
                run.reload()
                if directory.waiting(run):
                    self._begin(run)
            finally:
                directory.unlock(run)

    def _begin(self, run: Run) -> None:
        path = run.path.resolve()
        command = [sys.executable, str(paths.TRAINING / "finetune.py"), "--resume", str(path)]
        # The file closes with its last user, wherever this server is then.
        said = tempfile.TemporaryFile()  # noqa: SIM115
        process = subprocess.Popen(
            [*command, "--config", str(path / runs.CONFIG)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        # From now on nobody else starts it: not this server, nor one that comes after it.
        run.update(pid=process.pid, pid_started=directory.started(process.pid))
        logger.info("run {}: started as process {}", path.name, process.pid)
        self._started.append(_Started(Run(path), process, said))

    def _ended(self, one: _Started) -> None:
        """Say why, of a program that ended before it could say so in its run's status."""
        one.said.seek(0)
        said = one.said.read().decode("utf-8", "replace")
        one.said.close()
        run = Run(one.run.path)
        try:
            run.reload()
        except (FinetuneError, OSError):  # it was removed meanwhile
            return
        if run.status.get("state") == "queued" and run.status.get("pid") == one.process.pid:
            if one.process.returncode in (-signal.SIGTERM, -signal.SIGINT):  # before it could take heed of it
                run.update(state="interrupted", error=queued.NEVER_STARTED)
                return
            why = privacy.shown(said.strip()[-MOST_SAID:]) or f"its program ended with code {one.process.returncode}"
            run.update(state="failed", error=why)
        logger.info("run {}: {}", run.path.name, directory.state(run))
