"""Whose child a GGUF file is: what it was trained from and how it did, in its own metadata. No row, no path, no name of a person.

Two texts, both JSON: what is known when the file is made, and what its checks found, which is written later into the room
that was left for it. Ollama keeps both with the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from training.system import privacy

MADE, FOUND = "finetune.made", "finetune.found"
ROOM = 2048  # bytes for what the checks found
_HEAD = 256 << 20  # a vocabulary is some megabytes; the two texts stand before the weights
_LOCAL = ("folder", "gguf")  # kinds of base models whose name is a path


def pairs(made: Mapping[str, object]) -> dict[str, bool | int | str]:
    """The metadata for a new file; `made`: what `describe` gives."""
    return {MADE: _json(made), FOUND: " " * ROOM} if made else {}


def describe(report: Mapping[str, Any]) -> dict[str, object]:
    """What may be said to everybody of a run, from its report as plain data."""
    base, data = report["base"], report.get("data") or {}
    local = base.get("kind") in _LOCAL
    training = report.get("training") or {}
    return {
        "v": 1,
        "run": report["run"]["id"],
        "base": PurePath(base["name"]).name if local else base["name"],
        "base_revision": base.get("revision"),
        "data": [{key: file.get(key) for key in ("role", "sha256", "rows")} for file in data.get("files", ())],
        "rows": data.get("rows", {}),
        "steps": training.get("steps"),
        "validation_loss": [training.get("before"), training.get("after")],
        "scores": [[one["name"], one.get("before"), one.get("after")] for one in report.get("scores", ())],
    }


def fill(path: Path, checks: Mapping[str, bool | None]) -> None:
    """Write what the checks found into the room that the file has for it; a file without that room is left alone."""
    told = _json({"checks": dict(checks)}).encode()
    if len(told) > ROOM:
        return
    with path.open("r+b") as file:
        place = _room(file.read(min(_HEAD, path.stat().st_size)))
        if place is None:
            return
        file.seek(place)
        file.write(told.ljust(ROOM))
        file.flush()
        os.fsync(file.fileno())


def _room(head: bytes) -> int | None:
    """Where the room begins: after key, kind (8: text) and length."""
    mark = FOUND.encode() + (8).to_bytes(4, "little") + ROOM.to_bytes(8, "little")
    at = head.find(mark)
    return at + len(mark) if at >= 0 and at + len(mark) + ROOM <= len(head) else None


def lines(fields: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """What a file's metadata say of its training, as keys and values; nothing for a file that does not say."""
    made, found = _object(fields.get(MADE)), _object(fields.get(FOUND))
    for key in ("run", "base", "base_revision"):
        if made.get(key):
            yield key, _text(made[key])
    for number, file in enumerate(_objects(made.get("data")), start=1):
        yield (
            f"data_{number}",
            f"{_text(file.get('role'))}, {_text(file.get('rows'))} rows, sha256 {_text(file.get('sha256'))}",
        )
    for role, count in _object(made.get("rows")).items():
        yield f"rows_{_text(role)}", _text(count)
    if made.get("steps") is not None:
        yield "steps", _text(made["steps"])
    for name, pair in (("validation_loss", made.get("validation_loss")), *_scores(made.get("scores"))):
        if isinstance(pair, list) and len(pair) == 2 and any(value is not None for value in pair):
            yield _text(name), " -> ".join(_figure(value) for value in pair)
    for name, passed in _object(found.get("checks")).items():
        yield f"check {_text(name)}", "passed" if passed is True else "failed" if passed is False else "left out"


def _scores(value: object) -> Iterator[tuple[str, object]]:
    for one in value if isinstance(value, list) else ():
        if isinstance(one, list) and len(one) == 3:
            yield f"score {one[0]}", one[1:]


def _object(value: object) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _figure(value: object) -> str:
    try:
        return f"{value:.4g}" if isinstance(value, (int, float)) else "not measured"
    except OverflowError:  # a whole number that is none of a loss
        return _text(value)


def _text(value: object) -> str:
    """Somebody else may have written the file: one line that only shows itself."""
    return " ".join(privacy.shown(str(value)).split())[:200]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
