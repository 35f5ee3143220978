"""The Python that has the packages: `python training/finetune.py` is typed with whichever stands first on the PATH."""

from __future__ import annotations

import importlib.util
import os
import sys

from training.system import paths, shell

# Of the packages the one that every program here loads first.
NEEDED = "loguru"


def use(must: bool = True) -> None:
    """Go on in the Python of .venv where this one has no packages. Where there is none: exit 3, saying what would do; without
    `must`, for a program that does most of its work with none, go on here."""
    if importlib.util.find_spec(NEEDED) is not None:
        return
    own = paths.ROOT / ".venv"
    python = own / "bin" / "python"
    if os.access(python, os.X_OK) and not os.path.samefile(sys.prefix, own):  # noqa: PTH121 - a prefix is a text
        os.execv(python, [str(python), *sys.argv])
    if not must:
        return
    sys.stderr.write(f"error: {sys.executable} has no package {NEEDED}: run {shell.command('setup.sh')} first\n")
    raise SystemExit(3)
