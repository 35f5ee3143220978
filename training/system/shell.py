"""Commands that are printed for people to copy."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from training.system import paths


def command(program: str, *words: object) -> str:
    """A command of this project ("run.sh", "export_ollama.sh") as it can be pasted into the shell that one stands in."""
    return shlex.join([_from_here(program), *map(str, words)])


def _from_here(program: str) -> str:
    """`./run.sh` where one stands in the project's folder, else the whole path."""
    try:
        beside = Path.cwd() == Path(os.path.realpath(paths.ROOT))
    except OSError:  # the folder was removed
        beside = False
    return f"./{program}" if beside else str(paths.ROOT / program)
