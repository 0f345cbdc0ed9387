"""`SqliteLeases`: the table `app_workers`, over a connection of its own. The machine's clock is the database's."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from skeino.persistence.leases import END_UNKNOWN, KEPT, PATIENCE, WORKER_LOST
from skeino.persistence.rows import RunError
from skeino.persistence.sqlite.database import translated_errors
from skeino.persistence.sqlite.statements import ACTIVE, queue_of, text_of

T = TypeVar("T")

ACQUIRE: Final = """
    INSERT INTO app_workers (worker_id, started_at, expires_at, seconds)
    VALUES (:worker_id, :now, :expires_at, :seconds)
"""
RENEW: Final = """
    UPDATE app_workers SET expires_at = :expires_at, seconds = :seconds
    WHERE worker_id = :worker_id AND lost_at IS NULL
"""
LATE: Final = "lost_at IS NULL AND expires_at < :now AND :patience * seconds < :steady_for"
OF_LOST: Final = f"""
    SELECT run_id FROM app_runs
    WHERE worker_id IN (SELECT worker_id FROM app_workers WHERE lost_at IS NOT NULL) AND {ACTIVE}
    LIMIT :limit
"""
OF_WORKER: Final = f"""
    SELECT run_id FROM app_runs
    WHERE run_id IN (SELECT value FROM json_each(:run_ids)) AND worker_id = :worker_id AND {ACTIVE}
"""
SETTLE_THREADS: Final = """
    UPDATE app_threads SET status = 'error', updated_at = max(updated_at, :now)
    WHERE thread_id IN (
        SELECT thread_id FROM app_runs WHERE run_id IN (SELECT value FROM json_each(:doomed))
    )
"""
QUEUES: Final = """
    SELECT thread_id, queue FROM app_threads
    WHERE thread_id IN (SELECT thread_id FROM app_runs WHERE run_id IN (SELECT value FROM json_each(:doomed)))
"""
END_RUNS: Final = """
    UPDATE app_runs SET status = 'error', finished_at = :now, error = :error
    WHERE run_id IN (SELECT value FROM json_each(:doomed))
"""
FORGET: Final = f"""
    DELETE FROM app_workers
    WHERE lost_at < :before
        AND NOT EXISTS (SELECT 1 FROM app_runs r WHERE r.worker_id = app_workers.worker_id AND r.{ACTIVE})
