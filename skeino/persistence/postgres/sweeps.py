"""`PostgresSweeps`: what is due in a PostgreSQL database, and what is done about it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any, Final

from langgraph.checkpoint.base import BaseCheckpointSaver

from skeino.errors import DeltaChannelError, StoreError
from skeino.persistence.postgres import history
from skeino.persistence.postgres.connections import Connection, PostgresDatabase
from skeino.persistence.postgres.statements import ACTIVE
from skeino.persistence.postgres.writer import repeated_if_undone
from skeino.persistence.sweeping import SWEEP, Due, Expiry, Strategy, remove_state

# As the index `app_threads_expiring` has it.
_DUE: Final = """
    ttl_minutes IS NOT NULL AND pruned_at IS DISTINCT FROM updated_at
    AND (updated_at AT TIME ZONE 'UTC') + ttl_minutes * interval '1 minute'
        < statement_timestamp() AT TIME ZONE 'UTC'
"""
# A run is not older than its end: so the index by `created_at` finds those that ended long ago.
_FINISHED: Final = f"""
    created_at < statement_timestamp() - %(older_than)s AND finished_at < statement_timestamp() - %(older_than)s
    AND NOT ({ACTIVE})
"""

_LOCK_NOT_AVAILABLE: Final = "55P03"

BEGIN: Final = """
    INSERT INTO app_sweeps AS s (name, worker_id, begun_at, expires_at)
    VALUES (%(name)s, %(worker_id)s, statement_timestamp(), statement_timestamp() + make_interval(secs => %(seconds)s))
    ON CONFLICT (name) DO UPDATE
    SET worker_id = excluded.worker_id, begun_at = excluded.begun_at, expires_at = excluded.expires_at
    WHERE s.expires_at <= statement_timestamp()
        AND s.begun_at + make_interval(secs => %(interval)s) <= statement_timestamp()
    RETURNING s.name
"""
WAIT: Final = """
    SELECT extract(
        epoch FROM greatest(expires_at, begun_at + make_interval(secs => %(interval)s)) - statement_timestamp()
    )::double precision AS seconds
    FROM app_sweeps WHERE name = %(name)s
"""
RENEW: Final = """
    UPDATE app_sweeps SET expires_at = statement_timestamp() + make_interval(secs => %(seconds)s)
    WHERE name = %(name)s AND worker_id = %(worker_id)s
    RETURNING name
"""
END: Final = """
    UPDATE app_sweeps SET expires_at = statement_timestamp() WHERE name = %(name)s AND worker_id = %(worker_id)s
"""
COUNT: Final = f"""
    SELECT count(*) FILTER (WHERE ttl_strategy = 'delete') AS deleted_threads,
        count(*) FILTER (WHERE ttl_strategy = 'keep_latest') AS pruned_threads
    FROM app_threads WHERE {_DUE}
"""
COUNT_RUNS: Final = f"SELECT count(*) AS number FROM app_runs WHERE {_FINISHED}"
DUE_THREADS: Final = f"""
    SELECT thread_id FROM app_threads
    WHERE {_DUE} AND ttl_strategy = ANY(%(strategies)s) AND thread_id <> ALL(%(leave_out)s)
    ORDER BY (updated_at AT TIME ZONE 'UTC') + ttl_minutes * interval '1 minute', thread_id
    LIMIT %(limit)s
"""
# Whoever starts a run on the thread holds its row: then it is in use, and nobody need wait for anybody.
LOCK: Final = f"""
    SELECT ttl_strategy FROM app_threads WHERE thread_id = %(thread_id)s AND {_DUE} FOR UPDATE SKIP LOCKED
"""
# Whoever deletes the thread, say, has locked its runs first: then it is in use, too, and neither waits for the other.
LOCK_RUNS: Final = "SELECT run_id FROM app_runs WHERE thread_id = %(thread_id)s FOR UPDATE NOWAIT"
BUSY: Final = f"SELECT run_id FROM app_runs WHERE thread_id = %(thread_id)s AND {ACTIVE} LIMIT 1"
DELETE_RUNS: Final = f"""
    DELETE FROM app_runs WHERE run_id = ANY(ARRAY(
        SELECT run_id FROM app_runs WHERE {_FINISHED}
        ORDER BY created_at, run_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ))
    RETURNING run_id
