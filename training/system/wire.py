"""What ranks tell each other, as bytes: JSON with bytes in it, and never a pickle.

A pickle runs what its writer wants, and whoever reaches a socket can write one. What comes from there is read as numbers,
texts, lists and dicts, or it is refused.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from training.errors import RunError

# Bytes of a message at most; long files go in pieces of PIECE. What says that it is longer is not waited for.
MOST = 1 << 26
PIECE = 1 << 24
HEAD = struct.Struct("!Q")
# In the JSON, for bytes that stand behind it: how many.
BYTES = "@bytes"


def encode(value: object) -> bytes:
    """A value as a message: None, booleans, numbers, texts, bytes, and lists and dicts of these. Tuples become lists."""
    behind: list[bytes] = []

    def aside(one: object) -> dict[str, int]:
        if not isinstance(one, bytes):
            raise TypeError(f"{type(one).__name__} is not told to other ranks")
        behind.append(one)
        return {BYTES: len(one)}

    text = json.dumps(value, default=aside).encode()
    message = b"".join([HEAD.pack(len(text)), text, *behind])
    if len(message) > MOST:
        raise RunError("training", f"{len(message):,} bytes are too many to be told to the other processes")
    return message


def decode(message: bytes) -> Any:
    """The value of a message. Raises RunError where it is none: another program speaks, or the connection is disturbed."""
    try:
        (length,) = HEAD.unpack_from(message)
        at = HEAD.size + length
        if at > len(message):
            raise ValueError("it is cut short")

        def put_back(found: dict[str, object]) -> object:
            nonlocal at
            if found.keys() != {BYTES}:
                return found
            size = found[BYTES]
            if type(size) is not int or not 0 <= size <= len(message) - at:
                raise ValueError("it is cut short")
            at += size
            return message[at - size : at]

        value = json.loads(message[HEAD.size : at], object_hook=put_back)
        if at != len(message):
            raise ValueError("it is too long")
    except (ValueError, RecursionError, struct.error) as error:
        raise refused(f"what another process says is no message of this program ({error})") from None
    return value


def length(announced: int) -> int:
    """The length of a message that another rank announces. Raises RunError where it is absurd."""
    if not 0 <= announced <= MOST:
        raise refused(f"another process announces a message of {announced:,} bytes")
    return announced


def refused(what: str) -> RunError:
    """The error for what no rank of this program says."""
    return RunError(
        "training", f"{what}: a stranger is connected to this training, or the network changes what is sent"
    )
