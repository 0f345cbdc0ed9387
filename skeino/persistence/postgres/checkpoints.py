"""The SQL of checkpoints and pending writes that are written together, into LangGraph's own tables.

What is stored is what LangGraph's statements for one row would have stored, row by row:
`BasePostgresSaver.UPSERT_CHECKPOINT_BLOBS_SQL` and those beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

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
_BLOB_KEY: Final = "blob_thread_id, blob_checkpoint_ns, channel, version"
_WRITE_KEY: Final = "thread_id, checkpoint_ns, checkpoint_id, task_id, idx"

PUT_CHECKPOINTS: Final = f"""
    {PATIENCE}, {given("given", _CHECKPOINT)}, {given("given_blob", _BLOB)}, stored AS (
        INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
        SELECT {", ".join(_BLOB)} FROM given_blob ORDER BY {_BLOB_KEY}, position
        ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING
    )
    INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
    SELECT thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint::jsonb, metadata::jsonb
    FROM given ORDER BY thread_id, checkpoint_ns, checkpoint_id
    ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id)
    DO UPDATE SET checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata
"""
INSERT_WRITES: Final = f"""
    {PATIENCE}, {given("given", _WRITE)}
    INSERT INTO checkpoint_writes ({", ".join(_WRITE)})
    SELECT {", ".join(_WRITE)} FROM given ORDER BY {_WRITE_KEY}, position
    ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) DO NOTHING
"""
UPSERT_WRITES: Final = f"""
    {PATIENCE}, {given("given", _WRITE)}
    INSERT INTO checkpoint_writes ({", ".join(_WRITE)})
    SELECT {", ".join(_WRITE)} FROM given ORDER BY {_WRITE_KEY}
    ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
    DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob
"""


def _unnested(*columns: str) -> str:
    """The rows of one write, which have these columns of their own."""
    types = {**_BLOB, **_WRITE}
    return f"unnest({', '.join(f'%({column})b::{types[column]}[]' for column in columns)})"


PUT_CHECKPOINT: Final = f"""
    WITH stored AS (
        INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
        SELECT %(thread_id)s, %(checkpoint_ns)s, own.* FROM {_unnested("channel", "version", "type", "blob")} AS own
        ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING
    )
    INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
    VALUES (%(thread_id)s, %(checkpoint_ns)s, %(checkpoint_id)s, %(parent_checkpoint_id)s, %(checkpoint)s::jsonb,
        %(metadata)s::jsonb)
    ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id)
    DO UPDATE SET checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata
"""
_WRITES_OF_ONE: Final = f"""
    INSERT INTO checkpoint_writes ({", ".join(_WRITE)})
    SELECT %(thread_id)s, %(checkpoint_ns)s, %(checkpoint_id)s, %(task_id)s, %(task_path)s, own.*
    FROM {_unnested("idx", "channel", "type", "blob")} AS own
    ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
"""
INSERT_WRITES_OF_ONE: Final = f"{_WRITES_OF_ONE} DO NOTHING"
UPSERT_WRITES_OF_ONE: Final = f"""
    {_WRITES_OF_ONE} DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob
"""


def _columns(types: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    columns = zip(*rows, strict=True) if rows else ([] for _ in types)
    return {name: list(column) for name, column in zip(types, columns, strict=True)}


def _arrays_of_checkpoints(writes: Sequence[Values]) -> dict[str, Any]:
    return {
        **_columns([*_CHECKPOINT], [values["checkpoint"] for values in writes]),
        **_columns([*_BLOB], [row for values in writes for row in values["blobs"]]),
    }


def _arrays_of_writes(writes: Sequence[Values]) -> dict[str, Any]:
    return _columns([*_WRITE], [row for values in writes for row in values["rows"]])


def _checkpoint(write: Values) -> Values:
    blobs = [row[2:] for row in write["blobs"]]  # the thread and the namespace are the checkpoint's
    return {
        **dict(zip(_CHECKPOINT, write["checkpoint"], strict=True)),
        **_columns(("channel", "version", "type", "blob"), blobs),
    }


def _writes(write: Values) -> Values:
    """All its rows are of one task: the first five columns are the same."""
    rows = write["rows"]
    return {
        **dict(zip(_WRITE, rows[0][:5], strict=False)),
        **_columns(("idx", "channel", "type", "blob"), [row[5:] for row in rows]),
    }


CHECKPOINT: Final = Kind(PUT_CHECKPOINT, PUT_CHECKPOINTS, _arrays_of_checkpoints, _checkpoint)
"""`checkpoint`: a row of `checkpoints`; `blobs`: those of `checkpoint_blobs`."""

INSERTED: Final = Kind(INSERT_WRITES_OF_ONE, INSERT_WRITES, _arrays_of_writes, _writes)
"""`rows` of `checkpoint_writes`. One that is there already stays as it is."""

UPSERTED: Final = Kind(UPSERT_WRITES_OF_ONE, UPSERT_WRITES, _arrays_of_writes, _writes)
"""`rows` of `checkpoint_writes`, no two with the same `idx`; each takes the place of one that is there already."""
