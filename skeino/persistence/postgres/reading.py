"""Checkpoints read as `AsyncPostgresSaver` has them, a page at a time, and without a look at the whole thread for each.

The stock saver's statement joins a checkpoint's channel versions to the blobs, which PostgreSQL does by going through
all blobs of the thread: the longer the thread, the slower it is to read one checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from langgraph.checkpoint.base import CheckpointTuple, get_checkpoint_id
from langgraph.checkpoint.serde.types import TASKS

from skeino.persistence.paging import Place
from skeino.persistence.postgres.arrays import ARRAYS

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import Checkpoint
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
    from psycopg import AsyncCursor
    from psycopg.rows import DictRow

# LIMIT 1 keeps PostgreSQL from turning the look-up by primary key into a join. Text becomes bytes by convert_to: the
# stock saver's cast takes a backslash, in a node's name say, for an escape.
_SELECT: Final = """
SELECT
    thread_id, checkpoint, checkpoint_ns, checkpoint_id, parent_checkpoint_id, metadata,
    (
        SELECT array_agg(ARRAY[convert_to(blob.channel, 'UTF8'), convert_to(blob.type, 'UTF8'), blob.blob])
        FROM jsonb_each_text(checkpoint -> 'channel_versions') AS version
        CROSS JOIN LATERAL (
            SELECT b.channel, b.type, b.blob FROM checkpoint_blobs b
            WHERE b.thread_id = checkpoints.thread_id AND b.checkpoint_ns = checkpoints.checkpoint_ns
                AND b.channel = version.key AND b.version = version.value
            LIMIT 1
        ) AS blob
    ) AS channel_values,
    (
        SELECT array_agg(ARRAY[
            convert_to(w.task_id, 'UTF8'), convert_to(w.channel, 'UTF8'), convert_to(w.type, 'UTF8'), w.blob,
            convert_to(w.task_path, 'UTF8'), convert_to(w.idx::text, 'UTF8')
        ])
        FROM checkpoint_writes w
        WHERE w.thread_id = checkpoints.thread_id AND w.checkpoint_ns = checkpoints.checkpoint_ns
            AND w.checkpoint_id = checkpoints.checkpoint_id
    ) AS pending_writes
FROM checkpoints """

_ONE: Final = "WHERE thread_id = %s AND checkpoint_ns = %s AND checkpoint_id = %s"
_LATEST: Final = "WHERE thread_id = %s AND checkpoint_ns = %s ORDER BY checkpoint_id DESC LIMIT 1"
_AFTER: Final = "checkpoint_id <= %s AND (checkpoint_id < %s OR (thread_id, checkpoint_ns) > (%s, %s))"
_PAGE: Final = " ORDER BY checkpoint_id DESC, thread_id, checkpoint_ns LIMIT %s"

_LATEST_OF_EACH: Final = f"""
SELECT asked.position, latest.*
FROM unnest(%b::text[], %b::text[]) WITH ORDINALITY AS asked (thread_id, checkpoint_ns, position)
CROSS JOIN LATERAL ({_SELECT}
    WHERE checkpoints.thread_id = asked.thread_id AND checkpoints.checkpoint_ns = asked.checkpoint_ns
    ORDER BY checkpoints.checkpoint_id DESC LIMIT 1
) AS latest
"""

_SENDS: Final = f"""
SELECT w.thread_id, w.checkpoint_id, array_agg(ARRAY[type::bytea, blob] ORDER BY task_path, task_id, idx) AS sends
FROM checkpoint_writes w JOIN unnest(%s::text[], %s::text[]) AS parent (thread_id, checkpoint_id)
    ON parent.thread_id = w.thread_id AND parent.checkpoint_id = w.checkpoint_id
