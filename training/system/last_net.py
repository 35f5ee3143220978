"""The last net of every command: what nobody has foreseen is told in one line, and its traceback is in the log."""

from __future__ import annotations

import os
import traceback
from contextlib import suppress
from datetime import datetime

from training.errors import FinetuneError, MachineError
from training.system import files, paths, privacy
from training.system.wording import first_line

LOG = paths.SHARED_LOG


def caught(error: Exception) -> FinetuneError:
    """The error as it is told to a person: of the disk where it names a file, else our own mistake, or a library's.

    Its traceback is in the log then. Works without the packages that the log itself needs.
    """
    _keep(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return MachineError(f"{error.filename}: {error.strerror}")
    first = first_line(error, "no reason given")
    return FinetuneError(f"unexpected: {type(error).__name__}: {first}; the traceback is in {LOG}")


def _keep(error: Exception) -> None:
    words = "".join(traceback.format_exception(error))
    lines = f"{datetime.now():%Y-%m-%d %H:%M:%S} DEBUG   unexpected\n{privacy.shown(words)}"
    # A log that cannot be written must not hide what it is about.
    with suppress(OSError):
        handle = files.open_private(LOG, os.O_WRONLY | os.O_APPEND)
        try:
            files.append_whole(handle, lines.encode("utf-8", "replace"))
        finally:
            os.close(handle)
