"""What all routes share: the server's settings, the runs, the queue, and how many may listen at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Request
from loguru import logger
from starlette.exceptions import HTTPException

from training.runs import Run
from training.service.evaluations import Evaluations
from training.service.jobs import Jobs
from training.service.models import Models
from training.service.places import Places
from training.service.scheduler import Scheduler
from training.service.uploads import Uploads
from training.settings import Settings

MOST_LISTENERS = 64
Piece = TypeVar("Piece")


@dataclass
class Slots:
    """How many of one kind of answer are under way. Used in the event loop only."""

    most: int
    busy: int = 0

    def held(self, pieces: AsyncIterator[Piece], refusal: str) -> AsyncIterator[Piece]:
        """The pieces of an answer, which has a slot while it is sent; 429 where none is free."""
        if self.busy >= self.most:
            raise HTTPException(429, refusal)
        return self._until_done(pieces)

    async def _until_done(self, pieces: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
        self.busy += 1
        try:
            async for piece in pieces:
                yield piece
        finally:
            self.busy -= 1


@dataclass
class Core:
    """The state of a server, of which nothing is lost with it."""

    own: Settings
    places: Places
    jobs: Jobs
    scheduler: Scheduler
    models: Models
    evaluations: Evaluations
    uploads: Uploads
    streams: Slots = field(default_factory=lambda: Slots(MOST_LISTENERS))
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def of(cls, own: Settings) -> Core:
        """The core of a server with these settings."""
        places = Places.of(own)
        jobs = Jobs(own, places)
        scheduler = Scheduler(jobs, own.service.runs_at_a_time)
        return cls(own, places, jobs, scheduler, Models(jobs, places), Evaluations(jobs), Uploads(jobs.home))

    def begin(self, settings: Settings, asked: Mapping[str, object]) -> Run:
        """Put a run into the queue."""
        run = self.jobs.create(settings, asked)
        logger.info("run {}: queued", run.path.name)
        self.scheduler.wake()
        return run


def core(request: Request) -> Core:
    """The core of the server that answers."""
    found: Core = request.app.state.core
    return found
