"""Runs in PostgreSQL, tracked by hand: a connection for each transaction, a pool, and what `pgbench` reaches.

By hand a run is two transactions, its start and its finish; or five, where each change is an operation of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from benchmarks import rows
from benchmarks.servers import Place
from benchmarks.throughput import Turn, Variant, stepping

INSERT_THREAD = """
    INSERT INTO app_threads (thread_id, status, metadata, config, created_at, updated_at)
    VALUES (%(thread_id)s, 'idle', '{}', '{}', %(now)s, %(now)s) ON CONFLICT DO NOTHING
"""
INSERT_RUN = """
    INSERT INTO app_runs (run_id, thread_id, worker_id, status, metadata, kwargs, created_at, started_at)
    VALUES (%(run_id)s, %(thread_id)s, %(worker_id)s, 'running', '{}', %(kwargs)s, %(now)s, %(now)s)
"""
INSERT_PENDING_RUN = INSERT_RUN.replace("'running'", "'pending'")
SET_RUNNING = """
    UPDATE app_runs SET status = 'running', started_at = %(now)s WHERE run_id = %(run_id)s AND status = 'pending'
"""
UPDATE_RUN = """
    UPDATE app_runs SET status = 'success', finished_at = %(now)s, http_status = 200, checkpoint_count = 5
    WHERE run_id = %(run_id)s AND worker_id = %(worker_id)s AND status = 'running'
"""
UPDATE_THREAD = "UPDATE app_threads SET status = 'idle', updated_at = %(now)s WHERE thread_id = %(thread_id)s"

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

# The same four as two statements, each a transaction and a round trip.
RUN_ID = "(lpad(to_hex(:turn::int), 8, '0') || lpad(to_hex(:client_id::int), 8, '0') || lpad(to_hex(:n::int), 16, '0'))"
PGBENCH = f"""\
\\set n :n + 1
WITH thread AS (
    INSERT INTO app_threads (thread_id, status, metadata, config, created_at, updated_at)
    VALUES ('thread-' || {RUN_ID}, 'idle', '{{}}', '{{}}', now(), now()) ON CONFLICT DO NOTHING
)
INSERT INTO app_runs (run_id, thread_id, worker_id, status, metadata, kwargs, created_at, started_at)
VALUES (
    {RUN_ID}::uuid, 'thread-' || {RUN_ID}, '{rows.WORKER}', 'running', '{{}}', '{json.dumps(rows.KWARGS)}', now(), now()
);
WITH run AS (
    UPDATE app_runs SET status = 'success', finished_at = now(), http_status = 200, checkpoint_count = 5
    WHERE run_id = {RUN_ID}::uuid AND worker_id = '{rows.WORKER}' AND status = 'running'
)
UPDATE app_threads SET status = 'idle', updated_at = now() WHERE thread_id = 'thread-' || {RUN_ID};
"""

Connections = Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]]
Step = Callable[[int], Awaitable[None]]


@asynccontextmanager
async def variants(place: Place) -> AsyncIterator[dict[str, Variant]]:
    new = connecting(await place.with_tables())
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(pool_of(await place.with_tables()))
        found: dict[str, Variant] = {
            "five operations": stepping(steps(connecting(await place.with_tables()), FIVE_OPERATIONS)),
            "a connection for each": stepping(steps(new)),
            "a pool": stepping(steps(pool.connection)),
        }
        if place.pgbench is not None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            found["the limit"] = _pgbench(place.pgbench, await place.with_tables(), Path(folder))
        yield found


def pool_of(dsn: str, **parameters: Any) -> AsyncConnectionPool[AsyncConnection[Any]]:
    """A pool of ten connections, as many as skeino's has by default."""
    return AsyncConnectionPool(dsn, kwargs=parameters, min_size=10, max_size=10, open=False)


def connecting(dsn: str) -> Connections:
    """A new connection each time."""

    @asynccontextmanager
    async def new() -> AsyncIterator[AsyncConnection[Any]]:
        async with await AsyncConnection.connect(dsn) as connection:
            yield connection

    return new


def steps(connections: Connections, transactions: Transactions = TWO_TRANSACTIONS) -> dict[str, Step]:
    """The start and the finish of a run, given its number; each transaction has a connection."""

    def step(values_of: Callable[[int], dict[str, Any]], transactions: Sequence[Sequence[str]]) -> Step:
        async def write(number: int) -> None:
            values = values_of(number)
            for statements in transactions:
                async with connections() as connection:
                    for statement in statements:
                        await connection.execute(statement, values)

        return write

    return {
        "start": step(rows.beginning, transactions["start"]),
        "finish": step(rows.end, transactions["finish"]),
    }


def _pgbench(pgbench: Path, dsn: str, folder: Path) -> Variant:
    """It counts transactions and no fractions of seconds: how many there will be is known from its turn before."""
    script = folder / "run.sql"
    script.write_text(PGBENCH)
    expected: dict[int, float] = {}
    turns = itertools.count(1)

    async def turn(at_once: int, seconds: float) -> Turn:
        transactions = max(10, round(seconds * expected.get(at_once, 0) / at_once))
        command = [str(pgbench), "--no-vacuum", "--protocol=prepared", f"--file={script}", f"--client={at_once}"]
        command += [f"--transactions={transactions}", f"--define=turn={next(turns)}", "--define=n=0", dsn]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        output, problem = await process.communicate()
        rate = re.search(rb"tps = ([\d.]+) \(without initial connection time\)", output)
        if process.returncode or rate is None:
            raise RuntimeError(f"pgbench failed ({process.returncode}): {problem.decode(errors='replace')}")
        expected[at_once] = float(rate[1])
        return Turn(expected[at_once], {})

    return turn
