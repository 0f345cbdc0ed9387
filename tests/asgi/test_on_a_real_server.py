"""What only a real server shows: keep-alive connections, clients that leave, shutdown under load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from skeino import SkeinoSettings, current_run
from skeino_asgi import RunMiddleware
from tests.asgi.conftest import answering
from tests.asgi.live_server import served, wait_until
from tests.http_client import httpx
from tests.servers.process import free_port

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


def _streaming_app(settings: SkeinoSettings) -> Starlette:
    async def words() -> Any:
        for number in range(1000):
            yield f"word {number}\n"
            await asyncio.sleep(0.01)

    async def stream(request: Any) -> StreamingResponse:
        return StreamingResponse(words())

    async def status(request: Any) -> JSONResponse:
        row = await request.state.metadata_store.get_run(request.path_params["run_id"])
        return JSONResponse({"status": row["status"], "error": row["error"], "http_status": row["http_status"]})

    app = Starlette(routes=[Route("/stream", stream), Route("/runs/{run_id}", status)])
    app.add_middleware(RunMiddleware, settings=settings, exclude=["/runs/*"])
    return app


def test_a_client_that_leaves_in_mid_stream_leaves_an_interrupted_run(settings: SkeinoSettings) -> None:
    with served(_streaming_app(settings)) as url:
        with httpx.stream("GET", f"{url}/stream") as response:
            run_id = response.headers["x-run-id"]
            lines = response.iter_lines()
            assert next(lines) == "word 0"
            assert httpx.get(f"{url}/runs/{run_id}").json()["status"] == "running"
        row: dict[str, Any] = {}

        def has_ended() -> bool:
            row.update(httpx.get(f"{url}/runs/{run_id}").json())
            return bool(row["status"] != "running")

        wait_until(has_ended)
    assert row["status"] == "interrupted"
    assert row["error"]["code"] == "client_disconnected"
    assert row["http_status"] == 200


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
