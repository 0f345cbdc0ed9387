"""The tables of a PostgreSQL database: LangGraph's own, made by its saver, and skeino's, versioned."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, LiteralString

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection, IsolationLevel, errors, sql
from psycopg.rows import DictRow

from skeino.errors import SchemaError, StoreUnavailableError
from skeino.persistence.versions import APPLY, PRINT, SchemaState, logger

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
        updated_at timestamptz NOT NULL,
        pruned_at timestamptz,
        queue uuid[] NOT NULL DEFAULT '{}',
        fence bigint NOT NULL DEFAULT (1000000 * extract(epoch FROM clock_timestamp()))::bigint
    );
    CREATE INDEX app_threads_updated ON app_threads (updated_at, thread_id);
    CREATE INDEX app_threads_created ON app_threads (created_at, thread_id);
    CREATE INDEX app_threads_of_owner ON app_threads (owner, updated_at, thread_id) WHERE owner IS NOT NULL;
    CREATE INDEX app_threads_stopped ON app_threads (status, updated_at, thread_id)
        WHERE status IN ('interrupted', 'error');
    CREATE INDEX app_threads_expiring
        ON app_threads (((updated_at AT TIME ZONE 'UTC') + ttl_minutes * interval '1 minute'), thread_id)
        WHERE ttl_minutes IS NOT NULL AND pruned_at IS DISTINCT FROM updated_at;
    CREATE INDEX app_threads_metadata ON app_threads USING gin (metadata jsonb_path_ops) WHERE metadata <> '{}';
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
    CREATE INDEX app_runs_active_created ON app_runs (created_at, run_id) WHERE status IN ('pending', 'running');
    CREATE INDEX app_runs_of_owner ON app_runs (owner, created_at, run_id) WHERE owner IS NOT NULL;
    CREATE INDEX app_runs_failed ON app_runs (status, created_at, run_id)
        WHERE status IN ('error', 'timeout', 'interrupted');
    CREATE INDEX app_runs_metadata ON app_runs USING gin (metadata jsonb_path_ops) WHERE metadata <> '{}';
    CREATE INDEX app_runs_of_worker ON app_runs (worker_id) WHERE status IN ('pending', 'running');
    CREATE TABLE app_workers (
        worker_id text COLLATE "C" PRIMARY KEY,
        started_at timestamptz NOT NULL,
        expires_at timestamptz NOT NULL,
        seconds double precision NOT NULL,
        lost_at timestamptz
    );
    CREATE TABLE app_sweeps (
        name text PRIMARY KEY,
        worker_id text NOT NULL,
        begun_at timestamptz NOT NULL,
        expires_at timestamptz NOT NULL
    );
    """,
)
"""One entry for each version, in order; a version that has been released never changes."""

COMPATIBLE_FROM: Final[tuple[int, ...]] = (1,)
"""For each version the oldest one whose code can use it: the one before, and so on, if it only adds something."""

# The key is "skeino" in hexadecimal. Written without a parameter, the statement goes by the simple protocol: by
# the extended one its portal would keep a snapshot open until the transaction's next statement.
TRY_LOCK: Final = "SELECT pg_try_advisory_xact_lock(x'736B65696E6F'::bigint) AS done"
VERSIONS: Final = "CREATE TABLE IF NOT EXISTS app_schema (version integer NOT NULL, compatible_from integer NOT NULL)"
_LOCK_TIMEOUT: Final = 60.0
_TABLES: Final = ("checkpoint_migrations", "checkpoints", "checkpoint_blobs", "checkpoint_writes")
_OUR_TABLES: Final = ("app_schema", "app_threads", "app_runs", "app_workers", "app_sweeps")

# Another process that makes the same without our lock, LangGraph's own `setup()` say, or a server process that goes on
# with the statement of a client that was killed.
_RACES: Final = (errors.DeadlockDetected, errors.UniqueViolation, errors.DuplicateTable, errors.DuplicateObject)
_MOST_RACES: Final = 5


