"""Others who listen: a terminal, a pipe, a parent that waits. That nobody listens any more is never our failure."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import IO

# What writing to a closed pipe, a closed terminal or a closed connection ends with.
GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.ECONNRESET)


def tell(stream: IO[str] | None, text: str) -> None:
    """Write `text` as it is to whoever listens; where nobody does it is lost, and so is all that follows, without a word.

    What is on the disk (the log, a run's directory) has it as well.
    """
    if stream is None:
        return
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError) as error:
        bear(stream, error)


def bear(stream: IO[str], error: Exception) -> None:
    """After a failed write: where the listener is gone, send what is left in the buffer, and all to come, nowhere.

    Else Python would try the rest once more at its exit, and end with 120 whatever the program's own exit code is; and
    a library or a child that writes to the same descriptor would fail instead of us.
    """
    if isinstance(error, OSError) and error.errno in GONE:
        with suppress(OSError, ValueError):
            number = stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
            stream.flush()
