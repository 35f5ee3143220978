"""Wait until no other set-up is at work in this folder:  setup_lock.py 9<setup.sh

The lock is on the open file 9 that setup.sh hands on. It ends with the last process that has this file open, so also
when the set-up is killed.
"""

from __future__ import annotations

import fcntl
import sys

INHERITED = 9


def wait(descriptor: int) -> None:
    """Take the lock on an open file. Where there are no locks, say so and go on."""
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("setup: another set-up is at work in this folder; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        print(
            f"setup: this file system knows no locks ({error}); do not start two set-ups at once",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    wait(INHERITED)
