"""Runs in a SQLite file, tracked by hand: a connection for each operation, one for all, and what `sqlite3` can do.

By hand a run is two transactions, its start and its finish; or five, where each change is an operation of its own. The
file has a write-ahead log and a commit waits for the disk (`synchronous=FULL`, the default), as with skeino.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
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
    VALUES (:run_id, :thread_id, :worker_id, :status, '{}', :kwargs, :now, :now)
"""
SET_RUNNING = """
    UPDATE app_runs SET status = 'running', started_at = :now WHERE run_id = :run_id AND status = 'pending'
"""
UPDATE_RUN = """
    UPDATE app_runs SET status = 'success', finished_at = :now, http_status = 200, checkpoint_count = 5
    WHERE run_id = :run_id AND worker_id = :worker_id AND status = 'running'
"""
UPDATE_THREAD = "UPDATE app_threads SET status = 'idle', updated_at = :now WHERE thread_id = :thread_id"

PATIENCE = 60.0
"""Seconds for SQLite's lock; the default of 5 does not last for 32 that write at once."""

Connections = Callable[[], AbstractAsyncContextManager[aiosqlite.Connection]]


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
                "five operations": _five_operations(another),
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


def _plain(connections: Connections) -> Variant:
    async def start(number: int) -> None:
        values = {**_as_text(rows.beginning(number)), "status": "running"}
        async with connections() as connection:
            await connection.execute(INSERT_THREAD, values)
            await connection.execute(INSERT_RUN, values)
            await connection.commit()

    async def finish(number: int) -> None:
        values = _as_text(rows.end(number))
        async with connections() as connection:
            await connection.execute(UPDATE_RUN, values)
            await connection.execute(UPDATE_THREAD, values)
            await connection.commit()

    return stepping({"start": start, "finish": finish})


def _five_operations(connections: Connections) -> Variant:
    """The same, with a commit for each change: as a store does that has a method for each."""

    async def start(number: int) -> None:
        values = {**_as_text(rows.beginning(number)), "status": "pending"}
        for statement in (INSERT_THREAD, INSERT_RUN, SET_RUNNING):
            async with connections() as connection:
                await connection.execute(statement, values)
                await connection.commit()

    async def finish(number: int) -> None:
        values = _as_text(rows.end(number))
        for statement in (UPDATE_RUN, UPDATE_THREAD):
            async with connections() as connection:
                await connection.execute(statement, values)
                await connection.commit()

    return stepping({"start": start, "finish": finish})


def _write(connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
    beginnings = [{**_as_text(rows.beginning(number)), "status": "running"} for number in numbers]
    with connection:
        connection.executemany(INSERT_THREAD, beginnings)
        connection.executemany(INSERT_RUN, beginnings)
    ends = [_as_text(rows.end(number)) for number in numbers]
    with connection:
        connection.executemany(UPDATE_RUN, ends)
        connection.executemany(UPDATE_THREAD, ends)


def _as_text(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "now": values["now"].isoformat(timespec="microseconds")}
