"""How requests that cannot be done are answered: each kind of error with its status, in one shape, and never a traceback."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from loguru import logger
from starlette.exceptions import HTTPException

from training.errors import FinetuneError, UserError
from training.service.asked import Problem, Refused
from training.service.jobs import NotFound, WrongState
from training.system import io_errors, privacy

PROBLEM = {
    "type": "object",
    "required": ["loc", "msg", "type", "field"],
    "properties": {
        "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
        "msg": {"type": "string"},
        "type": {"type": "string"},
        "field": {"type": "string"},
    },
}
DETAIL = {"type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}}}
DETAILS = {
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"type": "array", "items": PROBLEM}},
}
OPENAI = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": {"type": "string"}, "problems": {"type": "array", "items": PROBLEM}},
        }
    },
}
MEANINGS = {
    400: "the request is no HTTP or no JSON that can be read",
    401: "a token is needed",
    403: "another page may not ask",
    404: "there is no such thing",
    405: "no such method",
    408: "the body did not come in time",
    409: "the run is in a state in which this cannot be done",
    413: "the body is too large",
    421: "this server is not called so",
    422: "every problem, with its field and what would do",
    429: "too much at a time; try again",
    500: "the server failed; its log has the reason",
    503: "the machine is not ready",
    507: "the disk is full",
}
ALWAYS = (400, 401, 403, 405, 408, 413, 421, 422, 429, 500, 503, 507)


def documented(*statuses: int, openai: bool = False) -> dict[int | str, dict[str, Any]]:
    """For a route: the answers that it may give besides the one that is wanted."""

    def schema(status: int) -> dict[str, Any]:
        return OPENAI if openai else DETAILS if status == 422 else DETAIL

    return {
        status: {"description": MEANINGS[status], "content": {"application/json": {"schema": schema(status)}}}
        for status in sorted({*ALWAYS, *statuses})
    }


def install(app: FastAPI) -> None:
    """Answer every kind of error."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(FinetuneError, _told)
    app.add_exception_handler(OSError, _disk)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = []
    for one in error.errors():
        place = [part for part in one["loc"] if isinstance(part, (str, int))]
        field = str(place[-1]) if len(place) > 1 and isinstance(place[-1], str) else ""
        found.append(Problem(field, f"{field}: {one['msg']}" if field else _of_the_body(request, one)))
    return refused(request, found)


def _of_the_body(request: Request, error: Mapping[str, Any]) -> str:
    """What is wrong with a body as a whole."""
    if error["type"] == "json_invalid":
        return f"the body {error['ctx']['error']}"
    kind = request.headers.get("content-type", "")
    if error["type"] != "missing" and "json" not in kind:
        sent = f"is sent as {kind}" if kind else "does not say what it is"
        return f"the body {sent}: send JSON, with the header Content-Type: application/json"
    return "the body must be a JSON object"


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _answer(request, error.status_code, str(error.detail), headers=dict(error.headers or {}))


async def _told(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, Refused):
        return refused(request, error.found)
    status = 404 if isinstance(error, NotFound) else 409 if isinstance(error, WrongState) else 503
    if status == 503 and isinstance(error, UserError):
        return refused(request, [Problem("", problem) for problem in error.problems])
    return _answer(request, status, str(error))


async def _disk(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    if not io_errors.is_one(error):
        raise error
    words = io_errors.told(error)
    logger.error("{} {}: {}", request.method, request.url.path, words)
    return _answer(request, 507 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 503, words)


def refused(request: Request, found: Sequence[Problem]) -> JSONResponse:
    """422 with every problem and its field."""
    told = [
        {
            "loc": ["body", one.field] if one.field else ["body"],
            "msg": privacy.shown(one.message),
            "type": "setting",
            "field": one.field,
        }
        for one in found
    ]
    return _answer(request, 422, told)


def _answer(
    request: Request, status: int, detail: str | list[dict[str, Any]], headers: dict[str, str] | None = None
) -> JSONResponse:
    if isinstance(detail, str):
        detail = privacy.shown(detail)
    content: dict[str, Any] = {"detail": detail}
    if request.url.path.startswith("/v1/"):
        message = detail if isinstance(detail, str) else "\n".join(one["msg"] for one in detail)
        param = detail[0]["field"] or None if isinstance(detail, list) and detail else None
        error: dict[str, Any] = {"message": message, "type": "invalid_request_error", "param": param, "code": None}
        if isinstance(detail, list):
            error["problems"] = detail
        content = {"error": error}
    if status == 429:
        headers = {"retry-after": "1", **(headers or {})}
    return JSONResponse(content, status, headers)
