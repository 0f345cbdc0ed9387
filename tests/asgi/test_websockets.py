"""A WebSocket connection as a run: how it ends. Without `track_websockets` it has state, and is none."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from skeino import Run, SkeinoSettings, current_run
from skeino.errors import RunInterruptedError
from skeino_asgi import RunMiddleware, RunTracker
from tests.asgi.conftest import ended, store_of
from tests.asgi.graphs import compiled

CONNECT = {"type": "websocket.connect"}


async def run_of(talk: Any, *messages: Any, raises: Any = (RuntimeError, WebSocketDisconnect)) -> dict[str, Any]:
    """Serve one connection whose client sends these messages, and return the run's row."""
    app = Starlette(routes=[WebSocketRoute("/ws", talk)])
    wrapped = RunMiddleware(app, settings=SkeinoSettings(), track_websockets=True)
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    for message in (CONNECT, *messages):
        inbox.put_nowait(message)
    scope = {
        "type": "websocket",
        "path": "/ws",
        "query_string": b"",
        "headers": [],
        "extensions": {"websocket.http.response": {}},
    }

    async def send(message: Any) -> None:
        pass

    async with wrapped.tracker.lifespan():
        with contextlib.suppress(*raises):
            await asyncio.wait_for(wrapped(scope, inbox.get, send), 5)
        (run,) = await store_of(wrapped).search_runs()
        return dict(await ended(store_of(wrapped), run["run_id"]))


