"""Tables with many rows in them: so many threads and as many runs, made up, and put there the quickest way.

Whatever is looked for has as many rows in a large table as in a small one, so that a query's time says how the table's
size counts, and not the answer's. Ten runs are active: how many are at work does not depend on how many there were.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, TypeVar

import psycopg
from pymongo import MongoClient

from benchmarks import rows
from benchmarks.servers import Place
from skeino.persistence import RunRow, ThreadRow
from skeino.persistence.mongodb.documents import run_document, thread_document
from skeino.persistence.mongodb.schema import INDEXES
from skeino.persistence.postgres import statements as of_postgres
from skeino.persistence.rows import RunStatus
from skeino.persistence.sqlite import statements as of_sqlite

T = TypeVar("T")

LAST = datetime(2026, 1, 1, tzinfo=UTC)
"""When the newest row was made; each of the others ten seconds before the next."""

SMALL_OWNER = "owner-small"
RARE = 10
"""Rows of what is rare, however many there are."""

_BATCH = 10_000


async def filled(place: Place, number: int, progress: Callable[[float], object]) -> str:
    """The URI of a new database with so many threads and runs; `progress` is told which part of them is written."""
    uri = await place.with_tables()

    def counted(made: Iterator[T]) -> Iterator[T]:
        for count, one in enumerate(made, 1):
            yield one
            if count % _BATCH == 0 or count == number:
                progress((_BATCH if count % _BATCH == 0 else count % _BATCH) / (2 * number))

    _FILL[place.scheme](uri, counted(threads(number)), counted(runs(number)))
    return uri


def threads(number: int) -> Iterator[ThreadRow]:
    """So many threads, the oldest first."""
    for index in range(number):
        created = _created(index, number)
        yield ThreadRow(
            thread_id=rows.thread_id(index),
            owner=_owner(index, number),
            status="interrupted" if _is_rare(index, number, 2) else "error" if index % 50 == 1 else "idle",
            metadata=_metadata(index),
            config={},
            ttl=None,
            created_at=created,
            updated_at=created + timedelta(seconds=5),
        )


def runs(number: int) -> Iterator[RunRow]:
    """A run for each thread; but of each thousand threads the first has ten, and the next nine have none."""
    for index in range(number):
        created = _created(index, number)
        thread = index - index % 1000 if index % 1000 < RARE else index
        active = _is_rare(index, number, 50 % (number // RARE))  # not on the threads with ten runs, if there are more
        yield RunRow(
            run_id=rows.run_id(index),
            thread_id=rows.thread_id(thread),
            owner=_owner(thread, number),
            worker_id=rows.WORKER,
            status="running" if active else _ended(index, number),
            metadata=_metadata(index),
            kwargs=rows.KWARGS,
            error=None,
            http_status=None if active else 200,
            created_at=created,
            started_at=created,
            finished_at=None if active else created + timedelta(seconds=5),
            checkpoint_count=0 if active else 5,
            first_checkpoint_id=None,
            last_checkpoint_id=None,
            paused=False,
            late_outcome=None,
        )


def _ended(index: int, number: int) -> RunStatus:
    return "timeout" if _is_rare(index, number, 3) else "error" if index % 50 == 1 else "success"


def rare_metadata(number: int) -> dict[str, str]:
    """What ten neighbours in the middle have in their metadata, and no other."""
    return {"user": _metadata(number // 2)["user"]}


def _metadata(index: int) -> dict[str, Any]:
    return {"user": f"user-{index // RARE}", "channel": ("web", "mail", "app")[index % 3], "priority": index % 5}


def _owner(index: int, number: int) -> str:
    return SMALL_OWNER if _is_rare(index, number, 0) else f"owner-{index % 9}"


def _is_rare(index: int, number: int, remainder: int) -> bool:
    return index % (number // RARE) == remainder


def _created(index: int, number: int) -> datetime:
    return LAST - timedelta(seconds=10 * (number - 1 - index))


def _fill_sqlite(path: str, threads: Iterable[ThreadRow], runs: Iterable[RunRow]) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        with connection:
            for insert, rows in (
                (of_sqlite.INSERT_THREAD, map(of_sqlite.thread_values, threads)),
                (of_sqlite.INSERT_RUN, map(of_sqlite.run_values, runs)),
            ):
                connection.executemany(insert.text, map(insert.values_of, rows))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _fill_postgres(dsn: str, threads: Iterable[ThreadRow], runs: Iterable[RunRow]) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        with connection.transaction():
            _copy(connection, "app_threads", map(of_postgres.thread_values, threads), _THREAD_COLUMNS)
            _copy(connection, "app_runs", map(of_postgres.run_values, runs), of_postgres.RUN_COLUMNS)
        connection.execute("VACUUM (ANALYZE) app_threads, app_runs")  # as autovacuum does before long


_THREAD_COLUMNS = (
    *("thread_id", "owner", "status", "metadata", "config"),
    *("ttl_strategy", "ttl_minutes", "created_at", "updated_at"),
)


def _copy(
    connection: psycopg.Connection[Any], table: str, made: Iterable[dict[str, Any]], columns: Sequence[str]
) -> None:
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:  # type: ignore[arg-type,unused-ignore]
        for values in made:
            copy.write_row([values[column] for column in columns])


def _fill_mongodb(uri: str, threads: Iterable[ThreadRow], runs: Iterable[RunRow]) -> None:
    with MongoClient[dict[str, Any]](uri) as client:
        database = client.get_default_database()
        for collection, documents in (
            (database.app_threads, map(thread_document, threads)),
            (database.app_runs, map(run_document, runs)),
        ):
            collection.drop_indexes()  # made at the end, they cost half
            while batch := list(islice(documents, _BATCH)):
                collection.insert_many(batch, ordered=False)
            collection.create_indexes(INDEXES[collection.name])


_FILL = {"sqlite": _fill_sqlite, "postgres": _fill_postgres, "mongodb": _fill_mongodb}
