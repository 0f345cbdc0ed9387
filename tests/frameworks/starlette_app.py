"""Starlette."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
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

    if not recipe.native:
        return Starlette(routes=ROUTES, lifespan=lifespan)
    app = Starlette(routes=ROUTES, lifespan=combine_lifespans(recipe.tracker.lifespan, lifespan))
    app.add_middleware(RunMiddleware, tracker=recipe.tracker, thread_path=THREAD_PATH)
    return app


async def chat(request: Request) -> Response:
    return JSONResponse(await handlers.chat(request.state, (await request.json())["word"]))


def turn(request: Request) -> Response:
    return JSONResponse(handlers.turn(request.state))


async def fail(request: Request) -> Response:
    handlers.fail()
    return Response()


async def teapot(request: Request) -> Response:
    return Response(status_code=418)


async def broken(request: Request) -> Response:
    return Response(status_code=503)


async def stream(request: Request) -> Response:
    return StreamingResponse(handlers.stream(request.state))


async def background(request: Request) -> Response:
    return Response(background=BackgroundTask(handlers.afterwards, request.state))


ROUTES = [
    Route("/chat", chat, methods=["POST"]),
    Route("/threads/{thread_id}/chat", chat, methods=["POST"]),
    Route("/sync", turn, methods=["POST"]),
    Route("/fail", fail, methods=["POST"]),
    Route("/teapot", teapot, methods=["POST"]),
    Route("/broken", broken, methods=["POST"]),
    Route("/stream", stream),
    Route("/background", background, methods=["POST"]),
]
