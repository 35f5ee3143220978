"""Start the programs of the package as a user would, and see how they end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support import adopted
from tests.support.paths import ROOT
from tests.support.runs import losses
from tests.support.tiny import write_tiny_config


@dataclass(frozen=True)
class Ended:
    """How a started program ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def run(self) -> Path:
        """The run directory that was printed."""
        lines = self.stdout.splitlines()
        assert len(lines) == 1, self.stdout + self.stderr
        return Path(lines[0])


def finetune(
    *arguments: str | Path, cwd: Path | None = None, timeout: float = 600, python: str | Path | None = None,
    script: str | Path = "finetune.py", **environment: str,
) -> Ended:  # fmt: skip
    """Run training/finetune.py in a process of its own, as run.sh does, with no terminal and no stdin.

    It begins with torch imported already (tests/support/adopted.py), unless `python` says which is to start, or something is
    in the environment that is read before.
    """
    command = [str(python or sys.executable), str(ROOT / "training" / script), *map(str, arguments)]
    run = adopted.run if python is None else subprocess.run
    done = run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        timeout=timeout, cwd=cwd, env={**os.environ, **environment},
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


def whole_run(folder: Path, model: Path) -> str:
    """The directory of a run on a tiny model, from its settings to its report."""
    ended = finetune("--config", write_tiny_config(folder, model))
    assert ended.code == 0, ended.stderr
    return str(ended.run)


def forked(script: Path, *arguments: str | Path) -> Ended:
    """Run a script to its end as `python SCRIPT ARGUMENTS` would: a fork of the package's fork server where there is one."""
    from training.system import forkserver

    if forkserver.server is None:
        return finetune(*arguments, script=script)
    with tempfile.TemporaryFile() as said:
        ours = os.dup(2)
        os.dup2(said.fileno(), 2)  # what it inherits
        try:
            child = forkserver.popen(script, arguments, errors=False)
        finally:
            os.dup2(ours, 2)
            os.close(ours)
        out = child.stdout.read()
        code = child.wait()
        forkserver.end(child)
        said.seek(0)
        return Ended(code, out.decode(), said.read().decode())


def start(*arguments: str | Path, forked: bool = True, **options) -> subprocess.Popen:
    """Start the program and do not wait for it. Not `forked`: in a Python that has just begun, as `ps` and /proc are to see it."""
    command = [sys.executable, str(ROOT / "training" / "finetune.py"), *map(str, arguments)]
    return (adopted.Popen if forked else subprocess.Popen)(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def wait_for_step(folder: Path, step: int, process: subprocess.Popen, seconds: float = 120) -> Path:
    """Wait until a run under `folder` has done `step`; gives its directory."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        for run in folder.glob("finetune_*"):
            if max(losses(run), default=0) >= step:
                return run
        time.sleep(0.02)
    raise AssertionError(f"no step {step}: {process.communicate()[1] if process.poll() is not None else 'too slow'}")