async def create(connection: Connection, open_another: Callable[[], Awaitable[Connection]]) -> None:
    """Make what is missing. Safe with many processes at once: one does it, the others wait and find it done.

    Args:
        connection: where LangGraph's tables are made.
        open_another: opens a second connection, which holds the lock meanwhile; used only if work is to be done.

    Raises:
        SchemaError: the schema is newer than this code, or the role may not make what is missing.
        StoreUnavailableError: another process has held the set-up for a minute.
    """
    state = await read_state(connection)
    if state.is_complete():
        return
    try:
        async with await open_another() as guard:
            await guard.set_isolation_level(IsolationLevel.READ_COMMITTED)  # others keep a snapshot: see `_made`
            await _make_together(connection, guard)
    except (errors.InsufficientPrivilege, errors.InvalidSchemaName) as exc:
        role, database = connection.info.user, connection.info.dbname
        # Without a schema to make tables in, PostgreSQL says so in other words.
        raise SchemaError(
            f"The role {role!r} may not CREATE tables in the database {database!r} ({type(exc).__name__}), which lacks "
            f"{', '.join(state.missing) or f'version {state.known} of the schema'}: run {APPLY} as a role that may, or "
            f"the SQL that {PRINT} shows; then let {role!r} use the tables."
        ) from None


async def verify(connection: Connection) -> None:
    """Check that everything is there.

    Raises:
        SchemaError: a table is missing, or the schema is of another version.
    """
    (await read_state(connection)).verify()


async def read_state(connection: Connection) -> SchemaState:
    """What the database has; in `missing` also what LangGraph's migrations have left to do."""
    absent = await _absent(connection, (*_TABLES, *_OUR_TABLES))
    row: DictRow | None = None
    if "app_schema" not in absent:
        cursor = await connection.execute(
            "SELECT version, compatible_from FROM app_schema ORDER BY version DESC LIMIT 1"
        )
        row = await cursor.fetchone()
    if not {*_TABLES} & {*absent}:
        absent += await _unfinished(connection)
    return SchemaState(
        known=len(MIGRATIONS),
        version=row["version"] if row else 0,
        compatible_from=row["compatible_from"] if row else 0,
        missing=tuple(absent),
        who=", as a role that may CREATE",
    )


def written_tables() -> list[str]:
    """The tables that an application writes to; of the others it only reads the version."""
    return [table for table in (*_TABLES, *_OUR_TABLES) if table not in ("checkpoint_migrations", "app_schema")]


async def _make_together(connection: Connection, guard: Connection) -> None:
    """Make what is missing, or wait until another process has."""
    deadline = time.monotonic() + _LOCK_TIMEOUT
    races = 0
    while True:
        try:
            if await _made(connection, guard):
                (await read_state(connection)).verify_made()
                return
        except _RACES:
            races += 1
            if races > _MOST_RACES:
                raise
        if time.monotonic() > deadline:
            raise StoreUnavailableError("Another process has been setting up the database for a minute: try again.")
        await asyncio.sleep(random.uniform(0.05, 0.25))
        if (await read_state(connection)).is_complete():
            return


async def _made(connection: Connection, guard: Connection) -> bool:
    """Make what is missing, alone; False if another process is doing it.

    skeino's lock is held by a transaction, which a pooler ties to one session, and skeino's tables are made in that
    same one. LangGraph's are made on another connection, as `CREATE INDEX CONCURRENTLY` goes into no transaction. That
    waits for every snapshot that is older than its own: so the lock is never waited for, and holding it keeps none.
    """
    async with guard.transaction():
        cursor = await guard.execute(TRY_LOCK)
        if not ((await cursor.fetchone()) or {}).get("done"):
            return False
        await _be_missed(guard)
        if not await _set_langgraph_up(connection):
            return False
        await guard.execute(VERSIONS)
        state = await read_state(guard)
        if state.is_complete():
            return True
        await _migrate(guard, state)
    return True


