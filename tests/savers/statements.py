"""How many statements real servers are sent."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from pymongo import MongoClient

from skeino import SkeinoSettings
from skeino.persistence.sqlite.readers import Readers


@contextmanager
def counted_statements(settings: SkeinoSettings) -> Iterator[Callable[[], int]]:
    """Tells how many SELECTs, or finds and their like, there have been since."""
    counting = {"sqlite": _of_sqlite, "postgres": _of_postgres, "mongodb": _of_mongodb}
    with pytest.MonkeyPatch.context() as patch:
        yield from counting[settings.checkpointer_scheme](settings, patch)


def _of_sqlite(settings: SkeinoSettings, patch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    statements: list[str] = []
    read = Readers._read

    def traced(self: Readers, asked: Sequence[tuple[Any, Any]]) -> Any:
        def traced_work(work: Any, connection: sqlite3.Connection) -> Any:
            connection.set_trace_callback(statements.append)
            try:
                return work(connection)
            finally:
                connection.set_trace_callback(None)

        return read(self, [(partial(traced_work, work), future) for work, future in asked])

    patch.setattr(Readers, "_read", traced)
    yield lambda: len(statements)


def _of_postgres(settings: SkeinoSettings, patch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    statements: list[Any] = []
    execute = psycopg.AsyncCursor.execute

    async def counted(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        statements.append(query)
        return await execute(self, query, *arguments, **options)

    patch.setattr(psycopg.AsyncCursor, "execute", counted)
    yield lambda: len(statements)


def _of_mongodb(settings: SkeinoSettings, patch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """The server's own profile (https://www.mongodb.com/docs/manual/tutorial/manage-the-database-profiler/)."""
    with MongoClient[Any](settings.checkpointer_uri) as client:
        database = client.get_default_database()
        database.command("profile", 2)
        try:
            yield lambda: database["system.profile"].count_documents(
                {"op": {"$in": ["query", "getmore", "command"]}, "ns": {"$not": {"$regex": r"system\.profile|\$cmd"}}}
            )
        finally:
            database.command("profile", 0)
            database["system.profile"].drop()
