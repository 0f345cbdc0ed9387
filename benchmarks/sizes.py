"""What a run, a checkpoint and a graph leave behind, as the database counts it: commits, bytes logged, bytes kept."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, closing, contextmanager
from typing import Any, Protocol

import psycopg
from pymongo import MongoClient

from benchmarks import growth, runs, savers
from benchmarks.servers import Place
from benchmarks.throughput import Effort, Variant
from skeino.persistence import open_persistence

AT_ONCE = (1, 32, 512)
WRITTEN = {
    "a run": ("app_runs", "app_threads"),
    "a checkpoint of 1 kB": ("checkpoints", "checkpoint_blobs", "checkpoint_writes"),
    "a graph of three nodes": ("checkpoints", "checkpoint_blobs", "checkpoint_writes"),
}
"""What is measured, and the tables that keep it; a run's thread is its own, and counts."""

LOGS = {"sqlite": "–", "postgres": "WAL", "mongodb": "oplog"}


class Counters(Protocol):
    """What a database has counted so far."""

    def counted(self) -> dict[str, float]:
        """Its commits, and the bytes of its log."""
        ...

    def kept(self, what: str) -> tuple[int, dict[str, float]]:
        """How many were written, and the bytes that their tables have: all, and of these their indexes."""
        ...


async def measure(place: Place, effort: Effort, progress: Callable[[float], object]) -> dict[str, Any]:
    """The figures of one database; `progress` is told which part of it is done."""
    at_once = [number for number in AT_ONCE if number <= effort.at_most]
    figures: dict[str, Any] = {what: {} for what in WRITTEN}
    for what in WRITTEN:
        for number in at_once:
            figures[what][str(number)] = await _each(place, what, number, effort.seconds)
            progress(1 / (len(WRITTEN) * len(at_once)))
    return {"database": place.version, "each": figures}


async def _each(place: Place, what: str, at_once: int, seconds: float) -> dict[str, float]:
    """The counts for one of so many that were done in this time, without what an opening and a closing cost."""
    uri = await place.with_tables()
    with _COUNTERS[place.scheme](uri) as counters:
        readings = [counters.counted()]
        for lasting in (0.0, seconds):
            async with _working(place, uri, what) as variant:
                if lasting:
                    await variant(at_once, lasting)
            readings.append(counters.counted())
        number, bytes_kept = counters.kept(what)
    first, opened, last = readings
    spent = {name: (last[name] - opened[name]) - (opened[name] - first[name]) for name in first}
    return {name: round(value / number, 3) for name, value in (spent | bytes_kept).items()}


@asynccontextmanager
async def _working(place: Place, uri: str, what: str) -> AsyncIterator[Variant]:
    async with open_persistence(place.settings(uri)) as persistence:
        if what == "a run":
            yield runs.tracked(persistence.metadata_store)
        elif what == "a graph of three nodes":
            yield savers.ainvoke(persistence.checkpointer)
        else:
            yield savers.aput(growth.incompressible(1000))(persistence.checkpointer)


