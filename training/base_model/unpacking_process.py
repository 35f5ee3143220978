"""`unpacking.unpack` in a process of its own, which keeps transformers out of this one until its engine has started.

Unsloth patches transformers where it is imported first. The process is a fork of one that has it, so that it begins at
once, and what unpacking took of memory is free afterwards.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, cast

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from training.errors import MachineError, UserError
from training.system import foreign_code, forkserver
from training.system.parent_watch import end_with_parent

# Before each line that is for the caller; libraries print too.
MARK = "\x02"


class Told(TypedDict, total=False):
    """One line of the process: something to say, or what went wrong."""

    say: str
    problems: list[str]  # of a UserError
    machine: str  # of a MachineError
    error: tuple[int, str, str]  # of an OSError: number, words, file
    unexpected: str  # a traceback


def unpack(path: Path, folder: Path, say: Callable[[str], None]) -> None:
    """As `unpacking.unpack`, and raises what that raises. MachineError where the process is ended from outside."""
    child = forkserver.popen(Path(__file__), [path, folder])
    printed: list[str] = []
    try:
        for line in child.stdout:
            text = line.decode("utf-8", "replace").rstrip()
            if text.startswith(MARK):
                _hear(cast("Told", json.loads(text[len(MARK) :])), say)
            else:
                printed.append(text)
        code = child.wait()
    finally:
        forkserver.end(child)
    _keep(printed)
    if code:
        reason = "too little memory, most likely" if code < 0 else next(iter(printed[-1:]), "no reason given")
        raise MachineError(f"{path} cannot be unpacked: its process has ended with {code} ({reason})")


def _hear(told: Told, say: Callable[[str], None]) -> None:
    if "say" in told:
        say(told["say"])
    elif "problems" in told:
        raise UserError(told["problems"])
    elif "machine" in told:
        raise MachineError(told["machine"])
    elif "error" in told:
        number, words, file = told["error"]
        raise OSError(number, words, file or None)
    else:
        _keep([told["unexpected"]])
        raise RuntimeError(told["unexpected"].strip().splitlines()[-1])


def _keep(texts: Sequence[str]) -> None:
    """Into the log with what the process had to say besides."""
    from loguru import logger

    for text in texts:
        logger.debug("unpacking: {}", text)


def _tell(told: Told) -> None:
    print(MARK + json.dumps(told), flush=True)


def main(path: str, folder: str) -> int:
    """The process of `unpack`: everything that it has to say is a line."""
    foreign_code.keep_out()
    end_with_parent()
    from training.base_model import unpacking

    try:
        unpacking.unpack(Path(path), Path(folder), lambda text: _tell({"say": text}))
    except UserError as error:
        _tell({"problems": list(error.problems)})
    except MachineError as error:
        _tell({"machine": str(error)})
    except OSError as error:
        _tell({"error": (error.errno or 0, error.strerror or str(error), str(error.filename or ""))})
    except Exception:
        _tell({"unexpected": traceback.format_exc()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
