"""Records (dataclasses) as plain data for a JSON file, and back again."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, cast

from training.system import foreign_json

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


def read(value: object, kind: type[Kind], *, strict: bool = False) -> Kind:
    """`build` for what others may have written. Raises ValueError, with the field, for whatever does not fit."""
    _refuse_misfit(value, kind)
    return build(value, kind, strict=strict)


def _refuse_misfit(value: object, kind: Any, at: str = "it") -> None:
    """Raise ValueError where plain data is not what a record of `kind`, or a field of one, is built from."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        if value is not None:
            _refuse_misfit(value, arguments[0], at)
    elif dataclasses.is_dataclass(kind):
        _refuse(value, isinstance(value, Mapping), at, "object")
        held, hints = cast("Mapping[str, object]", value), _hints(cast("Hashable", kind))
        needed = [one.name for one in dataclasses.fields(kind) if one.init and _has_no_default(one)]
        if missing := [name for name in needed if name not in held]:
            raise ValueError(f"{_below(at, missing[0])} is missing")
        for name in hints.keys() & held.keys():
            _refuse_misfit(held[name], hints[name], _below(at, name))
    elif origin in (list, tuple) or origin is Sequence:
        _refuse(value, isinstance(value, (list, tuple)), at, "list")
        for number, item in enumerate(cast("Sequence[object]", value)):
            _refuse_misfit(item, arguments[0], f"{at}[{number}]")
    elif origin in (dict, Mapping):
        _refuse(value, isinstance(value, Mapping), at, "object")
        for name, item in cast("Mapping[str, object]", value).items():
            _refuse_misfit(item, arguments[1], _below(at, name))
    elif origin is typing.Literal:
        _refuse(value, value in arguments, at, f"one of {', '.join(map(str, arguments))}")
    elif kind in _WORDS:
        types_, words = _WORDS[kind]
        _refuse(value, isinstance(value, types_) and (kind is bool or not isinstance(value, bool)), at, words)


# A float that was not finite was written as null.
_WORDS: dict[object, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "truth value"),
    int: ((int,), "whole number"),
    float: ((int, float, type(None)), "number"),
    str: ((str,), "text"),
    Path: ((str, Path), "path"),
    date: ((str, date), "day"),
}


def _below(at: str, name: str) -> str:
    return name if at == "it" else f"{at}.{name}"


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _refuse(value: object, fits: bool, at: str, words: str) -> None:
    if not fits:
        raise ValueError(f"{at} = {foreign_json.shown(value)} is no {words}")


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
