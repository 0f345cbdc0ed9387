"""The application of the endings, served by a real server: `/<configuration>/<behaviour>/<token>`.

The configuration is a middleware; all of them share one tracker. The behaviour is how the handler ends. Under its
token it says what it is doing, in the folder's `events`, and waits for a gate, a file that the test makes.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import empty_checkpoint
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from skeino import SkeinoSettings
from skeino_asgi import RunMiddleware, RunTracker

FOLDER = Path(os.environ["ENDINGS_FOLDER"])
SECONDS = 60.0
"""How long a handler waits for its gate: longer than any test."""
LIMIT = 0.2
"""Seconds that handlers have under a time limit."""


def say(token: str, word: str) -> None:
    """Tell the test; one write, so that lines are not mixed."""
    with (FOLDER / "events").open("a") as events:
        events.write(f"{token} {word}\n")


async def opened(token: str) -> None:
    """Wait until the test opens this handler's gate."""
    gate = FOLDER / f"{token}.gate"
    async with asyncio.timeout(SECONDS):
        while not gate.exists():
            await asyncio.sleep(0.01)


class Exchange:
    """A request to a bare ASGI application, with the few things that its handlers do."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.token: str = scope["path"].rsplit("/", 1)[1]

    def say(self, word: str) -> None:
        say(self.token, word)

    async def opened(self) -> None:
        await opened(self.token)

    async def start(self, status: int = 200) -> None:
        headers = [(b"content-type", b"text/plain")]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def body(self, text: bytes, *, more: bool = False) -> None:
        await self.send({"type": "http.response.body", "body": text, "more_body": more})

    async def answer(self, status: int = 200) -> None:
        await self.start(status)
        await self.body(b"done\n")

    async def until(self, *kinds: str) -> Message:
        """The next message of one of these kinds."""
        while (message := await self.receive())["type"] not in kinds:
            pass
        return message


# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def answers_200(request: Exchange) -> None:
    await request.answer()


async def answers_404(request: Exchange) -> None:
    await request.answer(404)


async def answers_503(request: Exchange) -> None:
    await request.answer(503)


async def raises_before(request: Exchange) -> None:
    raise RuntimeError("asked for")


async def raises_during(request: Exchange) -> None:
    await request.start()
    await request.body(b"begun\n", more=True)
    raise RuntimeError("asked for")


async def raises_after(request: Exchange) -> None:
    await request.answer()
    raise RuntimeError("asked for")


async def is_silent(request: Exchange) -> None:
    """No response."""


async def stops_short(request: Exchange) -> None:
    await request.start()
    await request.body(b"begun\n", more=True)


async def works(request: Exchange) -> None:
    """Without listening to the client."""
    request.say("started")
    await request.opened()
    request.say("answers")
    await request.answer()


async def listens(request: Exchange) -> None:
    """Works until the client leaves, in `receive()` all the time."""
    request.say("started")
    await request.until("http.disconnect")
    request.say("disconnected")


async def reads(request: Exchange) -> None:
    """The whole body, then answers."""
    request.say("started")
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return
        more = message.get("more_body", False)
    await request.answer()


async def streams(request: Exchange) -> None:
    """Without listening to the client."""
    await request.start()
    gate = asyncio.create_task(request.opened())
    try:
        while not gate.done():
            await request.body(b"word\n", more=True)
            await asyncio.sleep(0.01)
    finally:
        gate.cancel()
    await request.body(b"done\n")


async def is_cancelled(request: Exchange) -> None:
    """By something within the process: a task group, a scope, a supervisor of its own."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
    await request.opened()


async def has_a_limit(request: Exchange) -> None:
    async with asyncio.timeout(LIMIT):
        await request.opened()


async def checkpoints(request: Exchange) -> None:
    """Writes a checkpoint, acknowledges it, and works on."""
    state = request.scope["state"]
    state["run"].thread_id = request.token
    config = {"configurable": {"thread_id": request.token, "checkpoint_ns": ""}}
    await state["checkpointer"].aput(config, empty_checkpoint(), {"source": "input", "step": -1, "parents": {}}, {})
    await works(request)


async def counts_checkpoints(request: Exchange) -> None:
    """Answers with the number of the thread's checkpoints."""
    config = {"configurable": {"thread_id": request.token, "checkpoint_ns": ""}}
    found = [one async for one in request.scope["state"]["checkpointer"].alist(config)]
    await request.start()
    await request.body(str(len(found)).encode())


# ── Starlette ────────────────────────────────────────────────────────────────────────────────────────────────────


async def starlette_streams(request: Request) -> Response:
    token = request.path_params["token"]

    async def words() -> AsyncIterator[str]:
        gate = asyncio.create_task(opened(token))
        try:
            while not gate.done():
                yield "word\n"
                await asyncio.sleep(0.01)
        finally:
            gate.cancel()

    return StreamingResponse(words(), background=BackgroundTask(say, token, "background"))


async def starlette_background_raises(request: Request) -> Response:
    async def fails() -> None:
        raise RuntimeError("asked for")

    return PlainTextResponse("done\n", background=BackgroundTask(fails))


