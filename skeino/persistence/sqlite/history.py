"""Parts of threads' histories in LangGraph's SQLite tables: deleted by run, copied, pruned.

Each function works inside the writer's transaction: all of it happens, or nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from skeino.errors import ThreadExistsError
from skeino.persistence.pruning import (
    CheckpointOutline,
    all_but_latest,
    checked_copy,
    checked_prune,
    checked_run_ids,
    of_runs,
    target_exists,
)

# Metadata with a NaN in it, which is no JSON, is read to see.
_THREADS_OF_RUNS: Final = """
SELECT DISTINCT thread_id FROM checkpoints
WHERE CASE WHEN json_valid(CAST(metadata AS TEXT))
    THEN json_extract(CAST(metadata AS TEXT), '$.run_id') IN (SELECT value FROM json_each(?))
    ELSE metadata IS NOT NULL END
"""

_OUTLINES: Final = """
SELECT thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, metadata FROM checkpoints WHERE thread_id = ?
"""

_DELETE: Final = (
    "DELETE FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
    "DELETE FROM writes WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
)

_FORGET_PARENTS: Final = """
UPDATE checkpoints SET parent_checkpoint_id = NULL
WHERE thread_id = ? AND checkpoint_ns = ? AND parent_checkpoint_id IN (SELECT value FROM json_each(?))
"""

_DELETE_THREAD: Final = ("DELETE FROM checkpoints WHERE thread_id = ?", "DELETE FROM writes WHERE thread_id = ?")

_HAS_CHECKPOINTS: Final = "SELECT 1 FROM checkpoints WHERE thread_id = ? LIMIT 1"

_COPY: Final = (
    """
    INSERT INTO checkpoints (
        thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
    )
    SELECT :target, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
    FROM checkpoints WHERE thread_id = :source
    """,
    """
    INSERT INTO writes (
        thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, value
    )
    SELECT :target, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, value
    FROM writes WHERE thread_id = :source
    """,
)


def delete_for_runs(connection: sqlite3.Connection, run_ids: Sequence[str]) -> None:
    """Delete what these runs wrote, in all threads. Reads the metadata of all checkpoints: there is no index.

    Raises:
        DeltaChannelError: what stays could not be rebuilt.
    """
    wanted = checked_run_ids(run_ids)
    threads = [thread_id for (thread_id,) in connection.execute(_THREADS_OF_RUNS, (json.dumps(wanted),)).fetchall()]
    for thread_id in threads:
        _delete(connection, of_runs(_outlines(connection, thread_id), wanted))


def copy_thread(connection: sqlite3.Connection, source_thread_id: str, target_thread_id: str) -> None:
    """Copy all checkpoints and writes of a thread; of one that is not there, none.

    Raises:
        ThreadExistsError: the target has checkpoints already.
    """
    source, target = checked_copy(source_thread_id, target_thread_id)
    if connection.execute(_HAS_CHECKPOINTS, (target,)).fetchone():
        raise ThreadExistsError(target_exists(target))
    connection.execute("DELETE FROM writes WHERE thread_id = ?", (target,))  # of no checkpoint
    for statement in _COPY:
        connection.execute(statement, {"source": source, "target": target})


def prune(connection: sqlite3.Connection, thread_ids: Sequence[str], strategy: str) -> None:
    """Delete all checkpoints of these threads, or all but the latest of each namespace.

    Raises:
        DeltaChannelError: what stays could not be rebuilt.
    """
    threads, strategy = checked_prune(thread_ids, strategy)
    for thread_id in threads:
        if strategy == "delete":
            for statement in _DELETE_THREAD:
                connection.execute(statement, (thread_id,))
        else:
            _delete(connection, all_but_latest(_outlines(connection, thread_id)))


def _outlines(connection: sqlite3.Connection, thread_id: str) -> list[CheckpointOutline]:
    return [
        CheckpointOutline(thread, namespace, checkpoint_id, parent_id, json.loads(metadata or "{}"))
        for thread, namespace, checkpoint_id, parent_id, metadata in connection.execute(
            _OUTLINES, (thread_id,)
        ).fetchall()
    ]


def _delete(connection: sqlite3.Connection, gone: Iterable[CheckpointOutline]) -> None:
    deleted: dict[tuple[str, str], list[str]] = {}
    for one in gone:
        for statement in _DELETE:
            connection.execute(statement, one[:3])
        deleted.setdefault((one.thread_id, one.namespace), []).append(one.checkpoint_id)
    for place, checkpoint_ids in deleted.items():
        connection.execute(_FORGET_PARENTS, (*place, json.dumps(checkpoint_ids)))
