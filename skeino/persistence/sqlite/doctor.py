"""What can be wrong between an application and its SQLite file. Nothing is written."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from skeino.errors import SkeinoError
from skeino.persistence.checks import SAMPLE, Check, checked, of_orphans, of_schema, of_workers
from skeino.persistence.registry import CheckpointerSpec
from skeino.persistence.sqlite import schema
from skeino.persistence.sqlite.database import BUSY_TIMEOUT, OPTIONS, path_of, translated_errors
from skeino.persistence.sqlite.statements import ACTIVE, text_of

T = TypeVar("T")

_CHECKS: Final = ("server", "schema", "rights", "pooler", "connections", "orphans", "workers", "clock")

# From one thread to the next by the index.
_ORPHANS: Final = """
    WITH RECURSIVE threads (thread_id, number) AS (
        SELECT min(thread_id), 1 FROM checkpoints
        UNION ALL
        SELECT (SELECT min(c.thread_id) FROM checkpoints c WHERE c.thread_id > threads.thread_id), number + 1
        FROM threads WHERE thread_id IS NOT NULL AND number < :limit
    )
    SELECT thread_id, NOT EXISTS (SELECT 1 FROM app_threads a WHERE a.thread_id = threads.thread_id)
    FROM threads WHERE thread_id IS NOT NULL
"""
_WORKERS: Final = f"""
    SELECT (SELECT count(*) FROM app_workers WHERE lost_at IS NULL AND expires_at >= :now),
        count(CASE WHEN w.worker_id IS NULL THEN 1 END),
        count(CASE WHEN w.lost_at IS NOT NULL OR w.expires_at < :now THEN 1 END)
    FROM app_runs r LEFT JOIN app_workers w ON w.worker_id = r.worker_id
    WHERE r.{ACTIVE}
"""


async def examine(spec: CheckpointerSpec, workers: int, lease_seconds: float) -> AsyncIterator[Check]:
    """Look at the spec's file; the arguments are those of every backend's.

    Raises:
        ConfigurationError: the URI names no usable file, or an option is wrong.
    """
    spec.checked_options(**OPTIONS)
    path = path_of(spec)
    if not path.exists():
        sentence = f"There is no file {path} yet: the first start makes it."
        yield Check("reachable", "warning", sentence, "If there should be one, correct the URI.")
        for name in _CHECKS:
            yield Check(name, "skipped", "There is no file yet.")
        return
    patient = _Patient(path, lease_seconds)
    try:
        number = await patient.read(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    except SkeinoError as exc:
        yield Check("reachable", "failure", str(exc), "Name a SQLite file that this process's user may read.")
        for name in _CHECKS:
            yield Check(name, "skipped", "The file cannot be read.")
        return
    yield Check("reachable", "ok", f"SQLite {sqlite3.sqlite_version} reads {path}, {number} pages.")
    async for check in checked({name: getattr(patient, f"of_{name}") for name in _CHECKS}):
        yield check


class _Patient:
    """The file."""

    def __init__(self, path: Path, lease_seconds: float) -> None:
        self._path = path
        self._lease_seconds = lease_seconds
        self._has_schema = False

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` finds on a connection that only reads."""

        def run() -> T:
            uri = f"{self._path.as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT)) as connection:
                return work(connection)

        with translated_errors(self._path):
            return await asyncio.to_thread(run)

    async def of_server(self) -> Check:
        mode = await self.read(lambda connection: connection.execute("PRAGMA journal_mode").fetchone()[0])
        if mode != "wal":
            sentence = f"The journal is of the mode {mode}: readers and the writer wait for each other until a start."
            return Check("server", "warning", sentence, "Start the application once, which turns it to WAL.")
        return Check("server", "ok", "The journal is a write-ahead log.")

    async def of_schema(self) -> Check:
        state = await self.read(schema.read_state)
        self._has_schema = not state.missing
        return of_schema(state)

    async def of_rights(self) -> Check:
        """Of this process's user on the file and its folder; and of others, who should have none."""
        for place in (self._path, self._path.parent):
            if not os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
                sentence = f"This process's user may not write to {place}, and the journal is beside the file."
                return Check("rights", "failure", sentence, "Let it write there, or run as another user.")
        mode = stat.S_IMODE(self._path.stat().st_mode)
        if mode & 0o077:
            sentence = f"Others on this machine may use the file, whose mode is {mode:04o}: it holds conversations."
            return Check("rights", "warning", sentence, f"chmod 600 {self._path}")
        return Check(
            "rights", "ok", "This process's user may write to the file and its folder, and others have no access."
        )

    async def of_pooler(self) -> Check:
        return Check("pooler", "skipped", "A file has none.")

    async def of_connections(self) -> Check:
        return Check("connections", "skipped", "A file has no limit; it has one writer at a time.")

    async def of_orphans(self) -> Check:
        if not self._has_schema:
            return Check("orphans", "skipped", "There are no tables.")
        rows = await self.read(lambda connection: connection.execute(_ORPHANS, {"limit": SAMPLE}).fetchall())
        return of_orphans([thread_id for thread_id, is_orphan in rows if is_orphan], len(rows))

    async def of_workers(self) -> Check:
        if not self._has_schema:
            return Check("workers", "skipped", "There are no tables.")
        values = {"now": text_of(datetime.now(UTC))}
        living, without, lost = await self.read(lambda connection: connection.execute(_WORKERS, values).fetchone())
        return of_workers(living, without, lost, self._lease_seconds)

    async def of_clock(self) -> Check:
        return Check("clock", "skipped", "The machine's clock is the database's.")
