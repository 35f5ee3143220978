"""JSON in files that others may have written: bounded in size and depth, of the shape and kinds that are wanted.

A broken file of a run or a model is told by its name, the field and what was found, whoever reads it.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from training.errors import UserError

MOST_BYTES = 64 << 20  # tokenizer.json, which is not read here, is the largest of its kind: 33 MB
DEEPEST = 100  # levels; Python's own limit ends in the middle of whoever walks through the value
SHOWN = 40  # characters of a value in a message
HALF = "holds half a character (a lone surrogate), which no file can hold"
_HALVES = re.compile(rb"\\u[dD][89a-fA-F]")
LAST_MOMENT = 1e11  # seconds since 1970: the year 5138; a calendar ends at 9999


class Damaged(UserError):
    """A file that is not what it should be. Begins with its path."""


@dataclass(frozen=True)
class Kind:
    """What a field must be: in `words`, after "is no"."""

    words: str
    fits: Callable[[object], bool]

    def or_none(self) -> Kind:
        """The same, or null."""
        return Kind(self.words, lambda value: value is None or self.fits(value))


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    # A longer one cannot become a float.
    return is_whole(value) and value.bit_length() < 1000


TEXT = Kind("text", lambda value: isinstance(value, str))
WHOLE = Kind("whole number", is_whole)
COUNT = Kind("whole number from 0 on", lambda value: is_whole(value) and 0 <= value < 1 << 63)
NUMBER = Kind("finite number", _number)
MOMENT = Kind(
    "moment in seconds", lambda value: isinstance(value, (int, float)) and _number(value) and 0 <= value < LAST_MOMENT
)
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("object", lambda value: isinstance(value, dict))
OBJECTS = Kind(
    "list of objects", lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value)
)
TEXTS = Kind("list of texts", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value))
WORDS = Kind(
    "object of texts", lambda value: isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
)
TABLE = Kind(
    "object of objects",
    lambda value: isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()),
)


def one_of(values: Collection[str]) -> Kind:
    """One of these texts."""
    return Kind(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def read(path: Path, kinds: Mapping[str, Kind] | None = None, most: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object in a file. Damaged where there is none, or where a field that is there is not of its kind."""
    return parse(_content(path, most), str(path), kinds)


def parse(raw: bytes, where: str, kinds: Mapping[str, Kind] | None = None) -> dict[str, Any]:
    """`read` for content that is here already; `where` it comes from."""
    try:
        found = json.loads(raw.decode("utf-8-sig"))
    except RecursionError:
        raise Damaged(f"{where} cannot be read: it is nested more than {DEEPEST} levels deep") from None
    except ValueError as error:
        raise Damaged(f"{where} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise Damaged(f"{where} is not a JSON object: it holds {shown(found)}")
    if not shallow(found):
        raise Damaged(f"{where} cannot be read: it is nested more than {DEEPEST} levels deep")
    if _HALVES.search(raw) and not writable(found):
        raise Damaged(f"{where} {HALF}")
    if problems := misfits(found, kinds or {}):
        raise Damaged([f"{where}: {problem}" for problem in problems])
    return found


def misfits(found: Mapping[str, object], kinds: Mapping[str, Kind]) -> list[str]:
    """The fields that are there and not of their kind, each with what was found."""
    return [
        f"{name} = {shown(found[name])} is no {kind.words}"
        if not kind.words.startswith(("one of", "true"))
        else f"{name} = {shown(found[name])} is not {kind.words}"
        for name, kind in kinds.items()
        if name in found and not kind.fits(found[name])
    ]


def writable(value: object) -> bool:
    """Whether all texts of a value can be written again: JSON can say halves of characters, and no file can hold them."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def shallow(value: object) -> bool:
    """Whether a value is nested no more than DEEPEST levels."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return True
    return False


def shown(value: object) -> str:
    """A value as JSON has it, shortened."""
    if isinstance(value, (dict, list)) and len(value) > SHOWN:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value):,}"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (RecursionError, ValueError):
        return "what is nested too deep"
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def _content(path: Path, most: int) -> bytes:
    try:
        # To open a named pipe might never end, and a device has no end.
        if not stat.S_ISREG((found := path.stat()).st_mode):
            raise Damaged(f"{path} cannot be read: it is no file")
        if found.st_size > most:
            raise Damaged(f"{path} cannot be read: {found.st_size:,} bytes, and {most:,} at most are wanted")
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror or error}") from None