def table(schemes: dict[str, Any]) -> str:
    """The figures as Markdown."""
    numbers = [*next(iter(next(iter(schemes.values()))["each"].values()))]
    headings = [f"{counted}, {number} at once" for counted in ("commits", "bytes of the log") for number in numbers]
    lines = [
        f"| scheme | | {' | '.join(headings)} | bytes kept | of these indexes |",
        "|---|---|" + "---|" * (2 * len(numbers) + 2),
    ]
    for scheme, result in schemes.items():
        for what, figures in result["each"].items():
            cells = [_shown(figures[number].get("commits"), 2) for number in numbers]
            cells += [_shown(figures[number].get("log")) for number in numbers]
            cells += [_shown(figures[numbers[-1]].get(name)) for name in ("kept", "indexes")]
            lines.append(f"| `{scheme}` | {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


# ── How each database counts ─────────────────────────────────────────────────────────────────────────────


class _Postgres:
    """https://www.postgresql.org/docs/current/monitoring-stats.html; a session's counts come in when it ends."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def counted(self) -> dict[str, float]:
        self._until_alone()
        (commits,) = self._row("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
        (log,) = self._row("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        return {"commits": float(commits), "log": float(log)}

    def kept(self, what: str) -> tuple[int, dict[str, float]]:
        self._connection.execute("VACUUM")  # what finished runs have left of their beginnings is written over later
        counted = "run_id" if what == "a run" else "DISTINCT (thread_id, checkpoint_id)"
        if what == "a graph of three nodes":
            counted = "DISTINCT thread_id"
        (number,) = self._row(f"SELECT count({counted}) FROM {WRITTEN[what][0]}")
        (kept, indexes) = self._row(
            "SELECT sum(pg_total_relation_size(name::regclass)), sum(pg_indexes_size(name::regclass)) "
            f"FROM unnest(ARRAY{[*WRITTEN[what]]}) AS name"
        )
        return number, {"kept": float(kept), "indexes": float(indexes)}

    def _until_alone(self) -> None:
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        while self._row(others) != (0,):
            self._row("SELECT pg_sleep(0.01)::text")

    def _row(self, statement: str) -> tuple[Any, ...]:
        found = self._connection.execute(statement).fetchone()  # type: ignore[call-overload,unused-ignore]
        assert found is not None
        return tuple(found)


@contextmanager
def _of_postgres(uri: str) -> Any:
    with psycopg.connect(uri, autocommit=True) as connection:
        yield _Postgres(connection)


class _MongoDB:
    """Transactions committed, and the oplog's entries for this database, which replicas are sent."""

    def __init__(self, client: MongoClient[dict[str, Any]]) -> None:
        self._client = client
        self._database = client.get_default_database()

    def counted(self) -> dict[str, float]:
        status = self._client.admin.command("serverStatus")
        entries = self._client.local["oplog.rs"].aggregate(
            [
                {"$match": {"$or": [{"ns": {"$regex": f"^{self._database.name}\\."}}, {"o.applyOps": {"$exists": 1}}]}},
                {"$group": {"_id": None, "bytes": {"$sum": {"$bsonSize": "$$ROOT"}}}},
            ]
        )
        log = sum(found["bytes"] for found in entries)
        return {"commits": float(status["transactions"]["totalCommitted"]), "log": float(log)}

    def kept(self, what: str) -> tuple[int, dict[str, float]]:
        self._client.admin.command("fsync")  # sizes are those of the files, which are written once a minute
        names = [name for name in WRITTEN[what] if name != "checkpoint_blobs"]
        statistics = [self._database.command("collStats", name) for name in names]
        first = self._database[names[0]]
        number = len(first.distinct("thread_id")) if what == "a graph of three nodes" else first.count_documents({})
        indexes = sum(one["totalIndexSize"] for one in statistics)
        return number, {"kept": indexes + sum(one["storageSize"] for one in statistics), "indexes": indexes}


@contextmanager
def _of_mongodb(uri: str) -> Any:
    with MongoClient[dict[str, Any]](uri) as client:
        yield _MongoDB(client)


class _Sqlite:
    """A SQLite file counts nothing but its pages."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def counted(self) -> dict[str, float]:
        return {}

    def kept(self, what: str) -> tuple[int, dict[str, float]]:
        counted = {"a run": "run_id", "a graph of three nodes": "DISTINCT thread_id"}.get(what, "*")
        (number,) = self._connection.execute(f"SELECT count({counted}) FROM {WRITTEN[what][0]}").fetchone()
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (size,) = self._connection.execute("PRAGMA page_size").fetchone()
        return number, {"kept": float(pages * size)}


@contextmanager
def _of_sqlite(uri: str) -> Any:
    with closing(sqlite3.connect(uri)) as connection:
        yield _Sqlite(connection)


_COUNTERS: dict[str, Callable[[str], AbstractContextManager[Counters]]] = {
    "sqlite": _of_sqlite,
    "postgres": _of_postgres,
    "mongodb": _of_mongodb,
}
