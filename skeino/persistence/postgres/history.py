"""Threads' histories in LangGraph's PostgreSQL tables, or parts of them: deleted, also by run, pruned and copied.

Pruning for its own sake is the stock saver's own; this one is for a transaction that does more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from skeino.errors import ThreadExistsError
from skeino.persistence.postgres.connections import Connection
from skeino.persistence.pruning import CheckpointOutline, all_but_latest, of_runs, target_exists

# One snapshot for all: what is written meanwhile stays with all its parts.
_DELETE_THREAD: Final = """
WITH blobs AS (DELETE FROM checkpoint_blobs WHERE thread_id = %(thread_id)s),
    writes AS (DELETE FROM checkpoint_writes WHERE thread_id = %(thread_id)s)
DELETE FROM checkpoints WHERE thread_id = %(thread_id)s
"""

_THREADS_OF_RUNS: Final = """
SELECT DISTINCT thread_id FROM checkpoints WHERE metadata ->> 'run_id' = ANY(%(run_ids)s)
"""

_OUTLINES: Final = """
SELECT thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, metadata FROM checkpoints
WHERE thread_id = %(thread_id)s
"""

# What the deleted checkpoints say of their channels comes back, to find the values that nobody needs any more.
_DELETE_CHECKPOINTS: Final = """
WITH deleted AS (
    DELETE FROM checkpoints
    WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(namespace)s AND checkpoint_id = ANY(%(ids)s)
    RETURNING checkpoint -> 'channel_versions' AS versions
)
SELECT DISTINCT v.key AS channel, v.value AS version
FROM deleted CROSS JOIN LATERAL jsonb_each_text(deleted.versions) AS v
"""

_DELETE_WRITES: Final = """
DELETE FROM checkpoint_writes
WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(namespace)s AND checkpoint_id = ANY(%(ids)s)
"""

_FORGET_PARENTS: Final = """
UPDATE checkpoints SET parent_checkpoint_id = NULL
WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(namespace)s AND parent_checkpoint_id = ANY(%(ids)s)
"""

_DELETE_BLOBS: Final = """
DELETE FROM checkpoint_blobs AS b
USING (
    SELECT * FROM unnest(%(channels)s::text[], %(versions)s::text[]) AS freed (channel, version)
    EXCEPT
    SELECT v.key, v.value
    FROM checkpoints c CROSS JOIN LATERAL jsonb_each_text(c.checkpoint -> 'channel_versions') AS v
    WHERE c.thread_id = %(thread_id)s AND c.checkpoint_ns = %(namespace)s
) AS garbage
WHERE b.thread_id = %(thread_id)s AND b.checkpoint_ns = %(namespace)s
    AND b.channel = garbage.channel AND b.version = garbage.version
"""

# Of this transaction only, so that it passes a pooler. The number keeps it apart from other people's locks.
_LOCK_TARGET: Final = "SELECT pg_advisory_xact_lock(1936418155, hashtext(%(target)s))"

_HAS_CHECKPOINTS: Final = "SELECT 1 FROM checkpoints WHERE thread_id = %(target)s LIMIT 1"

# Each statement sees what was committed by then: what a checkpoint needs was committed with it, or follows.
_COPY: Final = (
    "DELETE FROM checkpoint_writes WHERE thread_id = %(target)s",  # of no checkpoint
    "DELETE FROM checkpoint_blobs WHERE thread_id = %(target)s",
    """
    INSERT INTO checkpoints (
        thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
    )
    SELECT %(target)s, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
    FROM checkpoints WHERE thread_id = %(source)s
    """,
    """
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT %(target)s, checkpoint_ns, channel, version, type, blob
    FROM checkpoint_blobs WHERE thread_id = %(source)s
    """,
    """
    INSERT INTO checkpoint_writes (
        thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob
    )
    SELECT %(target)s, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob
    FROM checkpoint_writes WHERE thread_id = %(source)s
    """,
)


async def delete_thread(connection: Connection, thread_id: str, *, prepare: bool) -> None:
    """Delete all that the thread has.

    Args:
        connection: for this alone.
        thread_id: the thread.
        prepare: keep the statement's plan, as where a checkpoint is read.
    """
    await connection.execute(_DELETE_THREAD, {"thread_id": thread_id}, prepare=prepare or None)


async def delete_for_runs(connection: Connection, run_ids: list[str]) -> None:
    """Delete what these runs wrote, in all threads. Reads the metadata of all checkpoints: there is no index.

    A run that is active on one of the threads must be waited for: a checkpoint that it commits meanwhile would lose the
    values that it shares with a deleted one.

    Raises:
        DeltaChannelError: what stays could not be rebuilt.
    """
    async with connection.transaction():
        await connection.execute("SET LOCAL enable_seqscan = on")  # `POOL_SETTINGS` has it off
        found = await connection.execute(_THREADS_OF_RUNS, {"run_ids": run_ids})
        for thread in await found.fetchall():
            outlines = await connection.execute(_OUTLINES, thread)
            gone = of_runs((_outline(row) for row in await outlines.fetchall()), run_ids)
            await _delete(connection, thread["thread_id"], gone)


async def prune(connection: Connection, thread_id: str) -> None:
    """Delete all of a thread but the latest checkpoint of each namespace, in a transaction of the caller's.

    Raises:
        DeltaChannelError: what stays could not be rebuilt; nothing was deleted.
    """
    outlines = await connection.execute(_OUTLINES, {"thread_id": thread_id})
    await _delete(connection, thread_id, all_but_latest(_outline(row) for row in await outlines.fetchall()))


async def copy_thread(connection: Connection, source: str, target: str) -> None:
    """Copy all checkpoints, writes and channels' values of a thread; of one that is not there, none.

    Raises:
        ThreadExistsError: the target has checkpoints already.
    """
    values = {"source": source, "target": target}
    async with connection.transaction():
        await connection.execute(_LOCK_TARGET, values)
        found = await connection.execute(_HAS_CHECKPOINTS, values)
        if await found.fetchone() is not None:
            raise ThreadExistsError(target_exists(target))
        for statement in _COPY:
            await connection.execute(statement, values)


async def _delete(connection: Connection, thread_id: str, gone: Iterable[CheckpointOutline]) -> None:
    deleted: dict[str, list[str]] = {}
    for one in gone:
        deleted.setdefault(one.namespace, []).append(one.checkpoint_id)
    for namespace, ids in sorted(deleted.items()):
        values: dict[str, Any] = {"thread_id": thread_id, "namespace": namespace, "ids": ids}
        freed = await (await connection.execute(_DELETE_CHECKPOINTS, values)).fetchall()
        values |= {"channels": [row["channel"] for row in freed], "versions": [row["version"] for row in freed]}
        for statement in (_DELETE_WRITES, _FORGET_PARENTS, _DELETE_BLOBS):
            await connection.execute(statement, values)


def _outline(row: dict[str, Any]) -> CheckpointOutline:
    return CheckpointOutline(*(row[name] for name in _OUTLINE_COLUMNS))


_OUTLINE_COLUMNS: Final = ("thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id", "metadata")
