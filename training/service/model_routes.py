"""/models, /generate and /evaluate: load a model, ask it, measure it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from training.errors import FinetuneError
from training.service import models
from training.service.answers import documented
from training.service.asked import Problem, Refused
from training.service.attended import attended, begun
from training.service.bodies import Route
from training.service.core import core
from training.service.events_stream import sent
from training.service.models import Model
from training.system import privacy

router = APIRouter(tags=["models"], route_class=Route)
Name = Annotated[str, Field(min_length=1, max_length=200)]
LONGEST = 500_000  # characters of a prompt
MANY = 1_000  # messages


class Load(BaseModel):
    """A run by its id or its folder, a GGUF file, or with `lora_adapter` a base model and its adapter."""

    model_name: Name
    model_path: Annotated[str, Field(min_length=1, max_length=4096)]
    lora_adapter: Annotated[str, Field(min_length=1, max_length=4096)] | None = None


class Unload(BaseModel):
    """The name under which a model was loaded."""

    model_name: Name


class Shown(BaseModel):
    """A model that is loaded."""

    model_name: str
    model_path: str
    task_id: str | None
    created: float
    waiting: int


class Loaded(BaseModel):
    """All models that are loaded."""

    models: list[Shown]


class Message(BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=LONGEST)]


class Generate(BaseModel):
    """A question, or a conversation. `base`: the base model answers, in place of the tuned one."""

    model_name: Name
    prompt: Annotated[str, Field(min_length=1, max_length=LONGEST)] | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MANY)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = 512
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    stream: bool = False
    base: bool = False

    def request(self) -> dict[str, Any]:
        """As the process of the model reads it."""
        if (self.prompt is None) == (self.messages is None):
            raise Refused([Problem("prompt", "prompt: give either prompt or messages")])
        return self.model_dump(exclude={"model_name", "stream"})


class Generated(BaseModel):
    """An answer. `stopped`: it ended by itself, and was not cut off at max_tokens."""

    text: str
    model_name: str
    stopped: bool
    prompt_tokens: int
    completion_tokens: int


class Evaluate(BaseModel):
    """A finished run, by its id; `test_data`: a file of rows in place of those that the run kept out of its training."""

    model: Name
    test_data: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    max_rows: Annotated[int, Field(ge=1, le=100_000)] = 200


class Evaluation(BaseModel):
    """How an evaluation is, and its scores when it is done; `answers`: a CSV file on the server."""

    evaluation_id: str
    status: str
    model: str | None
    rows: int | None
    scores: list[dict[str, Any]] | None
    conclusion: str | None
    error: str | None
    created: float | None
    answers: str | None


@router.post("/models/load", responses=documented(404, 409, 503))
async def load(request: Request, body: Load) -> Shown:
    """Load a model under a name; one that has the name already is freed."""
    return Shown(**models.shown(await core(request).models.load(body.model_name, body.model_path, body.lora_adapter)))


@router.post("/models/unload", responses=documented(404))
async def unload(request: Request, body: Unload) -> Loaded:
    """Free a model."""
    found = core(request).models
    await found.unload(body.model_name)
    return _all(request)


@router.get("/models", responses=documented())
async def loaded(request: Request) -> Loaded:
    """All models that are loaded."""
    return _all(request)


def _all(request: Request) -> Loaded:
    return Loaded(
        models=[Shown(**models.shown(model)) for model in core(request).models.loaded.values() if model.alive]
    )


@router.post(
    "/generate",
    response_model=Generated,
    responses={
        200: {"description": "the answer; with stream=true as events", "content": {"text/event-stream": {}}},
        **documented(404, 409, 503),
    },
)
async def generate(request: Request, body: Generate) -> Generated | Response:
    """Ask a model. Left out, temperature is 0: the likeliest token is taken each time."""
    asked, found = body.request(), core(request).models
    model = await found.get(body.model_name)
    pieces = found.answers(model, asked)
    if body.stream:
        return StreamingResponse(streamed(model, await begun(request, pieces)), media_type="text/event-stream")
    return Generated(model_name=body.model_name, **picked(await attended(request, whole(pieces))))


async def whole(pieces: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    """The end of an answer, which has all of it."""
    last: dict[str, Any] = {}
    async with aclosing(pieces):
        async for event in pieces:
            last = event
    return last


def picked(end: dict[str, Any]) -> dict[str, Any]:
    """What is told of an answer."""
    return {name: end[name] for name in ("text", "stopped", "prompt_tokens", "completion_tokens")}


async def streamed(model: Model, pieces: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[str]:
    """An answer as events: `piece`, then `done` or `error`."""
    try:
        async with aclosing(pieces):
            async for event in pieces:
                if "piece" in event:
                    yield sent("piece", {"text": event["piece"]})
                else:
                    yield sent("done", {"model_name": model.name, **picked(event)})
    except (FinetuneError, HTTPException) as error:
        words = error.detail if isinstance(error, HTTPException) else str(error)
        yield sent("error", {"detail": privacy.shown(words)})


@router.post("/evaluate", responses=documented(404, 409))
async def evaluate(request: Request, body: Evaluate) -> Evaluation:
    """Measure a run against its base model, on rows that it was not trained on."""
    evaluations = core(request).evaluations
    if evaluations.busy:
        raise HTTPException(429, "an evaluation is under way; try again when it is done")
    name = await asyncio.to_thread(evaluations.start, body.model, body.test_data, body.max_rows)
    return Evaluation(**await asyncio.to_thread(evaluations.find, name))


@router.get("/evaluate/{evaluation_id}", responses=documented(404))
def evaluation(request: Request, evaluation_id: str) -> Evaluation:
    """How an evaluation is, and its scores."""
    return Evaluation(**core(request).evaluations.find(evaluation_id))
