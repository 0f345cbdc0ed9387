"""The database is away when a request begins, or ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from skeino import SkeinoSettings
from skeino_asgi import RunMiddleware
from tests.asgi.conftest import answering, connected, ended, store_of
from tests.servers.postgres import LocalPostgresServer


def _settings(server: LocalPostgresServer, **changes: Any) -> SkeinoSettings:
    options = {"pool_timeout": 1.0, "connect_timeout": 2.0}
    return SkeinoSettings(
        checkpointer_scheme="postgres",
        checkpointer_uri=server.create_database(),
        checkpointer_options=options,
        **changes,
    )


async def test_a_request_is_refused_while_the_database_is_down_and_served_when_it_is_back(
    private_postgres_server: LocalPostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    app = RunMiddleware(answering(), settings=_settings(private_postgres_server))
    async with connected(app) as client:
        assert (await client.post("/")).status_code == 200
        await asyncio.to_thread(private_postgres_server.stop)
        try:
            refused = await client.post("/")
        finally:
            await asyncio.to_thread(private_postgres_server.start)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"] == "store_unavailable"
        attempts = 20
        while (back := await client.post("/")).status_code != 200 and (attempts := attempts - 1):
            pass
        assert (await ended(store_of(app), back.headers["x-run-id"]))["status"] == "success"
    assert private_postgres_server.password not in caplog.text


async def test_or_served_without_a_run_if_the_settings_say_so(private_postgres_server: LocalPostgresServer) -> None:
    app = RunMiddleware(answering(), settings=_settings(private_postgres_server, on_store_error="untracked"))
    async with connected(app) as client:
        await asyncio.to_thread(private_postgres_server.stop)
        try:
            served = await client.post("/")
        finally:
            await asyncio.to_thread(private_postgres_server.start)
        assert served.status_code == 200
        assert "x-run-id" not in served.headers


async def test_the_end_of_a_run_is_written_when_the_database_is_back(
    private_postgres_server: LocalPostgresServer,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await asyncio.to_thread(private_postgres_server.stop)
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=_settings(private_postgres_server))
    async with connected(wrapped) as client:
        response = await client.post("/")
        await asyncio.to_thread(private_postgres_server.start)
        assert response.status_code == 200
        assert (await ended(store_of(wrapped), response.headers["x-run-id"]))["status"] == "success"
