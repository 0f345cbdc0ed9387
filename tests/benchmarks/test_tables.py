"""A search looks at about as many rows as it returns, as the database counts them, however many rows there are."""

import sqlite3
from contextlib import closing
from typing import Any

import psycopg
import pytest
from pymongo import MongoClient

from benchmarks.filling import filled
from benchmarks.servers import Place
from benchmarks.tables import queries
from skeino.persistence import open_persistence
from skeino.persistence.sqlite.database import SqliteDatabase

ROWS = 20_000
MANY = 500
"""Ten rows, twice over for those that are busy, and ten active runs."""

BY_METADATA = [name for name in queries(None, ROWS) if "by metadata" in name]  # type: ignore[arg-type]
INDEXED = [name for name in queries(None, ROWS) if name not in BY_METADATA]  # type: ignore[arg-type]


async def looked_at_by_postgres(place: Place, uri: str, name: str) -> int:
    """A session's counts come in when it ends."""

    def count() -> int:
        with psycopg.connect(uri) as connection:
            found = connection.execute(
                "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::int FROM pg_stat_user_tables "
                "WHERE relname IN ('app_threads', 'app_runs')"
            ).fetchone()
            assert found is not None
            return int(found[0])

    before = count()
    await answered(place, uri, name)
    return count() - before


async def looked_at_by_mongodb(place: Place, uri: str, name: str) -> int:
    with MongoClient[dict[str, Any]](uri) as client:
        database = client.get_default_database()
        database.command("profile", 2)
        await answered(place, uri, name)
        database.command("profile", 0)
        examined: int = sum(one.get("docsExamined", 0) for one in database["system.profile"].find())
        database.drop_collection("system.profile")
        return examined


async def answered(place: Place, uri: str, name: str) -> None:
    async with open_persistence(place.settings(uri)) as persistence:
        assert len(await queries(persistence.metadata_store, ROWS)[name]()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [pytest.param("postgres"), pytest.param("mongodb")])
async def test_servers_look_at_few_rows(scheme: str, request: pytest.FixtureRequest) -> None:
    place = Place(scheme, "", request.getfixturevalue(f"{scheme}_server").create_database)
    uri = await filled(place, ROWS, lambda _: None)
    looked_at = looked_at_by_postgres if scheme == "postgres" else looked_at_by_mongodb

    found = {name: await looked_at(place, uri, name) for name in (*INDEXED, *BY_METADATA)}

    assert {name: number for name, number in found.items() if number > MANY} == {}


@pytest.mark.slow
async def test_sqlite_looks_at_few_rows(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in thousands of its machine's instructions: a row that is looked at takes some ten."""
    place = Place("sqlite", "", lambda: str(tmp_path / "filled.db"))
    uri = await filled(place, ROWS, lambda _: None)
    thousands = 0

    def another() -> None:
        nonlocal thousands
        thousands += 1

    async def read(self: SqliteDatabase, statement: str, parameters: Any = ()) -> list[Any]:
        with closing(sqlite3.connect(uri)) as connection:
            connection.set_progress_handler(another, 1000)
            return connection.execute(statement, parameters).fetchall()

    monkeypatch.setattr(SqliteDatabase, "read", read)
    found = {}
    for name in (*INDEXED, *BY_METADATA):
        thousands = 0
        await answered(place, uri, name)
        found[name] = thousands

    assert {name: number for name, number in found.items() if number > 12} == {}
