"""The server as users start it: a program of its own, asked over its socket."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support import adopted
from tests.support.paths import ROOT
from training.runs import queued


@dataclass
class Served:
    """A server that runs. `address`: http://127.0.0.1:PORT; `folder`: where its settings lie."""

    process: subprocess.Popen[str]
    address: str
    client: httpx.Client
    folder: Path

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.client.get(path, **more)

    def post(self, path: str, json: object = None, **more: Any) -> httpx.Response:
        return self.client.post(path, json=json, **more)

    def status(self, task: str) -> dict[str, Any]:
        return self.get(f"/train/status/{task}").json()

    def wait(self, task: str, *states: str, seconds: float = 240) -> dict[str, Any]:
        """Wait until a run is in one of these states."""
        return until(lambda: found if (found := self.status(task))["status"] in states else None, seconds)

    @contextlib.contextmanager
    def held(self, task: str) -> Iterator[None]:
        """A run that has done a few steps stands still until somebody has asked it to stop in this block: its steps are
        quicker than a hand."""
        until(lambda: self.status(task)["step"] >= 3, 240)
        status = json.loads((self.folder / "outputs" / task / "status.json").read_text(encoding="utf-8"))
        os.kill(status["pid"], signal.SIGSTOP)
        try:
            yield
            until(lambda: _awaits(status["pid"], signal.SIGTERM))
        finally:
            os.kill(status["pid"], signal.SIGCONT)

    def kill(self) -> None:
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def _awaits(pid: int, number: int) -> bool:
    """Whether a signal has come to a process that stands still."""
    said = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return bool(int(re.findall(r"^ShdPnd:\s(\w+)$", said, re.M)[0], 16) >> (number - 1) & 1)


def until(look: Callable[[], Any], seconds: float = 60) -> Any:
    """What `look` gives once it gives anything."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)
    return found


def put_run(outputs: Path) -> Path:
    """A run that is done, of which there are only its state and a few events, among the runs of a server."""
    outputs.mkdir(parents=True, exist_ok=True)
    # Made beside them: one that waits there would be started.
    with tempfile.TemporaryDirectory(dir=outputs.parent) as elsewhere:
        run = queued.put(Path(elsewhere), "[Model]\nNEW_MODEL_NAME = mine\n", model="mine")
        run.update(state="completed", started=1.0, pid=1, pid_started=1, step=2, total=2, progress=100.0)
        lines = [f'{{"v":1,"event":"step","time":1.0,"step":{n},"total":2,"loss":{3 - n}.0}}\n' for n in (1, 2)]
        (run.path / "events.jsonl").write_text("".join(lines), encoding="utf-8")
        return shutil.copytree(run.path, outputs / run.path.name)


@contextlib.contextmanager
def served(
    config: Path,
    *arguments: str,
    headers: dict[str, str] | None = None,
    forked: bool = False,
    program: Sequence[str] = (str(ROOT / "training" / "finetune.py"),),
    **environment: str,
) -> Iterator[Served]:
    """./run.sh --serve with these settings, on a free port. `forked`: it begins in a fork, and so do its runs.

    `program`: what is the server, where it is not the program as users start it.
    """
    command = [sys.executable, *program, "--serve", "--config", str(config)]
    process = (adopted.Popen if forked else subprocess.Popen)(
        [*command, *(() if "--port" in arguments else ("--port", "0")), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    address = process.stdout.readline().strip()
    assert address, process.communicate()[1]
    port = address.rpartition(":")[2]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
            yield Served(process, address, client, config.parent)
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)
