"""Commands that are printed for people to copy: built from words, so that whatever is in them can be pasted as it stands."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from training.system import paths


def command(program: str, *words: object) -> str:
    """A command of this project ("run.sh", "export_ollama.sh") for the shell that one stands in, to be used now."""
    try:
        beside = Path.cwd() == Path(os.path.realpath(paths.ROOT))
    except OSError:  # the folder was removed
        beside = False
    return _joined(f"./{program}" if beside else paths.ROOT / program, *words)


def lasting(program: str, *words: object) -> str:
    """The same in a text that is kept, and read wherever somebody stands then: the state of a run, its report."""
    return _joined(paths.ROOT / program, *words)


def words(program: str, *arguments: object) -> str:
    """A command of another program, such as `ollama`."""
    return _joined(program, *arguments)


def _joined(*words: object) -> str:
    return shlex.join(map(str, words))
