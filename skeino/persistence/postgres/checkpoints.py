"""The SQL of checkpoints and pending writes that are written together, into LangGraph's own tables.

What is stored is what LangGraph's statements for one row would have stored, row by row:
`BasePostgresSaver.UPSERT_CHECKPOINT_BLOBS_SQL` and those beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from psycopg.types.numeric import Int8

from skeino.persistence.postgres.arrays import ARRAYS
from skeino.persistence.postgres.batches import PATIENCE, Kind, Values, given

_CHECKPOINT: Final = {
    "thread_id": "text",
    "checkpoint_ns": "text",
    "checkpoint_id": "text",
    "parent_checkpoint_id": "text",
    "checkpoint": "text",
    "metadata": "text",
}
_BLOB: Final = {
    "blob_thread_id": "text",
    "blob_checkpoint_ns": "text",
    "channel": "text",
    "version": "text",
    "type": "text",
    "blob": "bytea",
}
_WRITE: Final = {
    "thread_id": "text",
    "checkpoint_ns": "text",
    "checkpoint_id": "text",
    "task_id": "text",
    "task_path": "text",
    "idx": "integer",
    "channel": "text",
    "type": "text",
    "blob": "bytea",
}
_OF_WRITE: Final = {"of_write": "integer"}
_FENCE: Final = {"fenced_thread_id": "text", "fence": "bigint"}
"""What stands once for each write, whose number is its position. Of rows each names the write that it is a part of."""

_BLOB_KEY: Final = "blob_thread_id, blob_checkpoint_ns, channel, version"
_WRITE_KEY: Final = "thread_id, checkpoint_ns, checkpoint_id, task_id, idx"

# A write is refused if its fence is no longer its thread's. The thread's row is locked until the write is committed, so
# that nobody takes the thread meanwhile.
_REFUSED: Final = f"""
    {given("fenced", _FENCE)}, held AS MATERIALIZED (
        SELECT thread_id, fence FROM app_threads
        WHERE thread_id = ANY(ARRAY(SELECT DISTINCT fenced_thread_id FROM fenced WHERE fence IS NOT NULL))
        ORDER BY thread_id FOR SHARE
    ), refused AS MATERIALIZED (
        SELECT position FROM fenced
        WHERE fence IS NOT NULL AND (fenced_thread_id, fence) NOT IN (SELECT thread_id, fence FROM held)
    )"""
_ALLOWED: Final = "of_write NOT IN (SELECT position FROM refused)"

PUT_CHECKPOINTS: Final = f"""
    {PATIENCE}, {_REFUSED}, {given("given", _CHECKPOINT)}, {given("given_blob", {**_OF_WRITE, **_BLOB})},
    stored_blob AS (
        INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
        SELECT {", ".join(_BLOB)} FROM given_blob WHERE {_ALLOWED} ORDER BY {_BLOB_KEY}, position
        ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING
    ), stored AS (
        INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
        SELECT thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint::jsonb, metadata::jsonb
        FROM given WHERE position NOT IN (SELECT position FROM refused)
        ORDER BY thread_id, checkpoint_ns, checkpoint_id
        ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id)
        DO UPDATE SET checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata
    )
    SELECT position FROM refused
"""


def _put_writes(order: str, on_conflict: str) -> str:
    return f"""
    {PATIENCE}, {_REFUSED}, {given("given", {**_OF_WRITE, **_WRITE})}, stored AS (
        INSERT INTO checkpoint_writes ({", ".join(_WRITE)})
        SELECT {", ".join(_WRITE)} FROM given WHERE {_ALLOWED} ORDER BY {order}
        ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) {on_conflict}
    )
    SELECT position FROM refused
    """


_REPLACE: Final = "DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob"
INSERT_WRITES: Final = _put_writes(f"{_WRITE_KEY}, position", "DO NOTHING")
UPSERT_WRITES: Final = _put_writes(_WRITE_KEY, _REPLACE)


_OWN_OF_BLOB: Final = {"channel": "text", "version": "text", "type": "text", "blob": "bytea"}
_OWN_OF_WRITE: Final = {"idx": "integer", "channel": "text", "type": "text", "blob": "bytea"}
"""What the rows of one write have each for itself."""


def _unnested(types: Mapping[str, str]) -> str:
    return f"unnest({', '.join(f'%({column})b::{of_type}[]' for column, of_type in types.items())})"


_REFUSED_ONE: Final = """
    WITH held AS MATERIALIZED (
        SELECT FROM app_threads WHERE thread_id = %(thread_id)s AND fence = %(fence)s::bigint FOR SHARE
    ), refused AS MATERIALIZED (
        SELECT WHERE %(fence)s::bigint IS NOT NULL AND NOT EXISTS (SELECT FROM held)
    )"""
_ALLOWED_ONE: Final = "NOT EXISTS (SELECT FROM refused)"

PUT_CHECKPOINT: Final = f"""
    {_REFUSED_ONE}, stored_blob AS (
        INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
        SELECT %(thread_id)s, %(checkpoint_ns)s, own.* FROM {_unnested(_OWN_OF_BLOB)} AS own
        WHERE {_ALLOWED_ONE}
        ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING
    ), stored AS (
        INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
        SELECT %(thread_id)s, %(checkpoint_ns)s, %(checkpoint_id)s, %(parent_checkpoint_id)s, %(checkpoint)s::jsonb,
            %(metadata)s::jsonb
        WHERE {_ALLOWED_ONE}
        ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id)
        DO UPDATE SET checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata
    )
    SELECT 1 AS position FROM refused
