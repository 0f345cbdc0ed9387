"""An application for each cell of the table, on a SQLite file, so that its reads and writes are real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from skeino import SkeinoSettings
from skeino.persistence import MetadataStoreProtocol, RunRow
from skeino_asgi import RunTracker
from tests.asgi.conftest import connected, ended
from tests.frameworks.recipe import Recipe
from tests.frameworks.table import CELLS, Cell
from tests.http_client import httpx


@pytest.fixture(params=CELLS, ids=str)
def cell(request: pytest.FixtureRequest) -> Cell:
    """Each cell of the table in turn."""
    cell: Cell = request.param
    return cell


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    uri = str(tmp_path / "skeino.db")
    return Recipe(RunTracker(SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=uri)))


@dataclass(frozen=True)
class Client:
    """A client of a cell's application."""

    cell: Cell
    http: Any
    tracker: RunTracker

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        response: httpx.Response = await self.http.request(method, self.cell.prefix + path, **options)
        return response

    async def run_of(self, response: httpx.Response) -> RunRow:
        """The row of the run that the response names, once it has ended."""
        return await ended(self.store, response.headers["x-run-id"])

    @property
    def store(self) -> MetadataStoreProtocol:
        return self.tracker.metadata_store


@asynccontextmanager
async def client_of(cell: Cell, recipe: Recipe) -> AsyncIterator[Client]:
    """A client of the cell's application, which is started and shut down as the cell's server does."""
    app = cell.build(recipe)
    if cell.way.lifespan:
        async with connected(with_its_own_state(app)) as http:
            yield Client(cell, http, recipe.tracker)
        return
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield Client(cell, http, recipe.tracker)
        await recipe.tracker.openings.release(
            recipe.tracker.openings.here()
        )  # which the end of the event loop does otherwise


def with_its_own_state(app: ASGIApp) -> ASGIApp:
    """Each request with a copy of the lifespan's state, as servers do it; asgi-lifespan hands them all the same one.

    Litestar keeps in it what it knows of a request, the body too.
    """

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope["state"] = dict(scope["state"])
        await app(scope, receive, send)

    return called
