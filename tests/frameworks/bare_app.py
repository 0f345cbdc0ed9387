"""A bare ASGI callable, lifespan included."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from tests.frameworks import handlers
from tests.frameworks.recipe import Recipe


def build(recipe: Recipe) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(recipe, receive, send)
        elif scope["type"] == "http":
            await serve(scope, receive, send)

    return app


async def lifespan(recipe: Recipe, receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "lifespan.startup"
    try:
        recipe.start_up()
    except RuntimeError as exc:
        await send({"type": "lifespan.startup.failed", "message": str(exc)})
        raise
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    recipe.shut_down()
    await send({"type": "lifespan.shutdown.complete"})


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    state = SimpleNamespace(**scope["state"])
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    if path.endswith("/chat"):
        body = await body_of(receive)
        await respond(send, 200, await handlers.chat(state, json.loads(body)["word"]))
    elif path == "/sync":
        await respond(send, 200, await asyncio.to_thread(handlers.turn, state))
    elif path == "/fail":
        handlers.fail()
    elif path == "/stream":
        lines = handlers.stream(state)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async for line in lines:
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body"})
    elif path == "/background":
        await respond(send, 200, {})
        await handlers.afterwards(state)
    else:
        await respond(send, {"/teapot": 418, "/broken": 503}[path], {})


async def body_of(receive: Receive) -> bytes:
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def respond(send: Send, status: int, content: dict[str, Any]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})
