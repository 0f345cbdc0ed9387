"""FastAPI."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import BackgroundTasks, Body, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from starlette.types import ASGIApp

from skeino_asgi import RunMiddleware, combine_lifespans
from tests.frameworks import handlers
from tests.frameworks.recipe import THREAD_PATH, Recipe


def build(recipe: Recipe) -> ASGIApp:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        recipe.start_up()
        yield
        recipe.shut_down()

    if recipe.native:
        app = FastAPI(lifespan=combine_lifespans(recipe.tracker.lifespan, lifespan))
        app.add_middleware(RunMiddleware, tracker=recipe.tracker, thread_path=THREAD_PATH)
    else:
        app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    @app.post("/threads/{thread_id}/chat")
    async def chat(request: Request, word: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        return await handlers.chat(request.state, word)

    @app.post("/sync")
    def turn(request: Request) -> dict[str, Any]:
        return handlers.turn(request.state)

    @app.post("/fail")
    async def fail() -> None:
        handlers.fail()

    @app.post("/teapot")
    async def teapot() -> None:
        raise HTTPException(418)

    @app.post("/broken")
    async def broken() -> None:
        raise HTTPException(503)

    @app.get("/stream")
    async def stream(request: Request) -> StreamingResponse:
        return StreamingResponse(handlers.stream(request.state))

    @app.post("/background")
    async def background(request: Request, tasks: BackgroundTasks) -> None:
        tasks.add_task(handlers.afterwards, request.state)

    return app
