"""Litestar."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Request, Response, get, post
from litestar.background_tasks import BackgroundTask
from litestar.exceptions import HTTPException
from litestar.middleware import DefineMiddleware
from litestar.response import Stream
from starlette.types import ASGIApp

from skeino_asgi import RunMiddleware
from tests.frameworks import handlers
from tests.frameworks.recipe import THREAD_PATH, Recipe


def build(recipe: Recipe) -> ASGIApp:
    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        recipe.start_up()
        yield
        recipe.shut_down()

    if not recipe.native:
        return Litestar(ROUTES, lifespan=[lifespan], logging_config=None)  # type: ignore[return-value]
    return Litestar(  # type: ignore[return-value]
        ROUTES,
        middleware=[DefineMiddleware(RunMiddleware, tracker=recipe.tracker, thread_path=THREAD_PATH)],
        lifespan=[recipe.tracker.lifespan, lifespan],
        logging_config=None,
    )


@post(["/chat", "/threads/{thread_id:str}/chat"], status_code=200)
async def chat(request: Request[Any, Any, Any]) -> dict[str, Any]:
    return await handlers.chat(request.state, (await request.json())["word"])


@post("/sync", sync_to_thread=True, status_code=200)
def turn(request: Request[Any, Any, Any]) -> dict[str, Any]:
    return handlers.turn(request.state)


@post("/fail")
async def fail() -> None:
    handlers.fail()


@post("/teapot")
async def teapot() -> None:
    raise HTTPException(status_code=418)


@post("/broken")
async def broken() -> None:
    raise HTTPException(status_code=503)


@get("/stream")
async def stream(request: Request[Any, Any, Any]) -> Stream:
    return Stream(handlers.stream(request.state))


@post("/background", status_code=200)
async def background(request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
    return Response({}, background=BackgroundTask(handlers.afterwards, request.state))


ROUTES = [chat, turn, fail, teapot, broken, stream, background]
