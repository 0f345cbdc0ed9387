"""Databases of every scheme, memory included: made for one harness, opened, emptied, and read past skeino."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from typing import Any, Final, TypeVar

import psycopg
from pymongo import MongoClient

from skeino import SkeinoSettings
from skeino.persistence import MetadataStoreProtocol
from skeino.testing import everything
from skeino_asgi import RunTracker
from tests.chaos.places import SCHEMES, place_of
from tests.contract.backends import empty, empty_mongodb

T = TypeVar("T")

ALL_SCHEMES: Final = ("memory", *SCHEMES)


class Bench:
    """One backend, open, on an event loop of its own that runs while something is asked of it."""

    def __init__(self, settings: SkeinoSettings, clear: Callable[[], None]) -> None:
        self._settings = settings
        self._clear = clear
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self.tracker: RunTracker | None = None

    def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.get_loop().run_until_complete(coroutine)  # `Runner.run` sees to signals, each time

    def empty(self) -> RunTracker:
        """The tracker, with nothing in its database."""
        if self.tracker is None or self._settings.checkpointer_scheme == "memory":
            self.do(self._stack.aclose())
            self.tracker = RunTracker(self._settings)
            self.do(self._stack.enter_async_context(self.tracker.lifespan()))
        self._clear()
        return self.tracker

    def close(self) -> None:
        self.do(self._stack.aclose())
        self._runner.close()


@contextmanager
def bench_of(scheme: str, uri: str | None) -> Iterator[Bench]:
    """The scheme's backend; `uri` is of a database for this alone."""
    # Without leases: the workers here are names, and would be taken for dead.
    settings = SkeinoSettings(checkpointer_scheme=scheme, checkpointer_uri=uri, lease_seconds=0)
    bench = Bench(settings, lambda: empty_database(scheme, uri))
    try:
        yield bench
    finally:
        bench.close()


@contextmanager
def new_database(scheme: str) -> Iterator[str | None]:
    """The URI of a database for this alone, its server started for it; None in memory."""
    if scheme == "memory":
        yield None
        return
    with place_of(scheme) as place:
        yield place.empty()


def empty_database(scheme: str, uri: str | None) -> None:
    """Delete all rows and checkpoints, but for the schema's versions. In memory there is nothing to be done here."""
    if scheme == "sqlite":
        _empty_sqlite(str(uri))
    elif scheme == "postgres":
        empty(str(uri))
    elif scheme == "mongodb":
        empty_mongodb(str(uri))


async def rows_as_text(scheme: str, uri: str | None, store: MetadataStoreProtocol) -> list[str]:
    """The rows of threads and runs, as the database has them."""
    tables = ("app_threads", "app_runs")
    if scheme == "sqlite":
        with closing(sqlite3.connect(str(uri))) as connection:
            return [str(row) for name in tables for row in connection.execute(f"SELECT * FROM {name}")]
    if scheme == "postgres":
        with psycopg.connect(str(uri)) as connection:
            statements: tuple[Any, ...] = tuple(f"SELECT t::text FROM {name} AS t" for name in tables)
            return [row[0] for statement in statements for row in connection.execute(statement)]
    if scheme == "mongodb":
        with MongoClient[dict[str, Any]](str(uri)) as client:
            database = client.get_default_database()
            return [str(document) for name in tables for document in database[name].find()]
    threads, runs = await everything(store)
    return [str(row) for row in (*threads, *runs)]


def _empty_sqlite(path: str) -> None:
    with closing(sqlite3.connect(path, timeout=10)) as connection, connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if name != "app_schema" and not name.startswith("sqlite_"):
                connection.execute(f'DELETE FROM "{name}"')
