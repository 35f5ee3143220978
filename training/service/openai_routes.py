"""/v1: what programs that fine-tune and chat at OpenAI ask for, over the same runs and models."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from training.errors import FinetuneError
from training.service import openai_jobs
from training.service.answers import documented
from training.service.attended import attended, begun
from training.service.bodies import Route
from training.service.core import core
from training.service.jobs import NotFound
from training.service.model_routes import LONGEST, MANY, Name, whole
from training.system import privacy

router = APIRouter(prefix="/v1", tags=["openai"], route_class=Route)
OK = documented(openai=True)
FOUND = documented(404, openai=True)
Limit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[str | None, Query(max_length=200)]


class Page(BaseModel):
    """A part of a list, as OpenAI pages it."""

    object: str = "list"
    data: list[dict[str, Any]]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None


def page(every: list[dict[str, Any]], after: str | None, limit: int) -> Page:
    """The `limit` entries behind the one of the id `after`; behind one that has gone there are none."""
    start = 0
    if after is not None:
        start = next((at + 1 for at, one in enumerate(every) if one["id"] == after), len(every))
    data = every[start : start + limit]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
    return Page(data=data, has_more=start + limit < len(every), **ends)


# ---- files -----------------------------------------------------------------------------------------------------------


@router.post("/files", responses=OK)
def upload(
    request: Request, file: Annotated[UploadFile, File()], purpose: Annotated[str, Form(max_length=100)] = "fine-tune"
) -> dict[str, Any]:
    """Keep a file of rows."""
    size = file.size if file.size is not None else 0
    return core(request).uploads.keep(file.filename or "", purpose, file.file, size)


@router.get("/files", responses=OK)
def uploaded(request: Request, after: After = None, limit: Limit = 1000, purpose: str | None = None) -> Page:
    """All files, newest first."""
    every = core(request).uploads.every()
    return page([file for file in every if purpose in (None, file["purpose"])], after, limit)


@router.get("/files/{file_id}", responses=FOUND)
def file(request: Request, file_id: str) -> dict[str, Any]:
    """What is known of a file."""
    return core(request).uploads.find(file_id)


@router.get("/files/{file_id}/content", responses=FOUND, response_class=FileResponse)
def content(request: Request, file_id: str) -> FileResponse:
    """A file as it was uploaded."""
    return FileResponse(core(request).uploads.path(file_id), media_type="application/octet-stream")


@router.delete("/files/{file_id}", responses=FOUND)
def remove(request: Request, file_id: str) -> dict[str, Any]:
    """Remove a file; runs that were trained on it are as they were."""
    core(request).uploads.remove(file_id)
    return {"id": file_id, "object": "file", "deleted": True}


# ---- fine-tuning -----------------------------------------------------------------------------------------------------


class Hyperparameters(BaseModel):
    """Of a method: where they are asked for there."""

    hyperparameters: dict[str, Any] | None = None


class Method(BaseModel):
    """How to train. Only supervised is done here."""

    type: Annotated[str, Field(max_length=100)] = "supervised"
    supervised: Hyperparameters | None = None


class Job(BaseModel):
    """A job as OpenAI takes it. `settings`: any further setting of a run, by its name."""

    model: Name
    training_file: Annotated[str, Field(max_length=200)]
    validation_file: Annotated[str, Field(max_length=200)] | None = None
    hyperparameters: dict[str, Any] | None = None
    method: Method | None = None
    suffix: Annotated[str, Field(max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] | None = None
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = None
    integrations: list[dict[str, Any]] | None = None
    settings: dict[str, Any] | None = None


@router.post("/fine_tuning/jobs", responses=OK)
def create(request: Request, body: Job) -> dict[str, Any]:
    """Start a run."""
    service = core(request)
    found, kept = openai_jobs.settings_of(body.model_dump(), service)
    return openai_jobs.job(service.begin(found, kept))


@router.get("/fine_tuning/jobs", responses=OK)
def jobs(request: Request, after: After = None, limit: Limit = 20) -> Page:
    """All runs, newest first."""
    return page([openai_jobs.job(run) for run in reversed(core(request).jobs.every())], after, limit)


@router.get("/fine_tuning/jobs/{job_id}", responses=FOUND)
def job(request: Request, job_id: str) -> dict[str, Any]:
    """How a run is."""
    return openai_jobs.job(core(request).jobs.find(job_id))


@router.post("/fine_tuning/jobs/{job_id}/cancel", responses=documented(404, 409, openai=True))
def cancel(request: Request, job_id: str) -> dict[str, Any]:
    """Have a run end after a full checkpoint."""
    return openai_jobs.job(core(request).jobs.stop(job_id))


@router.post("/fine_tuning/jobs/{job_id}/resume", responses=documented(404, 409, openai=True))
def resume(request: Request, job_id: str) -> dict[str, Any]:
    """Put a run that was cancelled or has failed into the queue again."""
    service = core(request)
    run = service.jobs.resume(job_id)
    service.scheduler.wake()
    return openai_jobs.job(run)


@router.get("/fine_tuning/jobs/{job_id}/events", responses=FOUND)
def job_events(request: Request, job_id: str, after: After = None, limit: Limit = 20) -> Page:
    """The events of a run, newest first."""
    jobs = core(request).jobs
    return page(openai_jobs.job_events(jobs.told(jobs.find(job_id))), after, limit)


@router.get("/fine_tuning/jobs/{job_id}/checkpoints", responses=FOUND)
def job_checkpoints(request: Request, job_id: str, after: After = None, limit: Limit = 10) -> Page:
    """The checkpoints that a run has now, newest first."""
    jobs = core(request).jobs
    run = jobs.find(job_id)
    return page(openai_jobs.checkpoints(run, jobs.told(run)), after, limit)


# ---- models and chat -------------------------------------------------------------------------------------------------


@router.get("/models", responses=OK)
def every_model(request: Request) -> Page:
    """The models that can be asked: finished runs, and what was loaded."""
    return page(_models(request), None, 1000)


@router.get("/models/{model}", responses=FOUND)
def one_model(request: Request, model: str) -> dict[str, Any]:
    """A model that can be asked."""
    found = next((one for one in _models(request) if one["id"] == model), None)
    if found is None:
        raise NotFound(f"there is no model {model[:80]!r}")
    return found


def _models(request: Request) -> list[dict[str, Any]]:
    service = core(request)
    found = {name: int(model.created) for name, model in service.models.loaded.items() if model.alive}
    for run in service.jobs.every():
        if run.status.get("state") == "completed":
            found.setdefault(run.path.name, int(run.status.get("started") or 0))
    return [{"id": name, "object": "model", "created": created, "owned_by": "local"} for name, created in found.items()]


class Part(BaseModel):
    """A part of a message. Only text is understood."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=LONGEST)]


