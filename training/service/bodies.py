"""The JSON of a request: read strictly, and where it cannot be read, with what is wrong with it and where."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from training.system import foreign_json


class Route(APIRoute):
    """A route whose JSON is read by `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        answer = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await answer(_Strict(request.scope, request.receive))

        return strictly


class _Strict(Request):
    async def json(self) -> Any:
        """The body. JSONDecodeError, which is answered with 422 and its words."""
        return parse(await self.body())


def parse(raw: bytes) -> Any:
    """A JSON text as a value. JSONDecodeError, which ends "the body ...", also for what Python lets through: a name that
    stands there twice, of which the last would hold without a word, and texts that cannot be written again.
    """
    try:
        text = raw.decode(json.detect_encoding(raw), "strict").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError(f"is not {error.encoding.upper()}", "", 0) from None
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise json.JSONDecodeError(f"is no JSON: {error}", "", 0) from None
    except RecursionError:
        raise json.JSONDecodeError(_deep(), "", 0) from None
    except _Twice as error:
        raise json.JSONDecodeError(str(error), "", 0) from None
    except ValueError:
        raise json.JSONDecodeError("is no JSON that can be read: a number has too many digits", "", 0) from None
    if not foreign_json.shallow([found]):
        raise json.JSONDecodeError(_deep(), "", 0)
    for name, value in found.items() if isinstance(found, dict) else (("", found),):
        if not foreign_json.writable({name: value}):
            raise json.JSONDecodeError(f"{foreign_json.HALF} (in {ascii(name[:80])})", "", 0)
    return found


class _Twice(ValueError):
    """A name stands twice in one object."""


def _deep() -> str:
    return f"is nested more than {foreign_json.DEEPEST} levels deep"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Twice(f"says {foreign_json.shown(twice)} twice; give one of the two")
    return found
