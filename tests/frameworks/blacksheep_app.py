"""BlackSheep."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from blacksheep import Application, Request, Response, StreamedContent, json
from blacksheep.server.routing import Router
from starlette.types import ASGIApp

from tests.frameworks import handlers
from tests.frameworks.recipe import Recipe


def build(recipe: Recipe) -> ASGIApp:
    app = Application(router=Router())

    @app.on_start
    async def start_up() -> None:
        recipe.start_up()

    @app.on_stop
    async def shut_down() -> None:
        recipe.shut_down()

    @app.router.post("/chat")
    @app.router.post("/threads/{thread_id}/chat")
    async def chat(request: Request) -> Response:
        return json(await handlers.chat(state_of(request), (await request.json())["word"]))

    @app.router.post("/sync")
    def seen(request: Request) -> Response:
        return json(handlers.seen(state_of(request)))

    @app.router.post("/fail")
    async def fail() -> Response:
        handlers.fail()
        return Response(200)

    @app.router.post("/teapot")
    async def teapot() -> Response:
        return Response(418)

    @app.router.post("/broken")
    async def broken() -> Response:
        return Response(503)

    @app.router.get("/stream")
    async def stream(request: Request) -> Response:
        lines = handlers.stream(state_of(request))

        async def content() -> AsyncIterator[bytes]:
            async for line in lines:
                yield line

        return Response(200, content=StreamedContent(b"text/plain", content))

    return app


def state_of(request: Request) -> Any:
    return SimpleNamespace(**request.scope["state"])  # type: ignore[typeddict-item]