class Turn(BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=LONGEST)] | Annotated[list[Part], Field(max_length=100)]


class StreamOptions(BaseModel):
    """What a stream tells besides."""

    include_usage: bool = False


class Completion(BaseModel):
    """A chat as OpenAI takes it. What would change the answer and is not done here is refused."""

    model_config = ConfigDict(extra="ignore")
    model: Name
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MANY)]
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    stop: None = None
    tools: None = None
    logprobs: Literal[False] | None = None

    def request(self) -> dict[str, Any]:
        """As the process of the model reads it."""
        roles = {"developer": "system"}
        return {
            "messages": [
                {
                    "role": roles.get(turn.role, turn.role),
                    "content": turn.content if isinstance(turn.content, str) else "".join(p.text for p in turn.content),
                }
                for turn in self.messages
            ],
            "prompt": None,
            "max_tokens": self.max_completion_tokens or self.max_tokens or 1024,
            "temperature": self.temperature or 0.0,
            "top_p": self.top_p or 1.0,
            "seed": self.seed,
            "base": False,
        }


@router.post(
    "/chat/completions",
    responses={
        200: {"description": "the answer; with stream=true as events", "content": {"text/event-stream": {}}},
        **documented(404, 409, 503, openai=True),
    },
    response_model=dict[str, Any],
)
async def chat(request: Request, body: Completion) -> dict[str, Any] | Response:
    """Ask a model. Left out, temperature is 0: the likeliest token is taken each time."""
    found = core(request).models
    model = await found.get(body.model)
    pieces = found.answers(model, body.request())
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(_chunks(await begun(request, pieces), head, usage), media_type="text/event-stream")
    end = await attended(request, whole(pieces))
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": end["text"], "refusal": None},
        "finish_reason": _reason(end),
        "logprobs": None,
    }
    return {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(end)}


async def _chunks(
    pieces: AsyncGenerator[dict[str, Any], None], head: dict[str, Any], usage: bool
) -> AsyncIterator[str]:
    def chunk(delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _line({**head, "object": "chat.completion.chunk", "choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    try:
        async with aclosing(pieces):
            async for event in pieces:
                if "piece" in event:
                    yield chunk({"content": event["piece"]})
                    continue
                yield chunk({}, _reason(event))
                if usage:
                    yield _line({**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(event)})
    except (FinetuneError, HTTPException) as error:
        words = error.detail if isinstance(error, HTTPException) else str(error)
        yield _line({"error": {"message": privacy.shown(words), "type": "server_error", "param": None, "code": None}})
    yield "data: [DONE]\n\n"


def _line(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _reason(end: dict[str, Any]) -> str:
    return "stop" if end["stopped"] else "length"


def _usage(end: dict[str, Any]) -> dict[str, int]:
    asked, told = end["prompt_tokens"], end["completion_tokens"]
    return {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told}
