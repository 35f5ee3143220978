"""Stands in front of all routes: who may ask, from where, how much at a time and how slowly.

A browser on this machine runs pages of strangers, which can send requests to 127.0.0.1. They cannot forge Host and Origin,
so both are looked at: Host keeps out names that a stranger has pointed at this machine, Origin everybody else's pages.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from loguru import logger
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from training.settings.contradictions import is_this_machine

MOST_REQUESTS = 128  # answered at a time; more are refused
MOST_BODY = 1 << 20
MOST_UPLOAD = 512 << 20
UPLOADS = ("/v1/files",)
# Seconds that a body may take, and the bytes in a second that prolong them.
BODY_SECONDS, BODY_SPEED = 30.0, 50_000
LINGER, LINGERING = 8 << 20, 2.0  # bytes and seconds that are read and dropped, so that a refusal arrives
# What a Host header may be: a name or an address, an IPv6 one in brackets, and a port.
HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[0-9A-Za-z._-]+))(?::[0-9]{1,5})?")
OPEN = ("/", "/page.css", "/page.js", "/healthz")  # the page itself holds nothing; it asks for the token


# An answer to a body that is not read to its end ends the connection, too.
CLOSE = {"connection": "close"}


@dataclass
class Guard:
    """ASGI middleware. `host`: what the server listens on; `token`: None where none is asked for."""

    app: ASGIApp
    host: str
    token: str | None
    _busy: int = field(default=0, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or say why not."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        most = MOST_UPLOAD if scope["path"] in UPLOADS else MOST_BODY
        refusal = self._refusal(scope, most)
        if refusal is not None:
            await _refuse(scope, receive, send, *refusal)
            return
        self._busy += 1
        try:
            await self._answer(scope, receive, send, most)
        finally:
            self._busy -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        try:
            await self.app(scope, _bounded(receive, most), watched)
        except Exception as error:
            logger.opt(exception=error).debug("unexpected")
            logger.error("{} {}: {}: {}", scope["method"], scope["path"], type(error).__name__, error)
            if not begun:
                await _refuse(scope, receive, send, 500, "the server failed; its log has the reason")

    def _refusal(self, scope: Scope, most: int) -> tuple[int, str] | None:
        headers = _Headers(scope["headers"])
        host, origin = headers.one("host"), headers.one("origin")
        if host is None or not self._serves(host):
            return 421, "this server is not called so (Host)"
        site = headers.one("sec-fetch-site") or "none"
        entering = scope["path"] == "/" and scope["method"] == "GET"
        if (origin is not None and not same_origin(origin, host)) or (
            site in ("cross-site", "same-site") and not entering
        ):
            return 403, "another page may not ask this server (Origin)"
        if self.token is not None and scope["path"] not in OPEN and not self._shown(headers.one("authorization")):
            return 401, "a token is needed: Authorization: Bearer TOKEN"
        length = headers.one("content-length")
        if length is not None and int(length) > most:
            return 413, f"a body may have {most:,} bytes here"
        if self._busy >= MOST_REQUESTS:
            return 429, "too many requests at a time; try again"
        return None

    def _serves(self, host: str) -> bool:
        """Whether a Host header means this server: an address, which no stranger's name is, or a name of this machine."""
        written = HOST.fullmatch(host)
        if written is None:
            return False
        name = (written["address"] or written["name"]).lower()
        if is_this_machine(name) or name == self.host.lower():
            return True
        if is_this_machine(self.host):
            return False
        return _is_address(name) or name in (socket.gethostname().lower(), socket.getfqdn().lower())

    def _shown(self, authorization: str | None) -> bool:
        kind, _, shown = (authorization or "").partition(" ")
        right = hmac.compare_digest(shown.strip().encode("utf-8", "replace"), (self.token or "").encode())
        return kind.lower() == "bearer" and right


# What every answer has: no other page may frame or read it, and nothing in it is taken for another kind.
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class _Headers:
    """The headers of a request by name. One that stands there twice, differently, is none that can be trusted."""

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self.pairs = list(pairs)

    def one(self, name: str) -> str | None:
        found = {value for key, value in self.pairs if key == name.encode()}
        if len(found) > 1:
            return "\n"
        return found.pop().decode("latin-1") if found else None


def same_origin(origin: str, host: str) -> bool:
    """Whether a page is this server's own, by the two headers."""
    try:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _bounded(receive: Receive, most: int) -> Receive:
    """A body that is no larger than `most`, and comes in time."""
    loop = asyncio.get_running_loop()
    end, size, more = loop.time() + BODY_SECONDS, 0, True

    async def bounded() -> Message:
        nonlocal end, size, more
        if not more:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, end - loop.time()))
        except (asyncio.TimeoutError, TimeoutError):
            raise HTTPException(408, "the body did not come in time", CLOSE) from None
        if message["type"] == "http.request":
            length = len(message.get("body", b""))
            size, end, more = size + length, end + length / BODY_SPEED, message.get("more_body", False)
            if size > most:
                raise HTTPException(413, f"a body may have {most:,} bytes here", CLOSE)
        return message

    return bounded


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, why: str) -> None:
    """Say no, and end the connection: what comes of a body is dropped, within bounds."""
    told: dict[str, object] = {"detail": why}
    if scope["path"].startswith("/v1/"):
        told = {"error": {"message": why, "type": "invalid_request_error", "param": None, "code": None}}
    body = json.dumps(told).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *HEADERS,
    ]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    headers += [(b"retry-after", b"1")] if status == 429 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    dropped, end = 0, asyncio.get_running_loop().time() + LINGERING
    while dropped < LINGER and (left := end - asyncio.get_running_loop().time()) > 0:
        try:
            message = await asyncio.wait_for(receive(), left)
        except (asyncio.TimeoutError, TimeoutError):
            break
        dropped += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            break
    await send({"type": "http.response.body", "body": b"", "more_body": False})