"""


def _put_writes_of_one(on_conflict: str) -> str:
    return f"""
    {_REFUSED_ONE}, stored AS (
        INSERT INTO checkpoint_writes ({", ".join(_WRITE)})
        SELECT %(thread_id)s, %(checkpoint_ns)s, %(checkpoint_id)s, %(task_id)s, %(task_path)s, own.*
        FROM {_unnested(_OWN_OF_WRITE)} AS own
        WHERE {_ALLOWED_ONE}
        ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) {on_conflict}
    )
    SELECT 1 AS position FROM refused
    """


INSERT_WRITES_OF_ONE: Final = _put_writes_of_one("DO NOTHING")
UPSERT_WRITES_OF_ONE: Final = _put_writes_of_one(_REPLACE)


def _columns(types: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    columns = zip(*rows, strict=True) if rows else ((),) * len(types)
    return {name: ARRAYS[types[name]](column) for name, column in zip(types, columns, strict=True)}


def _arrays_of_checkpoints(writes: Sequence[Values]) -> dict[str, Any]:
    blobs = [(number, *row) for number, values in enumerate(writes, 1) for row in values["blobs"]]
    return {
        **_fences([values["checkpoint"][0] for values in writes], writes),
        **_columns(_CHECKPOINT, [values["checkpoint"] for values in writes]),
        **_columns({**_OF_WRITE, **_BLOB}, blobs),
    }


def _arrays_of_writes(writes: Sequence[Values]) -> dict[str, Any]:
    rows = [(number, *row) for number, values in enumerate(writes, 1) for row in values["rows"]]
    return {**_fences([values["rows"][0][0] for values in writes], writes), **_columns({**_OF_WRITE, **_WRITE}, rows)}


def _fences(threads: Sequence[str], writes: Sequence[Values]) -> dict[str, Any]:
    return _columns(_FENCE, [(thread_id, values["fence"]) for thread_id, values in zip(threads, writes, strict=True)])


def _fence(write: Values) -> dict[str, Any]:
    """Of one type, however large it is: a parameter of another would have the statement planned once more."""
    return {"fence": None if write["fence"] is None else Int8(write["fence"])}


def _checkpoint(write: Values) -> Values:
    blobs = [row[2:] for row in write["blobs"]]  # the thread and the namespace are the checkpoint's
    return {
        **_fence(write),
        **dict(zip(_CHECKPOINT, write["checkpoint"], strict=True)),
        **_columns(_OWN_OF_BLOB, blobs),
    }


def _writes(write: Values) -> Values:
    """All its rows are of one task: the first five columns are the same."""
    rows = write["rows"]
    return {
        **_fence(write),
        **dict(zip(_WRITE, rows[0][:5], strict=False)),
        **_columns(_OWN_OF_WRITE, [row[5:] for row in rows]),
    }


CHECKPOINT: Final = Kind(PUT_CHECKPOINT, PUT_CHECKPOINTS, _arrays_of_checkpoints, _checkpoint)
"""`checkpoint`: a row of `checkpoints`; `blobs`: those of `checkpoint_blobs`; `fence`: of its thread, or None. It
results in a row if it was refused for that; so do the next two.
"""

INSERTED: Final = Kind(INSERT_WRITES_OF_ONE, INSERT_WRITES, _arrays_of_writes, _writes)
"""`rows` of `checkpoint_writes`, and `fence`. One that is there already stays as it is."""

UPSERTED: Final = Kind(UPSERT_WRITES_OF_ONE, UPSERT_WRITES, _arrays_of_writes, _writes)
"""`rows` of `checkpoint_writes`, no two with the same `idx`, and `fence`; each takes the place of one that is there."""