async def test_a_connection_is_one_run_with_a_thread_and_a_ledger(settings: SkeinoSettings) -> None:
    """Spoken by hand, since Starlette's test client has an event loop of its own."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        run: Run = scope["state"]["run"]
        assert current_run() == run
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        graph = compiled(scope["state"]["checkpointer"])
        while (message := await receive())["type"] == "websocket.receive":
            await graph.ainvoke({"words": [message["text"]]}, run.config)

    wrapped = RunMiddleware(app, settings=settings, track_websockets=True, thread_path="/threads/{thread_id}")
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    for message in (
        CONNECT,
        {"type": "websocket.receive", "text": "a"},
        {"type": "websocket.receive", "text": "b"},
        {"type": "websocket.disconnect", "code": 1001},
    ):
        inbox.put_nowait(message)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/threads/t1/ws", "headers": [], "state": {}}
    async with wrapped.tracker.lifespan():
        await wrapped(scope, inbox.get, send)
        run_id = dict(sent[0]["headers"])[b"x-run-id"].decode()
        row = await ended(store_of(wrapped), run_id)
        thread = await store_of(wrapped).get_thread("t1")
    assert (row["status"], row["thread_id"], row["checkpoint_count"]) == ("success", "t1", 6)
    assert row["kwargs"] == {"method": "WEBSOCKET", "path": "/threads/t1/ws"}
    assert thread is not None
    assert thread["status"] == "idle"


async def closes(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close(1000)


async def closes_with_an_internal_error(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close(1011, "broken")


async def rejects(websocket: WebSocket) -> None:
    await websocket.close(1008)


async def answers_with_a_denial(websocket: WebSocket) -> None:
    from starlette.responses import PlainTextResponse

    await websocket.send_denial_response(PlainTextResponse("no", 403))


async def fails(websocket: WebSocket) -> None:
    await websocket.accept()
    raise RuntimeError("the model is away")


async def returns_without_a_word(websocket: WebSocket) -> None:
    await websocket.receive()


async def leaves_it_open(websocket: WebSocket) -> None:
    await websocket.accept()


async def reports_a_failure(websocket: WebSocket) -> None:
    await websocket.accept()
    websocket.state.run.fail("the model is away")
    await websocket.close(1000)


@pytest.mark.parametrize(
    ("talk", "status", "code", "http_status"),
    [
        (closes, "success", None, None),
        (closes_with_an_internal_error, "error", "websocket_error", None),
        (rejects, "success", None, None),
        (answers_with_a_denial, "success", None, 403),
        (fails, "error", "exception", None),
        (returns_without_a_word, "error", "no_response", None),
        (leaves_it_open, "error", "no_response", None),
        (reports_a_failure, "error", "reported", None),
    ],
)
async def test_how_the_application_ends_it(talk: Any, status: str, code: str | None, http_status: int | None) -> None:
    row = await run_of(talk)
    assert (row["status"], row["http_status"]) == (status, http_status)
    assert (row["error"] or {"code": None})["code"] == code


@pytest.mark.parametrize("catches", [True, False])
@pytest.mark.parametrize(
    ("code", "status"), [(1000, "success"), (1001, "success"), (1006, "success"), (1012, "interrupted")]
)
async def test_a_client_may_close_it_at_any_time_but_a_server_that_stops_interrupts(
    code: int, status: str, catches: bool
) -> None:
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            await websocket.receive_text()
        except WebSocketDisconnect:
            if not catches:
                raise

    assert (await run_of(talk, {"type": "websocket.disconnect", "code": code}))["status"] == status


async def test_a_client_may_close_it_while_a_task_group_listens() -> None:
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        async with asyncio.TaskGroup() as group:
            group.create_task(websocket.receive_text())

    row = await run_of(talk, {"type": "websocket.disconnect", "code": 1000}, raises=[ExceptionGroup])
    assert row["status"] == "success"


async def test_a_client_that_is_gone_when_it_is_sent_something_leaves_an_interrupted_run() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "word"})

    async def send(message: Any) -> None:
        if message["type"] == "websocket.send":
            raise OSError("gone")

    wrapped = RunMiddleware(app, settings=SkeinoSettings(), track_websockets=True)
    async with wrapped.tracker.lifespan():
        with pytest.raises(OSError, match="gone"):
            await wrapped({"type": "websocket", "path": "/", "headers": []}, asyncio.Queue[Any]().get, send)
        (run,) = await store_of(wrapped).search_runs()
        row = await ended(store_of(wrapped), run["run_id"])
    assert row["error"] is not None
    assert (row["status"], row["error"]["code"]) == ("interrupted", "client_disconnected")


async def test_a_connection_whose_thread_another_run_takes_is_interrupted(settings: SkeinoSettings) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        run, graph = scope["state"]["run"], compiled(scope["state"]["checkpointer"])
        await send({"type": "websocket.accept"})
        await graph.ainvoke({"words": ["a"]}, run.config)
        begun.set()
        await go_on.wait()
        await graph.ainvoke({"words": ["b"]}, run.config)

    wrapped = RunMiddleware(app, settings=settings, track_websockets=True, thread_path="/threads/{thread_id}")
    tracker = wrapped.tracker
    scope = {"type": "websocket", "path": "/threads/t", "headers": [], "state": {}}

    async def send(message: Any) -> None:
        pass

    async with tracker.lifespan():
        connection = asyncio.create_task(wrapped(scope, asyncio.Queue[Any]().get, send))
        await begun.wait()
        async with tracker.run(thread_id="t", multitask_strategy="interrupt") as other:
            await compiled(tracker.checkpointer).ainvoke({"words": ["c"]}, other.config)
        go_on.set()
        with pytest.raises(RunInterruptedError):
            await connection
        rows = await store_of(wrapped).search_runs(thread_id="t")
        row = await ended(store_of(wrapped), next(row["run_id"] for row in rows if row["run_id"] != other.run_id))
        thread = await store_of(wrapped).get_thread("t")
    assert row["error"] is not None
    assert (row["status"], row["error"]["code"]) == ("interrupted", "run_interrupted")
    assert thread is not None
    assert thread["status"] == "idle"


def test_each_message_can_be_a_run_of_its_own() -> None:
    tracker = RunTracker(SkeinoSettings())

    async def talk(websocket: WebSocket) -> None:
        assert websocket.state.run is None
        await websocket.accept()
        graph = compiled(websocket.state.checkpointer)
        async for text in websocket.iter_text():
            async with tracker.run(thread_id="t1") as run:
                words = (await graph.ainvoke({"words": [text]}, run.config))["words"]
            await websocket.send_json({"run_id": run.run_id, "words": words})

    app = Starlette(routes=[WebSocketRoute("/ws", talk)])
    app.add_middleware(RunMiddleware, tracker=tracker)
    with TestClient(app) as client, client.websocket_connect("/ws") as websocket:
        websocket.send_text("a")
        first = websocket.receive_json()
        websocket.send_text("b")
        second = websocket.receive_json()
    assert first["run_id"] != second["run_id"]
    assert second["words"] == ["a", "echo a", "b", "echo b"]
