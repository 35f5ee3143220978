"""Records (dataclasses) as plain data for a JSON file, and back again."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Hashable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, cast

Kind = TypeVar("Kind")
AS_THEY_ARE = (bool, int, float, str)


def plain(record: object) -> dict[str, Any]:
    """A record as a dict of what JSON can hold: records in it too, paths and days as text, tuples as lists."""
    assert dataclasses.is_dataclass(record)
    return {field.name: _plain(getattr(record, field.name)) for field in dataclasses.fields(record)}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return plain(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value


def build(value: object, kind: type[Kind], *, strict: bool = False) -> Kind:
    """A record of `kind` from plain data such as parsed JSON; a record passes. What is missing takes its default.

    A field that the record does not know was written by a later version, and is passed over; `strict`: ValueError.
    """
    return cast(Kind, _built(value, kind, strict))


def _built(value: Any, kind: Any, strict: bool) -> object:
    if dataclasses.is_dataclass(kind):
        known = cast("type[object]", kind)
        if isinstance(value, known):
            return value
        hints = _hints(cast("Hashable", kind))
        if strict and (unknown := sorted(set(value) - set(hints))):
            raise ValueError(f"{known.__name__} has no field {', '.join(unknown)}")
        return known(**{key: _built(item, hints[key], strict) for key, item in value.items() if key in hints})
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return None if value is None else _built(value, arguments[0], strict)
    sequence = typing.get_origin(kind)
    if sequence in (list, tuple):
        if arguments[0] in AS_THEY_ARE:
            return sequence(value)
        return sequence(_built(item, arguments[0], strict) for item in value)
    if kind is date and isinstance(value, str):
        return date.fromisoformat(value)
    return Path(value) if kind is Path else value


@functools.cache  # a long run has a record for every step
def _hints(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(kind)
