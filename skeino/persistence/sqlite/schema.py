"""The tables of a SQLite file: LangGraph's own, made by its saver, and skeino's, versioned."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from langgraph.checkpoint.sqlite import SqliteSaver

from skeino.errors import SchemaError
from skeino.persistence.versions import SchemaState, logger

INDEXED = 100
"""Characters of a text in metadata that a search looks up; the rest it compares."""


def _index_of_metadata(table: str, column: str) -> str:
    """SQLite has no index for what is in a JSON object, so the scalars have rows of their own, kept by triggers."""
    entries = f"""
        INSERT INTO {table}_metadata ({column}, key, value)
            SELECT new.{column}, key, CASE type WHEN 'text' THEN substr(atom, 1, {INDEXED}) ELSE atom END
            FROM json_each(new.metadata) WHERE type NOT IN ('object', 'array');"""
    return f"""
    CREATE TABLE {table}_metadata (
        {column} TEXT NOT NULL REFERENCES {table} ({column}) ON DELETE CASCADE,
        key TEXT NOT NULL,
        value
    );
    CREATE INDEX {table}_metadata_found ON {table}_metadata (key, value, {column});
    CREATE INDEX {table}_metadata_of ON {table}_metadata ({column});
    CREATE TRIGGER {table}_metadata_made AFTER INSERT ON {table} WHEN new.metadata <> '{{}}' BEGIN{entries}
    END;
    CREATE TRIGGER {table}_metadata_changed AFTER UPDATE OF metadata ON {table} WHEN new.metadata <> old.metadata BEGIN
        DELETE FROM {table}_metadata WHERE {column} = new.{column};{entries}
    END;
    """


MIGRATIONS = (
    """
    CREATE TABLE app_threads (
        thread_id TEXT NOT NULL PRIMARY KEY,
        owner TEXT,
        status TEXT NOT NULL CHECK (status IN ('idle', 'interrupted', 'error')),
        metadata TEXT NOT NULL,
        config TEXT NOT NULL,
        ttl_strategy TEXT CHECK (ttl_strategy IN ('delete', 'keep_latest')),
        ttl_minutes REAL,
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL,
        pruned_at TEXT,
        queue TEXT NOT NULL DEFAULT '[]',
        fence INTEGER NOT NULL DEFAULT (CAST(86400000 * (julianday('now') - 2440587.5) AS INTEGER))
    );
    CREATE INDEX app_threads_updated ON app_threads (updated_at, thread_id);
    CREATE INDEX app_threads_created ON app_threads (created_at, thread_id);
    CREATE INDEX app_threads_of_owner ON app_threads (owner, updated_at, thread_id) WHERE owner IS NOT NULL;
    CREATE INDEX app_threads_stopped ON app_threads (status, updated_at, thread_id)
        WHERE status IN ('interrupted', 'error');
    CREATE INDEX app_threads_expiring ON app_threads (julianday(updated_at) + ttl_minutes / 1440.0, thread_id)
        WHERE ttl_minutes IS NOT NULL AND pruned_at IS NOT updated_at;
    CREATE TABLE app_runs (
        run_id TEXT NOT NULL PRIMARY KEY,
        thread_id TEXT REFERENCES app_threads (thread_id) ON DELETE CASCADE,
        owner TEXT,
        worker_id TEXT NOT NULL,
        status TEXT NOT NULL
            CHECK (status IN ('pending', 'running', 'success', 'error', 'timeout', 'interrupted')),
        metadata TEXT NOT NULL,
        kwargs TEXT NOT NULL,
        error TEXT,
        http_status INTEGER,
        created_at TEXT NOT NULL,
        started_at TEXT NOT NULL,
        finished_at TEXT,
        checkpoint_count INTEGER NOT NULL DEFAULT 0,
        first_checkpoint_id TEXT,
        last_checkpoint_id TEXT,
        paused INTEGER NOT NULL DEFAULT 0,
        late_outcome TEXT
    );
    CREATE INDEX app_runs_of_thread ON app_runs (thread_id, created_at, run_id);
    CREATE INDEX app_runs_created ON app_runs (created_at, run_id);
    CREATE INDEX app_runs_active ON app_runs (thread_id) WHERE status IN ('pending', 'running');
    CREATE INDEX app_runs_active_created ON app_runs (created_at, run_id) WHERE status IN ('pending', 'running');
    CREATE INDEX app_runs_of_owner ON app_runs (owner, created_at, run_id) WHERE owner IS NOT NULL;
    CREATE INDEX app_runs_failed ON app_runs (status, created_at, run_id)
        WHERE status IN ('error', 'timeout', 'interrupted');
    CREATE INDEX app_runs_of_worker ON app_runs (worker_id) WHERE status IN ('pending', 'running');
    CREATE TABLE app_workers (
        worker_id TEXT NOT NULL PRIMARY KEY,
        started_at TEXT NOT NULL,
        expires_at TEXT NOT NULL,
        seconds REAL NOT NULL,
        lost_at TEXT
    );
    CREATE TABLE app_sweeps (
        name TEXT NOT NULL PRIMARY KEY,
        worker_id TEXT NOT NULL,
        begun_at TEXT NOT NULL,
        expires_at TEXT NOT NULL
    );
    """
    + _index_of_metadata("app_threads", "thread_id")
    + _index_of_metadata("app_runs", "run_id"),
)
"""One entry for each version, in order; a version that has been released never changes."""

COMPATIBLE_FROM: tuple[int, ...] = (1,)
"""For each version the oldest one whose code can use it: the one before, and so on, if it only adds something."""

VERSIONS = "CREATE TABLE IF NOT EXISTS app_schema (version INTEGER NOT NULL, compatible_from INTEGER NOT NULL)"

_OURS = ("app_schema", "app_threads", "app_runs", "app_workers", "app_sweeps")
_TABLES = ("checkpoints", "writes", *_OURS, "app_threads_metadata", "app_runs_metadata")


def create(connection: sqlite3.Connection) -> None:
    """Make what is missing. Safe with many processes at once: skeino's part is one transaction.

    Where nothing is missing nothing is written, so a start does not wait for whoever writes.

    Raises:
        SchemaError: the file's schema is newer than this code.
    """
    if read_state(connection).is_complete():
        return
    SqliteSaver(connection).setup()  # each of its steps is harmless when it is repeated
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(VERSIONS)
        state = read_state(connection)
        if not state.is_complete():
            _migrate(connection, state)
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    read_state(connection).verify_made()


def verify(connection: sqlite3.Connection) -> None:
    """Check that everything is there.

    Raises:
        SchemaError: a table is missing, or the schema is of another version.
    """
    read_state(connection).verify()


def read_state(connection: sqlite3.Connection) -> SchemaState:
    """What the file has."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    missing = [table for table in _TABLES if table not in tables]
    if "writes" in tables:  # LangGraph's came without this column once
        columns = {name for (name,) in connection.execute("SELECT name FROM pragma_table_info('writes')")}
        missing += [] if "task_path" in columns else ["writes.task_path"]
    row: tuple[int, int] | None = None
    if "app_schema" in tables:
        row = connection.execute(
            "SELECT version, compatible_from FROM app_schema ORDER BY version DESC LIMIT 1"
        ).fetchone()
    version, compatible_from = row or (0, 0)
    return SchemaState(
        known=len(MIGRATIONS),
        version=version,
        compatible_from=compatible_from,
        missing=tuple(missing),
        subject="The SQLite file",
    )


def _migrate(connection: sqlite3.Connection, state: SchemaState) -> None:
    present = [table for table in _TABLES if table.startswith("app_") and table not in (*state.missing, "app_schema")]
    if state.version == 0 and present:
        raise SchemaError(
            f"The SQLite file has tables {', '.join(present)} that no version of the schema is recorded for: move them "
            "away, or drop them."
        )
    for number, migration in enumerate(MIGRATIONS[state.version :], state.version + 1):
        logger.info("SQLite: making schema version %d.", number)
        for statement in _statements(migration):
            connection.execute(statement)
    if state.version < len(MIGRATIONS):
        connection.execute("DELETE FROM app_schema")
        recorded = (len(MIGRATIONS), COMPATIBLE_FROM[len(MIGRATIONS) - 1])
        connection.execute("INSERT INTO app_schema (version, compatible_from) VALUES (?, ?)", recorded)


def _statements(script: str) -> Iterator[str]:
    """One after the other: a trigger has semicolons of its own, and `executescript` would commit."""
    statement = ""
    for part in script.split(";"):
        statement += f"{part};"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
