"""`PostgresLeases`: the table `app_workers`, over a connection of its own."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Mapping
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb

from skeino.persistence.leases import END_UNKNOWN, KEPT, PATIENCE, WORKER_LOST
from skeino.persistence.postgres.failures import translated_errors
from skeino.persistence.postgres.statements import ACTIVE

# Each is a transaction of its own, so one moment: `statement_timestamp()`. None waits for a lock that others may hold
# for long: a lease's row is held by whoever renews it, or has just declared it lost.
_UNTIL: Final = "statement_timestamp() + make_interval(secs => %(seconds)s)"
ACQUIRE: Final = f"""
    INSERT INTO app_workers (worker_id, started_at, expires_at, seconds)
    VALUES (%(worker_id)s, statement_timestamp(), {_UNTIL}, %(seconds)s)
    RETURNING expires_at
"""
RENEW: Final = f"""
    UPDATE app_workers SET expires_at = {_UNTIL}, seconds = %(seconds)s
    WHERE worker_id = %(worker_id)s AND lost_at IS NULL
    RETURNING expires_at
"""
RELEASE: Final = f"""
    WITH busy AS (
        SELECT FROM app_runs WHERE worker_id = %(worker_id)s AND {ACTIVE} LIMIT 1
    ), given_back AS (
        DELETE FROM app_workers WHERE worker_id = %(worker_id)s AND lost_at IS NULL AND NOT EXISTS (SELECT FROM busy)
    )
    UPDATE app_workers SET expires_at = statement_timestamp()
    WHERE worker_id = %(worker_id)s AND EXISTS (SELECT FROM busy)
