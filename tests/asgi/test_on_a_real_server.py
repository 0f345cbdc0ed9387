"""What only a real server shows: keep-alive connections, clients that leave, shutdown under load."""

from __future__ import annotations

import asyncio
import json
import operator
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from skeino import SkeinoSettings, current_run
from skeino_asgi import RunMiddleware
from tests.asgi.conftest import answering
from tests.asgi.live_server import served, wait_until
from tests.http_client import httpx
from tests.servers.process import free_port

SERVERS = ("postgres", "mongodb", "redis")
MEGABYTES = 8 * 1024 * 1024


@pytest.mark.parametrize("http", ["h11", "auto"])
def test_after_a_large_post_the_next_untracked_request_on_the_connection_sees_no_run(http: str) -> None:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        run, leaked = scope["state"]["run"], current_run()
        received = 0
        while True:
            message = await receive()
            received += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        answer = {"run": run and run.run_id, "current": leaked and leaked.run_id, "received": received}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    app = RunMiddleware(endpoint, settings=SkeinoSettings(), exclude=["/health"])
    with served(app, http=http) as url, httpx.Client(base_url=url, timeout=30) as client:
        for _ in range(3):
            tracked = client.post("/", content=b"x" * MEGABYTES).json()
            assert tracked["received"] == MEGABYTES
            assert tracked["run"] == tracked["current"] is not None
            untracked = client.get("/health").json()
            assert (untracked["run"], untracked["current"]) == (None, None)


def test_pipelined_requests_do_not_see_each_others_run() -> None:
    seen: list[tuple[str, object]] = []

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.append((scope["path"], current_run()))
            await answering()(scope, receive, send)

    app = RunMiddleware(endpoint, settings=SkeinoSettings(), exclude=["/health"])
    with served(app) as url, socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 10) as connection:
        request = "GET {} HTTP/1.1\r\nHost: test\r\n\r\n"
        connection.sendall("".join(request.format(path) for path in ("/", "/health", "/", "/health")).encode())
        wait_until(lambda: len(seen) == 4)
        assert [run is None for _, run in seen] == [False, True, False, True]


class Talk(TypedDict):
    words: Annotated[list[str], operator.add]


def _talkative(checkpointer: Any) -> Any:
    """A graph that says a word at each step, thousands of them, and so writes a checkpoint at each."""

    async def talk(state: Talk) -> Talk:
        await asyncio.sleep(0.005)
        return {"words": [f"word {len(state['words'])}"]}

    builder = StateGraph(Talk)
    builder.add_node("talk", talk)
    builder.add_edge(START, "talk")
    builder.add_conditional_edges("talk", lambda state: "talk" if len(state["words"]) < 5000 else END)
    return builder.compile(checkpointer=checkpointer)


def _streaming_chat(settings: SkeinoSettings, on_disconnect: Any) -> Starlette:
    async def words(request: Any) -> Any:
        config = {**request.state.run.config, "recursion_limit": 10_000}
        async for step in _talkative(request.state.checkpointer).astream({"words": []}, config, durability="sync"):
            yield step["talk"]["words"][0] + "\n"

    async def stream(request: Any) -> StreamingResponse:
        return StreamingResponse(words(request))

    async def look(request: Any) -> JSONResponse:
        store, run_id = request.state.metadata_store, request.path_params["run_id"]
        run, thread = await store.get_run(run_id), await store.get_thread("t1")
        saver = request.state.checkpointer
        stamped = [one async for one in saver.alist({"configurable": {"thread_id": "t1"}}, filter={"run_id": run_id})]
        names = ("status", "error", "http_status", "checkpoint_count")
        return JSONResponse({name: run[name] for name in names} | {"thread": thread["status"], "stamped": len(stamped)})

    app = Starlette(routes=[Route("/chat", stream, methods=["POST"]), Route("/runs/{run_id}", look)])
    app.add_middleware(RunMiddleware, settings=settings, exclude=["/runs/*"], on_disconnect=on_disconnect)
    return app


