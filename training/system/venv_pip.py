"""pip of .venv, and what setup.sh says: one line for each thing that is installed, on stderr."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from training.errors import MachineError
from training.system import shell


def say(text: str) -> None:
    """A line for people."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def call(*command: str | Path, env: Mapping[str, str] | None = None, out: IO[bytes] | int | None = None) -> int:
    """Run a program and give its exit code; `out`: where what it says goes. One that cannot be started gives 127.

    It inherits the open file that holds the lock of this set-up.
    """
    try:
        done = subprocess.run([str(part) for part in command], close_fds=False, env=env, stdout=out, stderr=out)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return 127
    return done.returncode


class Pip:
    """The pip of one virtual environment: shown where a person watches, else kept in .venv/setup.log."""

    def __init__(self, venv: Path) -> None:
        self.python = venv / "bin" / "python"
        self.log = venv / "setup.log"

    def run(self, *arguments: str | Path, environ: Mapping[str, str] | None = None) -> bool:
        """Whether a command of pip succeeded. Where nobody watches, the end of the log tells why it did not."""
        command = (self.python, "-m", "pip", *arguments)
        env = {**os.environ, **(environ or {})}
        if os.isatty(2):
            return call(*command, env=env) == 0
        with self.log.open("ab") as log:
            if call(*command, env=env, out=log) == 0:
                return True
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]:
            print(f"  {line[:300]}", file=sys.stderr, flush=True)
        return False

    def install(self, what: str, *arguments: str | Path) -> None:
        """Install, or MachineError with what would help."""
        say(what)
        if not self.run("install", *arguments):
            raise MachineError(
                f"could not install: {what}. pip's reason is above. Is the package index reachable, and is there room "
                f"on the disk? Then run {shell.command('setup.sh')} again."
            )