"""


class PostgresSweeps:
    """Sweeps in PostgreSQL; see `Sweeps` for what each operation promises."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def begin(self, worker_id: str, *, seconds: float, interval: float) -> float:
        values = {"name": SWEEP, "worker_id": worker_id, "seconds": seconds, "interval": interval}
        if await self._database.fetch(BEGIN, values):
            return 0.0
        rows = await self._database.fetch(WAIT, values)
        return max([0.1, *(float(row["seconds"]) for row in rows)])

    async def renew(self, worker_id: str, *, seconds: float) -> bool:
        return bool(await self._database.fetch(RENEW, {"name": SWEEP, "worker_id": worker_id, "seconds": seconds}))

    async def end(self, worker_id: str) -> None:
        await self._database.fetch(END, {"name": SWEEP, "worker_id": worker_id})

    async def count_due(self, run_retention: timedelta | None) -> Due:
        (threads,) = await self._database.fetch(COUNT, {})
        if run_retention is None:
            return Due(**threads)
        (runs,) = await self._database.fetch(COUNT_RUNS, {"older_than": run_retention})
        return Due(**threads, deleted_runs=runs["number"])

    async def due_threads(
        self, *, strategies: Collection[Strategy], limit: int, leave_out: Collection[str] = ()
    ) -> list[str]:
        values = {"strategies": [*strategies], "leave_out": [*leave_out], "limit": limit}
        return [row["thread_id"] for row in await self._database.fetch(DUE_THREADS, values)]

    async def expire_thread(self, thread_id: str, checkpointer: BaseCheckpointSaver[Any]) -> Expiry:
        writer = self._database.writer
        for place in (thread_id, ("checkpoints", thread_id)):  # of calls that were cancelled: it must not come back
            await writer.settled(place)
        try:
            return await repeated_if_undone(lambda: self._expire_thread(thread_id, checkpointer))
        except StoreError as exc:
            if exc.sqlstate != _LOCK_NOT_AVAILABLE:
                raise
            return "kept"

    async def _expire_thread(self, thread_id: str, checkpointer: BaseCheckpointSaver[Any]) -> Expiry:
        values = {"thread_id": thread_id}
        async with self._database.connection() as connection, connection.transaction():
            # Each statement is to see what was committed before it, whatever the role's default.
            await connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            thread = await (await connection.execute(LOCK, values)).fetchone()  # type: ignore[arg-type,unused-ignore]
            if thread is None:
                return "kept"
            busy = await connection.execute(BUSY, values)  # type: ignore[arg-type,unused-ignore]
            if await busy.fetchone() is not None:
                return "kept"
            if thread["ttl_strategy"] == "delete":
                await connection.execute(LOCK_RUNS, values)
            if getattr(checkpointer, "database", None) is self._database:
                expiry = await _remove_state_here(connection, thread_id, thread["ttl_strategy"])
            else:
                expiry = await remove_state(checkpointer, thread_id, thread["ttl_strategy"])
            if expiry == "deleted":
                await connection.execute("DELETE FROM app_threads WHERE thread_id = %(thread_id)s", values)  # and runs
            else:
                await connection.execute(
                    "UPDATE app_threads SET pruned_at = updated_at WHERE thread_id = %(thread_id)s", values
                )
            return expiry

    async def delete_finished_runs(self, older_than: timedelta, *, limit: int) -> int:
        return len(await self._database.fetch(DELETE_RUNS, {"older_than": older_than, "limit": limit}))


async def _remove_state_here(connection: Connection, thread_id: str, strategy: Strategy) -> Expiry:
    if strategy == "delete":
        await history.delete_thread(connection, thread_id, prepare=False)
        return "deleted"
    try:
        await history.prune(connection, thread_id)
    except DeltaChannelError:  # before anything was deleted
        return "unprunable"
    return "pruned"