"""
DECLARE_LOST: Final = """
    WITH late AS MATERIALIZED (
        SELECT worker_id FROM app_workers
        WHERE lost_at IS NULL AND expires_at < statement_timestamp() AND %(patience)s * seconds < %(steady_for)s
        ORDER BY worker_id FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE app_workers w SET lost_at = statement_timestamp() FROM late WHERE w.worker_id = late.worker_id
    RETURNING w.worker_id
"""


# The first run of a thread's queue that has not ended, as far as this statement can see. If that is one that ends now,
# or there is none, the dead may have been the last to have the thread: what they still write is refused from now on.
HOLDER: Final = f"""(
                SELECT q.run_id FROM unnest(t.queue) WITH ORDINALITY AS q (run_id, place)
                WHERE NOT EXISTS (SELECT FROM app_runs r WHERE r.run_id = q.run_id AND NOT ({ACTIVE}))
                ORDER BY q.place LIMIT 1
            )"""


def _end(doomed: str) -> str:
    """End the runs that the query finds and locks, with their threads; nothing that another session holds."""
    return f"""
    WITH doomed AS MATERIALIZED (
        {doomed} FOR NO KEY UPDATE OF r SKIP LOCKED
    ), threads AS MATERIALIZED (
        SELECT thread_id FROM app_threads WHERE thread_id IN (SELECT thread_id FROM doomed)
        ORDER BY thread_id FOR NO KEY UPDATE SKIP LOCKED
    ), ended AS (
        UPDATE app_runs r SET status = 'error', finished_at = statement_timestamp(), error = %(error)s
        FROM doomed d
        WHERE r.run_id = d.run_id AND (d.thread_id IS NULL OR d.thread_id IN (SELECT thread_id FROM threads))
        RETURNING r.run_id, r.thread_id
    ), settled AS (
        UPDATE app_threads t SET
            status = 'error', updated_at = greatest(t.updated_at, statement_timestamp()),
            fence = t.fence + ({HOLDER} IS NULL OR {HOLDER} IN (SELECT run_id FROM ended))::int
        WHERE t.thread_id IN (SELECT thread_id FROM ended)
    )
    SELECT count(*) AS number FROM ended
    """


END_RUNS_OF_LOST: Final = _end(f"""
        SELECT r.run_id, r.thread_id FROM app_runs r
        WHERE r.worker_id IN (SELECT worker_id FROM app_workers WHERE lost_at IS NOT NULL) AND r.{ACTIVE}
        ORDER BY r.run_id LIMIT %(limit)s
""")
END_RUNS: Final = _end(f"""
        SELECT r.run_id, r.thread_id FROM app_runs r
        WHERE r.run_id = ANY(%(run_ids)s::uuid[]) AND r.worker_id = %(worker_id)s AND r.{ACTIVE}
        ORDER BY r.run_id
""")
FORGET: Final = f"""
    DELETE FROM app_workers w
    WHERE w.lost_at < statement_timestamp() - %(kept)s
        AND NOT EXISTS (SELECT FROM app_runs r WHERE r.worker_id = w.worker_id AND r.{ACTIVE})
"""
ACTIVE_RUNS: Final = f"""
    SELECT run_id::text AS run_id FROM app_runs
    WHERE worker_id = %(worker_id)s AND {ACTIVE}
        AND started_at < statement_timestamp() - make_interval(secs => %(older_than)s)
    LIMIT %(limit)s
"""


class PostgresLeases:
    """Leases in PostgreSQL; see `Leases` for what each call promises.

    Args:
        parameters: of the connections of the database's pool.
        place: names the database, for messages.
        limit: seconds that one call may take.
    """

    def __init__(self, parameters: Mapping[str, Any], place: str, limit: float) -> None:
        self._parameters = {**parameters, "connect_timeout": max(2, round(limit)), "row_factory": dict_row}
        self._place = place
        self._limit = limit
        self._connection: _Bounded | None = None

    def acquire(self, worker_id: str, seconds: float) -> datetime:
        (row,) = self._execute(ACQUIRE, worker_id=worker_id, seconds=seconds)
        expires_at: datetime = row["expires_at"]
        return expires_at

    def renew(self, worker_id: str, seconds: float) -> datetime | None:
        rows = self._execute(RENEW, worker_id=worker_id, seconds=seconds)
        return rows[0]["expires_at"] if rows else None

    def release(self, worker_id: str) -> None:
        self._execute(RELEASE, worker_id=worker_id)

    def declare_lost(self, steady_for: float) -> list[str]:
        return [row["worker_id"] for row in self._execute(DECLARE_LOST, steady_for=steady_for, patience=PATIENCE)]

    def end_runs_of_lost(self, limit: int) -> int:
        (row,) = self._execute(END_RUNS_OF_LOST, limit=limit, error=Jsonb(WORKER_LOST))
        self._execute(FORGET, kept=KEPT)
        number: int = row["number"]
        return number

    def active_runs(self, worker_id: str, *, older_than: float, limit: int) -> list[str]:
        rows = self._execute(ACTIVE_RUNS, worker_id=worker_id, older_than=older_than, limit=limit)
        return [row["run_id"] for row in rows]

    def end_runs(self, worker_id: str, run_ids: Collection[str]) -> int:
        (row,) = self._execute(END_RUNS, worker_id=worker_id, run_ids=list(run_ids), error=Jsonb(END_UNKNOWN))
        number: int = row["number"]
        return number

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _execute(self, statement: str, **values: Any) -> list[DictRow]:
        with translated_errors(self._place):
            try:
                if self._connection is None:
                    self._connection = _Bounded.connect("", **self._parameters)
                self._connection.deadline = time.monotonic() + self._limit
                cursor = self._connection.execute(statement, values)  # type: ignore[call-overload,unused-ignore]
                return cursor.fetchall() if cursor.description else []
            except BaseException:  # whatever it was, the next call starts with a new one
                self.close()
                raise


class _Bounded(Connection[DictRow]):
    """A connection that waits for the server until its deadline only: psycopg's own wait for ever."""

    deadline: float = float("inf")

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        return super().wait(self._until_deadline(gen), *args, **kwargs)

    def _until_deadline(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if time.monotonic() > self.deadline:
                raise psycopg.OperationalError("the server did not answer in time")
            try:
                wanted = gen.send(ready)
            except StopIteration as done:
                return done.value