@pytest.fixture(params=["memory", "sqlite", *(pytest.param(one, marks=getattr(pytest.mark, one)) for one in SERVERS)])
def any_scheme(request: pytest.FixtureRequest, tmp_path: Path) -> SkeinoSettings:
    """Each scheme in turn, Redis too, whose runs are kept in memory."""
    uri: str | None = None
    if request.param == "redis":
        uri = request.getfixturevalue("redis_dsn")
        return SkeinoSettings(checkpointer_scheme="redis", checkpointer_uri=uri, allow_ephemeral_metadata=True)
    if request.param == "sqlite":
        uri = str(tmp_path / "skeino.db")
    elif request.param != "memory":
        uri = request.getfixturevalue({"postgres": "postgres_dsn", "mongodb": "mongodb_uri"}[request.param])
    return SkeinoSettings(checkpointer_scheme=request.param, checkpointer_uri=uri)


@pytest.mark.parametrize("on_disconnect", ["continue", "cancel"])
def test_a_streaming_chat_whose_reader_leaves_is_interrupted(any_scheme: SkeinoSettings, on_disconnect: str) -> None:
    """The store is at work at any moment: each word is a checkpoint."""
    with served(_streaming_chat(any_scheme, on_disconnect)) as url:
        with httpx.stream("POST", f"{url}/chat", headers={"X-Thread-ID": "t1"}, timeout=30) as response:
            run_id = response.headers["x-run-id"]
            lines = response.iter_lines()
            assert [next(lines) for _ in range(3)] == ["word 0", "word 1", "word 2"]
            during = httpx.get(f"{url}/runs/{run_id}", timeout=30).json()
            assert (during["status"], during["thread"]) == ("running", "busy")
        row: dict[str, Any] = {}

        def has_ended() -> bool:
            row.update(httpx.get(f"{url}/runs/{run_id}", timeout=30).json())
            return bool(row["status"] != "running")

        wait_until(has_ended)
    assert (row["status"], row["thread"], row["http_status"]) == ("interrupted", "interrupted", 200)
    assert row["error"]["code"] == "client_disconnected"
    assert 3 < row["checkpoint_count"] < 5000
    # What was being written when it was cancelled may have been stored without being counted.
    assert row["checkpoint_count"] <= row["stamped"] <= row["checkpoint_count"] + 1


SERVER = """
import asyncio, sys
import uvicorn
from skeino import SkeinoSettings
from skeino_asgi import RunMiddleware

async def app(scope, receive, send):
    assert scope["type"] == "http"
    print("started", scope["state"]["run"].run_id, flush=True)
    await asyncio.sleep(float(scope["path"][1:]))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})

file, port, grace = sys.argv[1:]
settings = SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=file)
uvicorn.run(RunMiddleware(app, settings=settings), host="127.0.0.1", port=int(port), lifespan="on",
            log_level="critical", timeout_graceful_shutdown=int(grace))
"""


@pytest.mark.parametrize(
    ("seconds", "signals", "status", "code"),
    [
        ("0.5", [signal.SIGTERM], "success", None),  # shutdown waits for it
        ("60", [signal.SIGTERM], "interrupted", "cancelled"),  # the grace expires and the task is cancelled
        ("60", [signal.SIGINT, signal.SIGINT], "interrupted", None),  # the lifespan task is cancelled without a word
    ],
)
def test_a_server_that_stops_under_load_leaves_no_run_running(
    tmp_path: Path, seconds: str, signals: list[signal.Signals], status: str, code: str | None
) -> None:
    file, port = tmp_path / "skeino.db", free_port()
    command = [sys.executable, "-c", SERVER, str(file), str(port), "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as server:
        try:
            assert server.stdout is not None
            wait_until(lambda: _listens(port) or server.poll() is not None)
            with socket.create_connection(("127.0.0.1", port), 10) as client:
                client.sendall(f"POST /{seconds} HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n".encode())
                assert server.stdout.readline().startswith("started")
                for one in signals:
                    server.send_signal(one)
                    time.sleep(0.3)  # two signals in one tick would be one
                server.wait(20)
        finally:
            server.kill()
    with sqlite3.connect(file) as connection:
        rows = connection.execute("SELECT status, error FROM app_runs").fetchall()
    connection.close()
    assert [row[0] for row in rows] == [status]
    if code is not None:
        assert json.loads(rows[0][1])["code"] == code


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