async def starlette_raises(request: Request) -> Response:
    raise RuntimeError("asked for")


STARLETTE = (starlette_streams, starlette_background_raises, starlette_raises)
starlette = Starlette(
    routes=[
        Route(f"/{{configuration}}/{endpoint.__name__}/{{token}}", endpoint, methods=["GET", "POST"])
        for endpoint in STARLETTE
    ]
)

# ── WebSockets ───────────────────────────────────────────────────────────────────────────────────────────────────


async def websocket_echoes(socket: Exchange) -> None:
    """Until the client leaves."""
    await accept(socket)
    while (message := await socket.until("websocket.receive", "websocket.disconnect"))["type"] == "websocket.receive":
        await socket.send({"type": "websocket.send", "text": message["text"]})
    socket.say(f"disconnected {message['code']}")


async def websocket_tells_its_state(socket: Exchange) -> None:
    await accept(socket)
    state = socket.scope["state"]
    answer = {"run": state["run"] and state["run"].run_id, "checkpointer": state["checkpointer"] is not None}
    await socket.send({"type": "websocket.send", "text": json.dumps(answer)})
    await socket.until("websocket.disconnect")


async def websocket_runs(socket: Exchange) -> None:
    """A run for each message, which says how it shall end."""
    await accept(socket)
    while (message := await socket.until("websocket.receive", "websocket.disconnect"))["type"] == "websocket.receive":
        try:
            async with tracker.run(kwargs={"path": f"{socket.scope['path']}/{message['text']}"}):
                if message["text"] == "fail":
                    raise RuntimeError("asked for")
        except RuntimeError:
            pass
        await socket.send({"type": "websocket.send", "text": "done"})


async def websocket_closes_1000(socket: Exchange) -> None:
    await accept(socket)
    await socket.send({"type": "websocket.close", "code": 1000})


async def websocket_closes_1011(socket: Exchange) -> None:
    await accept(socket)
    await socket.send({"type": "websocket.close", "code": 1011})


async def websocket_rejects(socket: Exchange) -> None:
    await socket.until("websocket.connect")
    await socket.send({"type": "websocket.close", "code": 1008})


async def websocket_raises(socket: Exchange) -> None:
    await accept(socket)
    raise RuntimeError("asked for")


async def websocket_is_silent(socket: Exchange) -> None:
    """Neither accepts nor closes."""
    await socket.until("websocket.connect")


async def accept(socket: Exchange) -> None:
    await socket.until("websocket.connect")
    await socket.send({"type": "websocket.accept"})
    socket.say("started")


# ── All together ─────────────────────────────────────────────────────────────────────────────────────────────────

Behaviour = Callable[[Exchange], Awaitable[None]]

BARE: dict[str, Behaviour] = {
    behaviour.__name__: behaviour
    for behaviour in (
        answers_200,
        answers_404,
        answers_503,
        raises_before,
        raises_during,
        raises_after,
        is_silent,
        stops_short,
        works,
        listens,
        reads,
        streams,
        is_cancelled,
        has_a_limit,
        checkpoints,
        counts_checkpoints,
        websocket_echoes,
        websocket_tells_its_state,
        websocket_runs,
        websocket_closes_1000,
        websocket_closes_1011,
        websocket_rejects,
        websocket_raises,
        websocket_is_silent,
    )
}


async def endings(scope: Scope, receive: Receive, send: Send) -> None:
    """The inner application: a behaviour by the path."""
    if scope["type"] == "lifespan":
        raise RuntimeError("no lifespan of its own")
    name = scope["path"].split("/")[2]
    if name in BARE:
        await BARE[name](Exchange(scope, receive, send))
    else:
        await starlette(scope, receive, send)


tracker = RunTracker(SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(FOLDER / "skeino.db")))


async def limited(scope: Scope, receive: Receive, send: Send) -> None:
    """A time limit around the middleware."""
    try:
        async with asyncio.timeout(LIMIT):
            await continuing(scope, receive, send)
    except TimeoutError:
        await Exchange(scope, receive, send).answer(504)


continuing = RunMiddleware(endings, tracker=tracker)
CONFIGURATIONS: dict[str, Callable[[Scope, Receive, Send], Awaitable[None]]] = {
    "continue": continuing,
    "cancel": RunMiddleware(endings, tracker=tracker, on_disconnect="cancel"),
    "websockets": RunMiddleware(endings, tracker=tracker, track_websockets=True),
    "limit": limited,
}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The outer application, which the server serves: a configuration by the path."""
    if scope["type"] == "lifespan":
        if os.environ["ENDINGS_LIFESPAN"] == "refused":
            raise RuntimeError("no lifespan, please")
        await continuing(scope, receive, send)
    elif scope["path"] == "/ready":  # before any middleware: where there is no lifespan, nothing is open yet
        answer: dict[str, Any] = {"type": "http.response.body", "body": str(os.getpid()).encode()}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send(answer)
    else:
        await CONFIGURATIONS[scope["path"].split("/")[1]](scope, receive, send)
