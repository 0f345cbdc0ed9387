"""The settings of every scheme, and a plain application around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asgi_lifespan import LifespanManager

from skeino import SkeinoSettings
from skeino.persistence import MetadataStoreProtocol, RunRow
from skeino_asgi import RunMiddleware
from tests.http_client import httpx

Connect = Callable[[Any], Any]


@pytest.fixture(
    params=[
        "memory",
        "sqlite",
        pytest.param("postgres", marks=pytest.mark.postgres),
        pytest.param("mongodb", marks=pytest.mark.mongodb),
    ]
)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> SkeinoSettings:
    """Each scheme in turn, on a fresh database."""
    if request.param == "sqlite":
        return SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(tmp_path / "skeino.db"))
    if request.param == "postgres":
        return SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=request.getfixturevalue("postgres_dsn"))
    if request.param == "mongodb":
        return SkeinoSettings(checkpointer_scheme="mongodb", checkpointer_uri=request.getfixturevalue("mongodb_uri"))
    return SkeinoSettings()


@asynccontextmanager
async def connected(app: Any) -> AsyncIterator[Any]:
    """An httpx client of the application, its lifespan run by asgi-lifespan."""
    async with LifespanManager(app) as manager:
        transport = httpx.ASGITransport(app=manager.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


async def ended(store: MetadataStoreProtocol, run_id: str) -> RunRow:
    """The run's row once it has ended: that is committed soon after the response, not before it."""
    import asyncio

    async with asyncio.timeout(10):
        while True:
            row = await store.get_run(run_id)
            assert row is not None
            if row["status"] not in ("pending", "running"):
                return row
            await asyncio.sleep(0.005)


def answering(status: int = 200) -> Callable[..., Awaitable[None]]:
    """A bare application that answers every request so, and knows no lifespan."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    return app


def store_of(app: RunMiddleware) -> MetadataStoreProtocol:
    """The store that the middleware has open on this event loop."""
    return app.tracker.metadata_store
