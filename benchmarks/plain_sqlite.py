"""Runs in a SQLite file, tracked by hand: a connection for each transaction, one for all, and what `sqlite3` can do.

By hand a run is two transactions, its start and its finish; or five, where each change is an operation of its own. The
file has a write-ahead log and a commit waits for the disk (`synchronous=FULL`, the default), as with skeino.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from typing import Any

import aiosqlite

from benchmarks import rows
from benchmarks.servers import Place
from benchmarks.throughput import Variant, batching, stepping

INSERT_THREAD = """
    INSERT INTO app_threads (thread_id, status, metadata, config, created_at, updated_at)
    VALUES (:thread_id, 'idle', '{}', '{}', :now, :now) ON CONFLICT DO NOTHING
"""
INSERT_RUN = """
    INSERT INTO app_runs (run_id, thread_id, worker_id, status, metadata, kwargs, created_at, started_at)
    VALUES (:run_id, :thread_id, :worker_id, 'running', '{}', :kwargs, :now, :now)
"""
INSERT_PENDING_RUN = INSERT_RUN.replace("'running'", "'pending'")
SET_RUNNING = """
    UPDATE app_runs SET status = 'running', started_at = :now WHERE run_id = :run_id AND status = 'pending'
"""
UPDATE_RUN = """
    UPDATE app_runs SET status = 'success', finished_at = :now, http_status = 200, checkpoint_count = 5
    WHERE run_id = :run_id AND worker_id = :worker_id AND status = 'running'
"""
UPDATE_THREAD = "UPDATE app_threads SET status = 'idle', updated_at = :now WHERE thread_id = :thread_id"

Transactions = Mapping[str, Sequence[Sequence[str]]]
"""The statements of a run's start and of its finish, by transaction."""

TWO_TRANSACTIONS: Transactions = {
    "start": [[INSERT_THREAD, INSERT_RUN]],
    "finish": [[UPDATE_RUN, UPDATE_THREAD]],
}
FIVE_OPERATIONS: Transactions = {
    "start": [[INSERT_THREAD], [INSERT_PENDING_RUN], [SET_RUNNING]],
    "finish": [[UPDATE_RUN], [UPDATE_THREAD]],
}
"""As a store has them that has a method for each change."""

PATIENCE = 60.0
"""Seconds for SQLite's lock; the default of 5 does not last for 32 that write at once."""

Connections = Callable[[], AbstractAsyncContextManager[aiosqlite.Connection]]
Step = Callable[[int], Awaitable[None]]


@asynccontextmanager
async def variants(place: Place) -> AsyncIterator[dict[str, Variant]]:
    path = await place.with_tables()

    @asynccontextmanager
    async def new() -> AsyncIterator[aiosqlite.Connection]:
        async with aiosqlite.connect(path, timeout=PATIENCE) as connection:
            yield connection

    async with _the_only(await place.with_tables()) as one, _the_only(await place.with_tables()) as another:
        with closing(sqlite3.connect(await place.with_tables(), check_same_thread=False)) as blocking:
            yield {
                "five operations": _plain(another, FIVE_OPERATIONS),
                "a connection for each": _plain(new),
                "one connection": _plain(one),
                "the limit": batching(lambda numbers: _write(blocking, numbers)),
            }


@asynccontextmanager
async def _the_only(path: str) -> AsyncIterator[Connections]:
    """One connection, which its callers have in turns: without, one's commit would end the transaction of another."""
    async with aiosqlite.connect(path) as shared:
        lock = asyncio.Lock()

        @asynccontextmanager
        async def in_turns() -> AsyncIterator[aiosqlite.Connection]:
            async with lock:
                yield shared

        yield in_turns


def _plain(connections: Connections, transactions: Transactions = TWO_TRANSACTIONS) -> Variant:
    def step(values_of: Callable[[int], dict[str, Any]], transactions: Sequence[Sequence[str]]) -> Step:
        async def write(number: int) -> None:
            values = _as_text(values_of(number))
            for statements in transactions:
                async with connections() as connection:
                    for statement in statements:
                        await connection.execute(statement, values)
                    await connection.commit()

        return write

    return stepping(
        {
            "start": step(rows.beginning, transactions["start"]),
            "finish": step(rows.end, transactions["finish"]),
        }
    )


def _write(connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
    beginnings = [_as_text(rows.beginning(number)) for number in numbers]
    with connection:
        connection.executemany(INSERT_THREAD, beginnings)
        connection.executemany(INSERT_RUN, beginnings)
    ends = [_as_text(rows.end(number)) for number in numbers]
    with connection:
        connection.executemany(UPDATE_RUN, ends)
        connection.executemany(UPDATE_THREAD, ends)


def _as_text(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "now": values["now"].isoformat(timespec="microseconds")}
