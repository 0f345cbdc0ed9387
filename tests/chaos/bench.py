"""Databases of every scheme, memory included: made for one harness, emptied, and read past skeino."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import psycopg
from pymongo import MongoClient

from skeino.persistence import MetadataStoreProtocol
from skeino.testing import everything
from tests.chaos.places import SCHEMES, place_of
from tests.contract.backends import empty, empty_mongodb

ALL_SCHEMES: Final = ("memory", *SCHEMES)


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
