"""Answers for clients that go away, and answers that are refused before they begin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace

import pytest
from fastapi import Request
from starlette.exceptions import HTTPException

from training import settings
from training.errors import UserError
from training.service import app, attended, models, train_routes
from training.service.jobs import Jobs
from training.service.model_routes import whole
from training.service.models import Model, Models
from training.service.places import Places


def asked(there: bool) -> Request:
    """A request whose client is there, or has gone."""

    async def receive() -> dict[str, str]:
        if there:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


class Slow(Model):
    """A model whose answers never end by themselves; `told`: what its process was sent."""

    def __init__(self) -> None:
        super().__init__("slow", "/slow", None, process=SimpleNamespace(returncode=None))  # type: ignore[arg-type]
        self.told: list[object] = []

    def send(self, request: object) -> None:
        self.told.append(request)

    async def receive(self, seconds: float) -> dict[str, object]:
        if self.told[-1] == "stop":
            return {"done": True}
        await asyncio.sleep(3600)
        raise AssertionError


def models_of(tmp_path) -> Models:
    places = Places((tmp_path,), tmp_path)
    own = SimpleNamespace(training=SimpleNamespace(output_dir=tmp_path))
    return Models(Jobs(own, places), places)  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", [True, False])
def test_a_model_stops_when_the_client_that_it_answers_has_gone(tmp_path, monkeypatch, stream) -> None:
    monkeypatch.setattr(attended, "EVERY", 0.01)

    async def ask() -> None:
        model = Slow()
        pieces = models_of(tmp_path).answers(model, {"prompt": "x"})
        request = asked(there=False)
        with pytest.raises(HTTPException):
            await (attended.begun(request, pieces) if stream else attended.attended(request, whole(pieces)))
        assert model.waiting == 0
        await asyncio.wait_for(model.turn.acquire(), 5)  # the next one has its turn
        assert model.told == [{"prompt": "x"}, "stop"]

    asyncio.run(ask())


def test_what_is_refused_before_the_first_piece_has_its_status_also_where_a_stream_was_asked_for(tmp_path) -> None:
    async def refused() -> AsyncGenerator[dict[str, object], None]:
        raise UserError("the prompt has 9,999 tokens")
        yield {}

    async def ask() -> None:
        with pytest.raises(UserError, match="9,999 tokens"):
            await attended.begun(asked(there=True), refused())
        model = Slow()
        model.waiting = models.MOST_WAITING
        with pytest.raises(HTTPException) as caught:
            await attended.begun(asked(there=True), models_of(tmp_path).answers(model, {}))
        assert caught.value.status_code == 429 and model.waiting == models.MOST_WAITING

    asyncio.run(ask())


def test_a_check_that_nobody_waits_for_ends_and_the_next_one_may_begin(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(attended, "EVERY", 0.01)
    ended: list[str] = []

    async def plan(_: object) -> list[str]:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("check")
        raise AssertionError

    monkeypatch.setattr(train_routes.checking, "plan", plan)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "config.ini").write_text("[Dataset]\nDATASET_FILE = rows.jsonl\n")
    served = app.make(settings.load(tmp_path / "config.ini"), None)
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/train", "raw_path": b"/train",
        "query_string": b"check=true", "headers": headers,
    }  # fmt: skip

    async def ask() -> int:
        said, told = iter([{"type": "http.request", "body": b"{}"}]), []

        async def receive() -> dict[str, object]:
            return next(said, {"type": "http.disconnect"})

        async def send(message: dict[str, object]) -> None:
            told.append(message)

        await served(dict(scope), receive, send)
        return told[0]["status"]

    # 429 would say that the first one is still under way.
    assert [asyncio.run(ask()), asyncio.run(ask())] == [408, 408]
    assert ended == ["check", "check"]


def test_the_pieces_of_a_stream_come_whole_and_in_order() -> None:
    async def pieces() -> AsyncGenerator[int, None]:
        for number in range(3):
            yield number

    async def ask() -> list[int]:
        return [number async for number in await attended.begun(asked(there=True), pieces())]

    assert asyncio.run(ask()) == [0, 1, 2]
