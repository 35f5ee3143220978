"""Values and bytes at random, from a seed: what a file or a server may hold instead of what it should."""

from __future__ import annotations

import json
import random
from typing import Any

VALUES: tuple[object, ...] = (
    None, True, -1, 0, 7, 1e300, 10**30, "", "x", "\ud800", "\x1b[2J", "../../x", [], {}, [1], {"a": 1}, [{}], [[]],
)  # fmt: skip


def spoiled(value: Any, chance: random.Random) -> Any:
    """A JSON value with one of its parts, at whatever depth, put in another's place, taken away or doubled."""
    if not isinstance(value, (dict, list)) or not value or chance.random() < 0.15:
        return chance.choice(VALUES)
    found: Any = dict(value) if isinstance(value, dict) else list(value)
    key = chance.choice(list(found) if isinstance(found, dict) else range(len(found)))
    todo = chance.random()
    if todo < 0.15:
        del found[key]
    elif todo < 0.25 and isinstance(found, list):
        found.append(found[key])
    else:
        found[key] = spoiled(found[key], chance)
    return found


def spoiled_json(raw: bytes, chance: random.Random) -> bytes:
    """JSON with a few of its parts spoiled; sometimes cut short, or with bytes that are no JSON."""
    todo = chance.random()
    if todo < 0.1:
        return raw[: chance.randrange(len(raw) + 1)]
    if todo < 0.15:
        return chance.choice((b"", b"\xff\xfe", b"[" * 100_000, b"<html>login</html>", b"null", chance.randbytes(40)))
    value = json.loads(raw)
    for _ in range(chance.randint(1, 3)):
        value = spoiled(value, chance)
    return json.dumps(value).encode()