"""


class SqliteLeases:
    """Leases in a SQLite file; see `Leases` for what each call promises.

    Args:
        path: the file.
        limit: seconds that one call may wait for other writers.
    """

    def __init__(self, path: Path, limit: float) -> None:
        self._path = path
        self._limit = limit
        self._connection: sqlite3.Connection | None = None

    def acquire(self, worker_id: str, seconds: float) -> datetime:
        def acquire(connection: sqlite3.Connection, now: datetime) -> datetime:
            connection.execute(ACQUIRE, _lease(worker_id, seconds, now))
            return now + timedelta(seconds=seconds)

        return self._write(acquire)

    def renew(self, worker_id: str, seconds: float) -> datetime | None:
        def renew(connection: sqlite3.Connection, now: datetime) -> datetime | None:
            held = connection.execute(RENEW, _lease(worker_id, seconds, now)).rowcount
            return now + timedelta(seconds=seconds) if held else None

        return self._write(renew)

    def release(self, worker_id: str) -> None:
        def release(connection: sqlite3.Connection, now: datetime) -> None:
            active = f"SELECT 1 FROM app_runs WHERE worker_id = ? AND {ACTIVE} LIMIT 1"
            if connection.execute(active, (worker_id,)).fetchone():
                at_once = "UPDATE app_workers SET expires_at = ? WHERE worker_id = ?"
                connection.execute(at_once, (text_of(now), worker_id))
            else:
                connection.execute("DELETE FROM app_workers WHERE worker_id = ? AND lost_at IS NULL", (worker_id,))

        self._write(release)

    def declare_lost(self, steady_for: float) -> list[str]:
        values = {"patience": PATIENCE, "steady_for": steady_for}

        def declare(connection: sqlite3.Connection, now: datetime) -> list[str]:
            late = connection.execute(
                f"SELECT worker_id FROM app_workers WHERE {LATE}", {**values, "now": text_of(now)}
            )
            workers = [worker_id for (worker_id,) in late.fetchall()]
            for worker_id in workers:
                connection.execute("UPDATE app_workers SET lost_at = ? WHERE worker_id = ?", (text_of(now), worker_id))
            return workers

        now = {"now": text_of(datetime.now(UTC))}
        return self._write(declare) if self._finds(f"SELECT 1 FROM app_workers WHERE {LATE}", {**values, **now}) else []

    def end_runs_of_lost(self, limit: int) -> int:
        before = {"before": text_of(datetime.now(UTC) - KEPT)}
        if self._finds("SELECT 1 FROM app_workers WHERE lost_at < :before", before):
            self._write(lambda connection, now: connection.execute(FORGET, before))
        if not self._finds(OF_LOST, {"limit": 1}):  # a look keeps no writer waiting
            return 0
        return self._write(lambda connection, now: _end(connection, OF_LOST, {"limit": limit}, WORKER_LOST, now))

    def active_runs(self, worker_id: str, *, older_than: float, limit: int) -> list[str]:
        started_before = text_of(datetime.now(UTC) - timedelta(seconds=older_than))
        statement = f"SELECT run_id FROM app_runs WHERE worker_id = ? AND {ACTIVE} AND started_at < ? LIMIT ?"
        with translated_errors(self._path):
            return [run_id for (run_id,) in self._connected().execute(statement, (worker_id, started_before, limit))]

    def end_runs(self, worker_id: str, run_ids: Collection[str]) -> int:
        values = {"worker_id": worker_id, "run_ids": json.dumps(list(run_ids))}
        return self._write(lambda connection, now: _end(connection, OF_WORKER, values, END_UNKNOWN, now))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _finds(self, statement: str, values: dict[str, Any]) -> bool:
        with translated_errors(self._path):
            return self._connected().execute(statement, values).fetchone() is not None

    def _write(self, work: Callable[[sqlite3.Connection, datetime], T]) -> T:
        """Run `work` in a transaction, with the time at which it began."""
        with translated_errors(self._path):
            connection = self._connected()
            connection.execute("BEGIN IMMEDIATE")
            try:
                done = work(connection, datetime.now(UTC))
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return done

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            if not self._path.exists():  # it would be made, empty and for all to read
                raise sqlite3.OperationalError("the file is gone")
            self._connection = sqlite3.connect(self._path, timeout=self._limit, isolation_level=None)
            # What a power cut takes away is done again; and a renewal need not wait for the disk.
            self._connection.execute("PRAGMA synchronous = NORMAL")
        return self._connection


def _end(connection: sqlite3.Connection, doomed: str, values: dict[str, Any], error: RunError, now: datetime) -> int:
    ids = [run_id for (run_id,) in connection.execute(doomed, values)]
    ending = {"doomed": json.dumps(ids), "now": text_of(now), "error": json.dumps(error)}
    connection.execute(SETTLE_THREADS, ending)
    _fence_off(connection, set(ids), ending)
    return connection.execute(END_RUNS, ending).rowcount


def _fence_off(connection: sqlite3.Connection, doomed: set[str], ending: dict[str, Any]) -> None:
    """Let what the doomed still write be refused, on threads that no other run holds."""
    for thread_id, text in connection.execute(QUEUES, ending).fetchall():
        if queue_of(connection, text).may_be_held_by(doomed):
            connection.execute("UPDATE app_threads SET fence = fence + 1 WHERE thread_id = ?", (thread_id,))


def _lease(worker_id: str, seconds: float, now: datetime) -> dict[str, Any]:
    expires_at = text_of(now + timedelta(seconds=seconds))
    return {"worker_id": worker_id, "seconds": seconds, "now": text_of(now), "expires_at": expires_at}
