"""A line that takes its time: what comes out of one end goes in at the other so many seconds later.

    python tests/support/far_line.py FILE FILE SECONDS

The ends are TUN devices, whose files are handed down. (tc's netem would do it, too; not every kernel has it.)
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

# Of linux/if_tun.h: packets of IP alone, as they are.
SET, TUN, PLAIN = 0x400454CA, 1, 0x1000
PACKET = 1 << 16


def device(name: str) -> int:
    """A new end of a line; it lasts as long as its file is open. OSError where that is not allowed, or not there."""
    handle = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(handle, SET, struct.pack("16sH22x", name.encode(), TUN | PLAIN))
    except OSError:
        os.close(handle)
        raise
    return handle


def carry(ends: Sequence[int], seconds: float) -> None:
    """Carry packets both ways, until an end is gone."""
    way: deque[tuple[float, int, bytes]] = deque()
    while True:
        left = max(0.0, way[0][0] - time.monotonic()) if way else None
        for end in select.select(ends, [], [], left)[0]:
            packet = os.read(end, PACKET)
            way.append((time.monotonic() + seconds, ends[1] if end == ends[0] else ends[0], packet))
        while way and way[0][0] <= time.monotonic():
            _, end, packet = way.popleft()
            # Where it is down, what arrives is lost.
            with suppress(OSError):
                os.write(end, packet)


if __name__ == "__main__":
    with suppress(OSError):
        carry([int(sys.argv[1]), int(sys.argv[2])], float(sys.argv[3]))