async def _migrate(guard: Connection, state: SchemaState) -> None:
    present = [table for table in _OUR_TABLES if table not in state.missing and table != "app_schema"]
    if state.version == 0 and present:
        raise SchemaError(
            f"The database has tables {', '.join(present)} that no version of the schema is recorded for: move them "
            "away, or drop them."
        )
    for number, migration in enumerate(MIGRATIONS[state.version :], state.version + 1):
        logger.info("PostgreSQL: making schema version %d.", number)
        await guard.execute(migration)
    if state.version < len(MIGRATIONS):
        await guard.execute("DELETE FROM app_schema")
        recorded = (len(MIGRATIONS), COMPATIBLE_FROM[len(MIGRATIONS) - 1])
        await guard.execute("INSERT INTO app_schema (version, compatible_from) VALUES (%s, %s)", recorded)


async def _be_missed(guard: Connection) -> None:
    """Should this process be killed while a statement takes long, let the server notice, stop it and free the lock."""
    with suppress(psycopg.Error):  # before PostgreSQL 14, and on Windows, there is no such thing
        async with guard.transaction():
            await guard.execute("SET LOCAL client_connection_check_interval = '500ms'")


# ── LangGraph's part ─────────────────────────────────────────────────────────────────────────────────────


async def _set_langgraph_up(connection: Connection) -> bool:
    """Its saver's `setup()`; False if another process, which runs it without skeino's lock, is at an index just now.

    An index whose making was interrupted is there and of no use: `setup()` would leave it so.
    """
    absent = {*await _absent(connection, _TABLES)}
    if not absent and not await _unfinished(connection):
        return True
    invalid = {*await _invalid_indexes(connection)}
    if await _index_in_the_making(connection):
        return False
    invalid &= {*await _invalid_indexes(connection)}  # it may have been finished meanwhile
    logger.info("PostgreSQL: making LangGraph's tables.")
    for name in invalid:
        await connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(name)))
    await AsyncPostgresSaver(connection).setup()
    for name in await _absent(connection, [*invalid]):  # LangGraph had recorded it as made
        await connection.execute(_concurrent_indexes()[name])
    return not await _invalid_indexes(connection)


async def _unfinished(connection: Connection) -> list[str]:
    cursor = await connection.execute("SELECT max(v) AS version FROM checkpoint_migrations")
    version = ((await cursor.fetchone()) or {}).get("version")
    made, all_of_them = 0 if version is None else version + 1, len(AsyncPostgresSaver.MIGRATIONS)
    steps = [f"LangGraph's migrations {made + 1} to {all_of_them}"] if made < all_of_them else []
    return [*steps, *(f"{name} (half made)" for name in await _invalid_indexes(connection))]


async def _invalid_indexes(connection: Connection) -> list[str]:
    cursor = await connection.execute(
        "SELECT name FROM unnest(%s::text[]) AS name JOIN pg_index ON indexrelid = to_regclass(name) "
        "WHERE NOT indisvalid",
        ([*_concurrent_indexes()],),
    )
    return [row["name"] for row in await cursor.fetchall()]


async def _index_in_the_making(connection: Connection) -> bool:
    """Whether another session makes an index of one of LangGraph's tables; or of some table, if it is another role's.

    To drop what it makes would be a deadlock with it: it waits for every snapshot that is older than its own.
    """
    cursor = await connection.execute(
        "SELECT EXISTS (SELECT FROM pg_stat_progress_create_index WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND (relid IS NULL OR relid IN "
        "(SELECT to_regclass(name) FROM unnest(%s::text[]) AS name))) AS found",
        (list(_TABLES),),
    )
    return bool(((await cursor.fetchone()) or {}).get("found"))


def _concurrent_indexes() -> dict[str, LiteralString]:
    """By the index's name, LangGraph's migration that makes it."""
    found = (re.search(r"INDEX CONCURRENTLY IF NOT EXISTS (\w+)", one) for one in AsyncPostgresSaver.MIGRATIONS)
    return {match[1]: one for match, one in zip(found, AsyncPostgresSaver.MIGRATIONS, strict=True) if match}


async def _absent(connection: Connection, names: Sequence[str]) -> list[str]:
    cursor = await connection.execute(
        "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NULL", (list(names),)
    )
    return [row["name"] for row in await cursor.fetchall()]
