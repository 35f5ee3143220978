"""`POST /train?check=true`: everything short of training, by the program's own --check, in a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from training.errors import MachineError, UserError
from training.settings import Settings
from training.system import files, paths

SECONDS = 900.0
# Where a value stands in the file that is written here is nothing to whoever asked.
LINE = re.compile(r" \(config\.ini:[0-9]+\)$|^( *)config\.ini:[0-9]+: ", re.MULTILINE)


async def plan(settings: Settings) -> list[str]:
    """The lines of the plan. UserError or MachineError with what --check says."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.ini")
        files.write_text(config, settings.to_ini())
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(paths.TRAINING / "finetune.py"),
            "--check",
            "--config",
            str(config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            said, errors = await asyncio.wait_for(process.communicate(), SECONDS)
        except (asyncio.TimeoutError, TimeoutError):
            raise MachineError(f"the check did not end within {SECONDS:.0f} s") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    if process.returncode == 0:
        return [LINE.sub("", line) for line in said.decode("utf-8", "replace").splitlines()]
    why = _last_error(errors.decode("utf-8", "replace"))
    if process.returncode == UserError.exit_code:
        raise UserError(why.splitlines())
    raise MachineError(why)


def _last_error(text: str) -> str:
    """The error that a program printed last, all lines of it."""
    found = LINE.sub("", re.split(r"^error: ", text, flags=re.MULTILINE)[-1].strip())
    return found or "the check ended without a word"
