"""What docs/frameworks.md says of single frameworks."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from litestar import Litestar, Request, get
from litestar.middleware import DefineMiddleware
from litestar.testing import TestClient
from quart import Quart, Response, request

from skeino import SkeinoSettings, current_run
from skeino_asgi import RunMiddleware, RunTracker
from tests.asgi.conftest import connected, ended
from tests.asgi.graphs import compiled
from tests.asgi.live_server import served
from tests.frameworks import handlers, litestar_app
from tests.frameworks.page import documented, generated
from tests.frameworks.recipe import Recipe
from tests.frameworks.table import CELLS, Cell


def test_the_page_has_the_tables_that_are_tested() -> None:
    assert documented() == generated(), "docs/frameworks.md says otherwise: run python -m tests.frameworks"


ROUTED = [cell for cell in CELLS if cell.way.name in ("native", "wrapped") and cell.framework.name != "bare ASGI"]


@pytest.mark.parametrize("cell", ROUTED, ids=str)
async def test_a_path_that_does_not_exist_is_a_run_except_natively_in_litestar(cell: Cell, recipe: Recipe) -> None:
    async with connected(cell.build(recipe)) as client:
        response = await client.get("/nowhere")
        assert response.status_code == 404
        assert ("x-run-id" in response.headers) == (str(cell) != "Litestar: native")


async def test_litestar_makes_a_middleware_for_each_handler_and_they_share_a_tracker_only_if_it_is_given() -> None:
    @get("/one")
    async def one(request: Request[Any, Any, Any]) -> int:
        return id(request.state.persistence)

    @get("/two")
    async def two(request: Request[Any, Any, Any]) -> int:
        return id(request.state.persistence)

    async def openings(**options: Any) -> int:
        middleware = DefineMiddleware(RunMiddleware, **options)
        async with connected(Litestar([one, two], middleware=[middleware], logging_config=None)) as client:
            return len({(await client.get(path)).text for path in ("/one", "/two")})

    assert await openings(settings=SkeinoSettings()) == 2
    assert await openings(tracker=RunTracker(SkeinoSettings())) == 1


def test_litestars_own_test_client_gives_each_request_its_own_body(recipe: Recipe) -> None:
    recipe.native = True
    app: Any = litestar_app.build(recipe)
    with TestClient(app) as client:
        client.post("/threads/t1/chat", json={"word": "one"})
        answer = client.post("/threads/t1/chat", json={"word": "two"}).json()
    assert answer["words"] == ["one", "echo one", "two", "echo two"]
    assert recipe.journal == ["start-up, tracker open", "shutdown, tracker open"]


async def test_what_a_quart_background_task_writes_after_its_run_is_stamped_but_not_counted(recipe: Recipe) -> None:
    app = Quart(__name__)
    go_on, written = asyncio.Event(), asyncio.Event()

    async def write_later(state: Any) -> None:
        await go_on.wait()
        assert not state.run.active
        assert current_run() is state.run
        config: Any = {"configurable": {"thread_id": "later"}}
        await compiled(state.checkpointer).ainvoke({"words": ["later"]}, config)
        written.set()

    @app.post("/background")
    async def background() -> str:
        app.add_background_task(write_later, SimpleNamespace(**request.scope["state"]))
        return ""

    async with connected(RunMiddleware(app, tracker=recipe.tracker)) as client:
        response = await client.post("/background")
        row = await ended(recipe.tracker.metadata_store, response.headers["x-run-id"])
        go_on.set()
        await written.wait()
        tuples = recipe.tracker.checkpointer.alist({"configurable": {"thread_id": "later"}})
        assert {one.metadata["run_id"] async for one in tuples} == {row["run_id"]}
        assert await recipe.tracker.metadata_store.get_run(row["run_id"]) == row
    assert (row["status"], row["checkpoint_count"]) == ("success", 0)


def test_a_client_of_quart_that_closes_with_the_last_byte_has_a_response_that_is_complete(tmp_path: Path) -> None:
    """Quart's last message, an empty one, comes after that, and it does not send it if the client has gone."""
    tracker = RunTracker(SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(tmp_path / "skeino.db")))
    app = Quart(__name__)

    @app.post("/chat")
    async def chat() -> str:
        state = SimpleNamespace(**request.scope["state"])
        await compiled(state.checkpointer).ainvoke({"words": ["hello"]}, state.run.config)
        return "done"

    with served(RunMiddleware(app, tracker=tracker)) as url:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 10) as connection:
                connection.sendall(b"POST /chat HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n")
                received = b""
                while not received.endswith(b"done"):
                    received += connection.recv(65536)
    with closing(sqlite3.connect(tmp_path / "skeino.db")) as rows:
        ends = rows.execute("SELECT status, count(*) FROM app_runs GROUP BY status").fetchall()
        threads = rows.execute("SELECT status, count(*) FROM app_threads GROUP BY status").fetchall()
    assert ends == [("success", 20)]
    assert threads == [("idle", 20)]


@pytest.mark.parametrize("unlimited", [False, True])
async def test_quart_cuts_a_stream_short_after_its_response_timeout_and_the_run_says_so(
    recipe: Recipe, unlimited: bool
) -> None:
    app = Quart(__name__)
    app.config["RESPONSE_TIMEOUT"] = 0.05

    @app.get("/stream")
    async def stream() -> Response:
        async def lines() -> AsyncIterator[str]:
            for _ in range(3):
                yield "line\n"
                await asyncio.sleep(0.04)

        response = Response(lines())
        if unlimited:
            response.timeout = None
        return response

    async with connected(RunMiddleware(app, tracker=recipe.tracker)) as client:
        with nullcontext() if unlimited else pytest.raises(AssertionError):  # httpx's transport wants a whole response
            await client.get("/stream")
        (started,) = await recipe.tracker.metadata_store.search_runs()
        row = await ended(recipe.tracker.metadata_store, started["run_id"])
    assert row["status"] == ("success" if unlimited else "error")
    assert unlimited or (row["error"] is not None and row["error"]["code"] == "incomplete_response")


async def test_a_thread_that_is_first_asked_for_while_streaming_is_too_late_for_the_header(recipe: Recipe) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        state = SimpleNamespace(**scope["state"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async for line in handlers.stream(state):
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body"})

    async with connected(RunMiddleware(app, tracker=recipe.tracker)) as client:
        response = await client.post("/")
        row = await ended(recipe.tracker.metadata_store, response.headers["x-run-id"])
    assert row["thread_id"] is not None
    assert "x-thread-id" not in response.headers
