"""Work for a client that may go away: then it ends, and what may still refuse it does so with a status of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from fastapi import Request
from starlette.exceptions import HTTPException

EVERY = 0.5  # seconds between two looks whether the client is still there
Result = TypeVar("Result")


async def attended(request: Request, work: Awaitable[Result]) -> Result:
    """What comes of work. It is cancelled once nobody waits for it any more."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=EVERY)
            if not task.done() and await request.is_disconnected():
                raise HTTPException(408, "nobody waits for the answer any more")
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    return task.result()


async def begun(request: Request, pieces: AsyncGenerator[Result, None]) -> AsyncGenerator[Result, None]:
    """The pieces of an answer, once the first is there: until then it may be refused, and a stream cannot say with what."""
    return _from(await attended(request, anext(pieces)), pieces)


async def _from(first: Result, rest: AsyncGenerator[Result, None]) -> AsyncGenerator[Result, None]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece
