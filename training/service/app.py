"""The routes put together, behind the guard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp

from training.service import answers, model_routes, openai_routes, page_routes, train_routes
from training.service.core import Core
from training.service.guard import Guard
from training.settings import Settings


def make(own: Settings, token: str | None) -> ASGIApp:
    """The application for a server with these settings."""
    core = Core.of(own)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        core.scheduler.start()
        yield
        core.scheduler.stop()
        await core.models.close()

    # Its pages of documentation would load scripts from the network.
    app = FastAPI(
        title="Fine-tune a chat model",
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        redirect_slashes=False,
    )
    app.state.core = core
    answers.install(app)
    app.include_router(train_routes.router)
    app.include_router(model_routes.router)
    app.include_router(openai_routes.router)
    app.include_router(page_routes.router)

    @app.get("/healthz", responses=answers.documented())
    def healthz() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    return Guard(app, own.service.host, token)
