"""/train: start a run, see how it is, stop it, go on with it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Header, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from training import runs
from training.runs import directory
from training.service import asked, checking, events_stream, form
from training.service.answers import documented
from training.service.attended import attended
from training.service.bodies import Route
from training.service.core import core
from training.service.jobs import PAGE, NotFound
from training.system.log import for_people

router = APIRouter(tags=["train"], route_class=Route)
RUN = documented(404)
TAIL = 1 << 18  # bytes of a log that are told


class Started(BaseModel):
    """A run that was put into the queue, or with check=true the plan of one that was not."""

    task_id: str | None = None
    status: str
    output_dir: str | None = None
    plan: list[str] | None = None


class Task(BaseModel):
    """How a run is. Times are seconds since 1970; `eta` is the seconds that are left in training."""

    task_id: str
    status: str
    progress: float
    stage: str | None
    epoch: float | None
    step: int
    total_steps: int
    loss: float | None
    validation_loss: float | None
    eta: float | None
    error: str | None
    output_dir: str
    model: str
    created: float | None
    started: float | None
    updated: float | None
    has_report: bool


class History(BaseModel):
    """All runs, oldest first."""

    tasks: list[Task]


@router.post("/train", responses=documented(503), openapi_extra=form.BODY)
async def train(
    request: Request,
    body: Annotated[dict[str, Any], Body()],
    check: Annotated[bool, Query(description="look everything over, and train nothing")] = False,
) -> Started:
    """Start a run. Any setting may be given, by its own name or by that of its flag; the server's file has the others."""
    service = core(request)
    found = await asyncio.to_thread(asked.settings_of, body, service.own, service.places)
    if not check:
        run = await asyncio.to_thread(service.begin, found, {})
        return Started(task_id=run.path.name, status="queued", output_dir=str(run.path))
    if service.checking.locked():
        raise HTTPException(429, "a check is under way; try again when it is done")
    async with service.checking:
        return Started(status="ready", plan=await attended(request, checking.plan(found)))


@router.get("/train/settings", responses=documented())
def settings(request: Request, language: Literal["en", "zh"] = "en") -> list[form.Field]:
    """Every setting that a run may be given, with its value in the server's file."""
    return form.fields(core(request).own, language)


@router.get("/train/status/{task_id}", responses=RUN)
def status(request: Request, task_id: str) -> Task:
    """How a run is."""
    jobs = core(request).jobs
    return Task(**jobs.described(jobs.find(task_id)))


@router.get("/train/history", responses=documented())
def history(request: Request) -> History:
    """All runs, oldest first."""
    jobs = core(request).jobs
    return History(tasks=[Task(**jobs.described(run)) for run in jobs.every()])


@router.post("/train/stop/{task_id}", responses=documented(404, 409))
def stop(request: Request, task_id: str) -> Task:
    """Have a run end after a full checkpoint; its status says when it has."""
    jobs = core(request).jobs
    return Task(**jobs.described(jobs.stop(task_id)))


@router.post("/train/resume/{task_id}", responses=documented(404, 409))
def resume(request: Request, task_id: str) -> Task:
    """Put a stopped, failed or killed run into the queue again."""
    service = core(request)
    run = service.jobs.resume(task_id)
    service.scheduler.wake()
    return Task(**service.jobs.described(run))


@router.get(
    "/train/events/{task_id}",
    responses={
        200: {"description": "the events, as they come", "content": {"text/event-stream": {}}},
        204: {"description": "the run has ended, and the client has all of its events"},
        **RUN,
    },
    response_class=Response,
)
async def events(
    request: Request, task_id: str, last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None
) -> Response:
    """The events of a run, as they come; with Last-Event-ID those after it. Ends with the run."""
    service = core(request)
    run = await asyncio.to_thread(service.jobs.find, task_id)
    path = service.jobs.file(run.path, runs.EVENTS)
    size = path.stat().st_size if path is not None else 0
    start = events_stream.place(last_event_id, size)
    if start and start == size and directory.state(run) not in ("queued", "running"):
        return Response(status_code=204)
    made = service.streams.held(
        events_stream.stream(service.jobs, task_id, start), "too many clients listen; try again"
    )
    return StreamingResponse(made, media_type="text/event-stream", headers={"cache-control": "no-store"})


@router.get("/train/log/{task_id}", responses=RUN, response_class=PlainTextResponse)
def log(request: Request, task_id: str) -> PlainTextResponse:
    """The end of a run's log, without what was kept for a report of a mistake."""
    jobs = core(request).jobs
    path = jobs.file(jobs.find(task_id).path, runs.LOG)
    if path is None:
        return PlainTextResponse("")
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            content = file.read(TAIL)
    except FileNotFoundError:
        return PlainTextResponse("")
    if size > TAIL:
        content = content.partition(b"\n")[2]
    lines = content.decode("utf-8", "replace").splitlines(keepends=True)
    return PlainTextResponse("".join(filter(for_people(), lines)))


@router.get("/train/report/{task_id}", responses=RUN, response_class=HTMLResponse)
def report(request: Request, task_id: str) -> HTMLResponse:
    """The report of a run, which can run nothing and load nothing."""
    jobs = core(request).jobs
    path = jobs.file(jobs.find(task_id).path, PAGE)
    if path is None:
        raise NotFound("the run has no report yet")
    policy = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return HTMLResponse(path.read_text(encoding="utf-8", errors="replace"), headers={"content-security-policy": policy})