WHERE channel = '{TASKS}'
GROUP BY w.thread_id, w.checkpoint_id
"""


async def one(
    cursor: AsyncCursor[DictRow], saver: AsyncPostgresSaver, config: RunnableConfig, *, prepare: bool
) -> list[DictRow]:
    """The row of the checkpoint that the config names, or of the latest.

    Args:
        cursor: of a connection for this alone.
        saver: loads what is stored.
        config: names the thread, its namespace, and maybe a checkpoint.
        prepare: keep the statement's plan, which takes longer to make than the row to be read.
    """
    configurable = config["configurable"]
    place = [configurable["thread_id"], configurable.get("checkpoint_ns", "")]
    if checkpoint_id := get_checkpoint_id(config):
        return await _rows(cursor, saver, _ONE, [*place, checkpoint_id], prepare=prepare)
    return await _rows(cursor, saver, _LATEST, place, prepare=prepare)


async def latest_of_each(
    cursor: AsyncCursor[DictRow], places: Sequence[tuple[str, str]], *, prepare: bool
) -> Sequence[Sequence[DictRow] | None]:
    """For each thread and namespace the row of its latest checkpoint, if there is one.

    None, where an old LangGraph has left a part of it in the writes of the step before.
    """
    arrays = [*map(ARRAYS["text"], zip(*places, strict=True))]
    await cursor.execute(_LATEST_OF_EACH, arrays, binary=True, prepare=prepare or None)
    found: list[Sequence[DictRow] | None] = [()] * len(places)
    for row in await cursor.fetchall():
        found[row.pop("position") - 1] = None if _is_old(row) else [row]
    return found


async def page(
    cursor: AsyncCursor[DictRow],
    saver: AsyncPostgresSaver,
    config: RunnableConfig | None,
    filter: dict[str, Any] | None,
    before: RunnableConfig | None,
    after: Place | None,
    size: int,
) -> list[DictRow]:
    """The rows of the checkpoints after that place, from the newest to the oldest."""
    where, values = saver._search_where(config, filter, before)
    if after is not None:
        where = f"{where} AND {_AFTER}" if where else f"WHERE {_AFTER}"
        values = [*values, after.checkpoint_id, *after]
    return await _rows(cursor, saver, where + _PAGE, [*values, size])


async def _rows(
    cursor: AsyncCursor[DictRow],
    saver: AsyncPostgresSaver,
    clauses: str,
    values: Sequence[Any],
    *,
    prepare: bool | None = None,
) -> list[DictRow]:
    await cursor.execute(_SELECT + clauses, values, binary=True, prepare=prepare or None)
    rows = await cursor.fetchall()
    if old := [row for row in rows if _is_old(row)]:
        parents = {(row["thread_id"], row["parent_checkpoint_id"]) for row in old}
        await cursor.execute(_SENDS, [*map(list, zip(*parents, strict=True))], binary=True)
        sends = {(row["thread_id"], row["checkpoint_id"]): row["sends"] for row in await cursor.fetchall()}
        for row in old:
            if found := sends.get((row["thread_id"], row["parent_checkpoint_id"])):
                row["channel_values"] = row["channel_values"] or []
                saver._migrate_pending_sends(found, row["checkpoint"], row["channel_values"])
    return rows


def _is_old(row: DictRow) -> bool:
    """Whether it is of a LangGraph that had what is sent to the next step in the writes of the step before."""
    return bool(row["checkpoint"]["v"] < 4 and row["parent_checkpoint_id"])


def loaded(saver: AsyncPostgresSaver, rows: Sequence[DictRow]) -> list[CheckpointTuple]:
    """What the rows hold."""
    return [
        CheckpointTuple(
            _config(row, row["checkpoint_id"]),
            _checkpoint(row["checkpoint"], saver._load_blobs(row["channel_values"])),
            row["metadata"],
            _config(row, row["parent_checkpoint_id"]) if row["parent_checkpoint_id"] else None,
            saver._load_writes(row["pending_writes"]),
        )
        for row in rows
    ]


def _checkpoint(stored: Any, blobs: dict[str, Any]) -> Checkpoint:
    checkpoint: Checkpoint = stored | {"channel_values": {**(stored.get("channel_values") or {}), **blobs}}
    return checkpoint


def size_of(rows: Sequence[DictRow]) -> int:
    """Bytes that are to be deserialized."""
    blobs = (len(one[2] or b"") for row in rows for one in row["channel_values"] or ())
    return sum(blobs) + sum(len(one[3]) for row in rows for one in row["pending_writes"] or ())


def _config(row: DictRow, checkpoint_id: str) -> RunnableConfig:
    return {
        "configurable": {
            "thread_id": row["thread_id"],
            "checkpoint_ns": row["checkpoint_ns"],
            "checkpoint_id": checkpoint_id,
        }
    }
