"""Quart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from quart import Quart, Response, request
from starlette.types import ASGIApp

from skeino_asgi import RunMiddleware
from tests.frameworks import handlers
from tests.frameworks.recipe import THREAD_PATH, Recipe


def build(recipe: Recipe) -> ASGIApp:
    app = Quart(__name__)
    if recipe.native:
        app.asgi_app = RunMiddleware(  # type: ignore[method-assign]
            app.asgi_app,
            tracker=recipe.tracker,
            thread_path=THREAD_PATH,
        )

    @app.before_serving
    async def start_up() -> None:
        recipe.start_up()

    @app.after_serving
    async def shut_down() -> None:
        recipe.shut_down()

    @app.post("/chat")
    @app.post("/threads/<thread_id>/chat")
    async def chat(thread_id: str = "") -> dict[str, Any]:
        return await handlers.chat(state(), (await request.get_json())["word"])

    @app.post("/sync")
    def turn() -> dict[str, Any]:
        return handlers.turn(state())

    @app.post("/fail")
    async def fail() -> str:
        handlers.fail()
        return ""

    @app.post("/teapot")
    async def teapot() -> tuple[str, int]:
        return "", 418

    @app.post("/broken")
    async def broken() -> tuple[str, int]:
        return "", 503

    @app.get("/stream")
    async def stream() -> Response:
        return Response(handlers.stream(state()))

    @app.post("/background")
    async def background() -> str:
        app.add_background_task(handlers.afterwards, state())
        return ""

    return app  # type: ignore[return-value]


def state() -> Any:
    return SimpleNamespace(**request.scope["state"])
