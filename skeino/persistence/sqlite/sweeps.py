"""`SqliteSweeps`: what is due in a SQLite file, and what is done about it. The machine's clock is the database's."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from langgraph.checkpoint.base import BaseCheckpointSaver

from skeino.errors import DeltaChannelError
from skeino.persistence.sqlite import history
from skeino.persistence.sqlite.database import SqliteDatabase
from skeino.persistence.sqlite.statements import ACTIVE, text_of
from skeino.persistence.sweeping import SWEEP, Due, Expiry, Strategy, remove_state

# As the index `app_threads_expiring` has it.
_DUE: Final = """
    ttl_minutes IS NOT NULL AND pruned_at IS NOT updated_at
    AND julianday(updated_at) + ttl_minutes / 1440.0 < julianday(:now)
"""
# A run is not older than its end: so the index by `created_at` finds those that ended long ago.
_FINISHED: Final = f"created_at < :before AND finished_at < :before AND NOT ({ACTIVE})"

BEGIN: Final = """
    INSERT INTO app_sweeps (name, worker_id, begun_at, expires_at) VALUES (:name, :worker_id, :now, :expires_at)
    ON CONFLICT (name) DO UPDATE
    SET worker_id = excluded.worker_id, begun_at = excluded.begun_at, expires_at = excluded.expires_at
"""
TURN: Final = "SELECT begun_at, expires_at FROM app_sweeps WHERE name = ?"
RENEW: Final = "UPDATE app_sweeps SET expires_at = :expires_at WHERE name = :name AND worker_id = :worker_id"
COUNT: Final = f"""
    SELECT count(CASE WHEN ttl_strategy = 'delete' THEN 1 END), count(CASE WHEN ttl_strategy = 'keep_latest' THEN 1 END)
    FROM app_threads WHERE {_DUE}
"""
COUNT_RUNS: Final = f"SELECT count(*) FROM app_runs WHERE {_FINISHED}"
DUE_THREADS: Final = f"""
    SELECT thread_id FROM app_threads
    WHERE {_DUE} AND ttl_strategy IN (SELECT value FROM json_each(:strategies))
        AND thread_id NOT IN (SELECT value FROM json_each(:leave_out))
    ORDER BY julianday(updated_at) + ttl_minutes / 1440.0, thread_id
    LIMIT :limit
"""
STRATEGY: Final = f"SELECT ttl_strategy FROM app_threads WHERE thread_id = :thread_id AND {_DUE}"
BUSY: Final = f"SELECT 1 FROM app_runs WHERE thread_id = :thread_id AND {ACTIVE}"
DELETE_RUNS: Final = f"""
    DELETE FROM app_runs WHERE run_id IN (
        SELECT run_id FROM app_runs WHERE {_FINISHED} ORDER BY created_at, run_id LIMIT :limit
    )
"""


class SqliteSweeps:
    """Sweeps in a SQLite file; see `Sweeps` for what each operation promises."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    async def begin(self, worker_id: str, *, seconds: float, interval: float) -> float:
        def begin(connection: sqlite3.Connection) -> float:
            now = datetime.now(UTC)
            found = connection.execute(TURN, (SWEEP,)).fetchone()
            if found is not None:
                begun_at, expires_at = map(datetime.fromisoformat, found)
                free = max(expires_at, begun_at + timedelta(seconds=interval))
                if free > now:
                    return max(0.1, (free - now).total_seconds())
            connection.execute(BEGIN, _turn(worker_id, now, seconds))
            return 0.0

        return await self._database.write(begin)

    async def renew(self, worker_id: str, *, seconds: float) -> bool:
        values = _turn(worker_id, datetime.now(UTC), seconds)
        return await self._database.write(lambda connection: connection.execute(RENEW, values).rowcount > 0)

    async def end(self, worker_id: str) -> None:
        values = _turn(worker_id, datetime.now(UTC), 0.0)
        await self._database.write(lambda connection: connection.execute(RENEW, values).rowcount)

    async def count_due(self, run_retention: timedelta | None) -> Due:
        ((deleted, pruned),) = await self._database.read(COUNT, _now())
        if run_retention is None:
            return Due(deleted, pruned)
        ((runs,),) = await self._database.read(COUNT_RUNS, _before(run_retention))
        return Due(deleted, pruned, runs)

    async def due_threads(
        self, *, strategies: Collection[Strategy], limit: int, leave_out: Collection[str] = ()
    ) -> list[str]:
        values = {"strategies": json.dumps([*strategies]), "leave_out": json.dumps([*leave_out]), "limit": limit}
        return [thread_id for (thread_id,) in await self._database.read(DUE_THREADS, {**values, **_now()})]

    async def expire_thread(self, thread_id: str, checkpointer: BaseCheckpointSaver[Any]) -> Expiry:
        if getattr(checkpointer, "database", None) is self._database:
            done: Expiry = await self._database.write(lambda connection: _expired(connection, thread_id, here=True))
            return done
        values = {"thread_id": thread_id}
        found = await self._database.read(f"{STRATEGY} AND NOT EXISTS ({BUSY})", {**values, **_now()})
        if not found:
            return "kept"
        # Its state first: if the process dies in between, the thread is still due.
        removed = await remove_state(checkpointer, thread_id, found[0][0])
        expiry = await self._database.write(lambda connection: _expired(connection, thread_id, here=False))
        return removed if expiry == "pruned" else expiry

    async def delete_finished_runs(self, older_than: timedelta, *, limit: int) -> int:
        values = {**_before(older_than), "limit": limit}
        return await self._database.write(lambda connection: connection.execute(DELETE_RUNS, values).rowcount)


def _expired(connection: sqlite3.Connection, thread_id: str, *, here: bool) -> Expiry:
    """Do what is due, within a transaction.

    Args:
        connection: the writer's.
        thread_id: the thread.
        here: whether its state is in this file.
    """
    values = {"thread_id": thread_id}
    found = connection.execute(STRATEGY, {**values, **_now()}).fetchone()
    if found is None or connection.execute(BUSY, values).fetchone() is not None:
        return "kept"
    strategy: Strategy = found[0]
    expiry: Expiry = "deleted" if strategy == "delete" else "pruned"
    if here:
        try:
            history.prune(connection, [thread_id], strategy)
        except DeltaChannelError:  # before anything was deleted
            expiry = "unprunable"
    if expiry == "deleted":
        connection.execute("DELETE FROM app_threads WHERE thread_id = :thread_id", values)  # and runs
    else:
        connection.execute("UPDATE app_threads SET pruned_at = updated_at WHERE thread_id = :thread_id", values)
    return expiry


def _turn(worker_id: str, now: datetime, seconds: float) -> dict[str, str]:
    expires_at = text_of(now + timedelta(seconds=seconds))
    return {"name": SWEEP, "worker_id": worker_id, "now": text_of(now), "expires_at": expires_at}


def _now() -> dict[str, str]:
    return {"now": text_of(datetime.now(UTC))}


def _before(older_than: timedelta) -> dict[str, str]:
    return {"before": text_of(datetime.now(UTC) - older_than)}
