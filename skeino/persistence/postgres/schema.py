"""The tables of a PostgreSQL database: LangGraph's own, made by its saver, and skeino's, versioned."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, LiteralString

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg.rows import DictRow

from skeino.errors import SchemaError, StoreUnavailableError

Connection = AsyncConnection[DictRow]

MIGRATIONS: Final[tuple[LiteralString, ...]] = (
    """
    CREATE TABLE app_threads (
        thread_id text COLLATE "C" PRIMARY KEY,
        owner text,
        status text NOT NULL CHECK (status IN ('idle', 'interrupted', 'error')),
        metadata jsonb NOT NULL,
        config jsonb NOT NULL,
        ttl_strategy text CHECK (ttl_strategy IN ('delete', 'keep_latest')),
        ttl_minutes double precision,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL
    );
    CREATE INDEX app_threads_updated ON app_threads (updated_at, thread_id);
    CREATE INDEX app_threads_created ON app_threads (created_at, thread_id);
    CREATE TABLE app_runs (
        run_id uuid PRIMARY KEY,
        thread_id text COLLATE "C" REFERENCES app_threads (thread_id) ON DELETE CASCADE,
        owner text,
        worker_id text NOT NULL,
        status text NOT NULL
            CHECK (status IN ('pending', 'running', 'success', 'error', 'timeout', 'interrupted')),
        metadata jsonb NOT NULL,
        kwargs jsonb NOT NULL,
        error jsonb,
        http_status integer,
        created_at timestamptz NOT NULL,
        started_at timestamptz NOT NULL,
        finished_at timestamptz,
        checkpoint_count integer NOT NULL DEFAULT 0,
        first_checkpoint_id text,
        last_checkpoint_id text,
        paused boolean NOT NULL DEFAULT false,
        late_outcome jsonb
    );
    CREATE INDEX app_runs_of_thread ON app_runs (thread_id, created_at, run_id);
    CREATE INDEX app_runs_created ON app_runs (created_at, run_id);
    CREATE INDEX app_runs_active ON app_runs (thread_id) WHERE status IN ('pending', 'running');
    CREATE INDEX app_runs_of_worker ON app_runs (worker_id) WHERE status IN ('pending', 'running');
    CREATE TABLE app_workers (
        worker_id text COLLATE "C" PRIMARY KEY,
        started_at timestamptz NOT NULL,
        expires_at timestamptz NOT NULL,
        seconds double precision NOT NULL,
        lost_at timestamptz
    );
    """,
)
"""One entry for each version, in order; a version that has been released never changes."""

VERSION: Final = len(MIGRATIONS)

# The key is "skeino" in hexadecimal. Written without a parameter, the statement goes by the simple protocol: by
# the extended one its portal would keep a snapshot open until the transaction's next statement.
TRY_LOCK: Final = "SELECT pg_try_advisory_xact_lock(x'736B65696E6F'::bigint) AS done"
_LOCK_TIMEOUT: Final = 60.0
_TABLES: Final = ("checkpoint_migrations", "checkpoints", "checkpoint_blobs", "checkpoint_writes")
_OUR_TABLES: Final = ("app_schema", "app_threads", "app_runs", "app_workers")


async def create(connection: Connection, open_another: Callable[[], Awaitable[Connection]]) -> None:
    """Make what is missing. Safe with many processes at once: one does it, the others wait and find it done.

    Args:
        connection: where the tables are made.
        open_another: opens a second connection, which holds the lock meanwhile; used only if work is to be done.

    Raises:
        SchemaError: the database's schema is newer than this code.
        StoreUnavailableError: another process has held the set-up for a minute.
    """
    if await _is_complete(connection):
        return
    async with await open_another() as guard, _alone(guard):
        await AsyncPostgresSaver(connection).setup()
        async with connection.transaction():
            await connection.execute("CREATE TABLE IF NOT EXISTS app_schema (version integer NOT NULL)")
            version = await _version(connection)
            for migration in MIGRATIONS[version:]:
                await connection.execute(migration)
            if version < VERSION:
                await connection.execute("DELETE FROM app_schema")
                await connection.execute("INSERT INTO app_schema VALUES (%s)", (VERSION,))


async def verify(connection: Connection) -> None:
    """Check that everything is there.

    Raises:
        SchemaError: a table is missing, or the schema is of another version.
    """
    missing = await _missing(connection, (*_TABLES, *_OUR_TABLES))
    if missing:
        raise SchemaError(
            f"The database lacks the tables {', '.join(missing)}: start once with setup_schema=True, as a role that "
            "may CREATE."
        )
    if not await _is_complete(connection):
        raise SchemaError("The database has an older schema: start once with setup_schema=True to bring it up to date.")


async def _is_complete(connection: Connection) -> bool:
    if await _missing(connection, (*_TABLES, *_OUR_TABLES)):
        return False
    cursor = await connection.execute("SELECT max(v) AS version FROM checkpoint_migrations")
    langgraphs = ((await cursor.fetchone()) or {}).get("version")
    return await _version(connection) == VERSION and langgraphs == len(AsyncPostgresSaver.MIGRATIONS) - 1


async def _missing(connection: Connection, tables: tuple[str, ...]) -> list[str]:
    cursor = await connection.execute(
        "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NULL", (list(tables),)
    )
    return [row["name"] for row in await cursor.fetchall()]


async def _version(connection: Connection) -> int:
    cursor = await connection.execute("SELECT max(version) AS version FROM app_schema")
    version: int = ((await cursor.fetchone()) or {}).get("version") or 0
    if version > VERSION:
        raise SchemaError(
            f"The database has schema version {version}, this skeino-asgi knows {VERSION}: install a newer one."
        )
    return version


@asynccontextmanager
async def _alone(guard: Connection) -> AsyncIterator[None]:
    """Hold skeino's advisory lock, in a transaction, which a pooler ties to one session.

    It is polled for, each time in a new transaction: `CREATE INDEX CONCURRENTLY` waits for every snapshot that
    is older than its own, so a session that waits for the lock, and keeps a snapshot meanwhile, hangs both.
    """
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while True:
        async with guard.transaction():
            cursor = await guard.execute(TRY_LOCK)
            if ((await cursor.fetchone()) or {}).get("done"):
                yield
                return
        if time.monotonic() > deadline:
            raise StoreUnavailableError("Another process has been setting up the database for a minute: try again.")
        await asyncio.sleep(random.uniform(0.05, 0.25))
