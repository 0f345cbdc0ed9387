"""The tables of a SQLite file: LangGraph's own, made by its saver, and skeino's, versioned."""

from __future__ import annotations

import sqlite3

from langgraph.checkpoint.sqlite import SqliteSaver

from skeino.errors import SchemaError

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
        updated_at TEXT NOT NULL
    );
    CREATE INDEX app_threads_updated ON app_threads (updated_at, thread_id);
    CREATE INDEX app_threads_created ON app_threads (created_at, thread_id);
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
    CREATE INDEX app_runs_of_worker ON app_runs (worker_id) WHERE status IN ('pending', 'running');
    CREATE TABLE app_workers (
        worker_id TEXT NOT NULL PRIMARY KEY,
        started_at TEXT NOT NULL,
        expires_at TEXT NOT NULL,
        seconds REAL NOT NULL,
        lost_at TEXT
    );
    """,
)
"""One entry for each version, in order; a version that has been released never changes."""

VERSION = len(MIGRATIONS)

_TABLES = ("checkpoints", "writes", "app_schema", "app_threads", "app_runs", "app_workers")


def create(connection: sqlite3.Connection) -> None:
    """Make what is missing. Safe with many processes at once: skeino's part is one transaction.

    Raises:
        SchemaError: the file's schema is newer than this code.
    """
    SqliteSaver(connection).setup()
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS app_schema (version INTEGER NOT NULL)")
        version = _version(connection)
        for migration in MIGRATIONS[version:]:
            for statement in migration.split(";"):
                connection.execute(statement)
        if version < VERSION:
            connection.execute("DELETE FROM app_schema")
            connection.execute("INSERT INTO app_schema VALUES (?)", (VERSION,))
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def verify(connection: sqlite3.Connection) -> None:
    """Check that everything is there.

    Raises:
        SchemaError: a table is missing, or the schema is of another version.
    """
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    missing = [table for table in _TABLES if (table,) not in rows]
    if missing:
        raise SchemaError(
            f"The SQLite file lacks {', '.join(missing)}: open it once without setup_schema=False to make them."
        )
    if _version(connection) < VERSION:
        raise SchemaError(
            "The SQLite file has an older schema: open it once without setup_schema=False to bring it up to date."
        )


def _version(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT max(version) FROM app_schema").fetchone()
    version: int = row[0] or 0
    if version > VERSION:
        raise SchemaError(
            f"The SQLite file has schema version {version}, this skeino-asgi knows {VERSION}: install a newer one."
        )
    return version
