"""Lists of checkpoints: as `AsyncSqliteSaver` has them, but two statements a page. It has one more per checkpoint."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from langgraph.checkpoint.base import CheckpointTuple, PendingWrite
from langgraph.checkpoint.sqlite.utils import load_pending_writes, search_where

from skeino.persistence.paging import Place

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.serde.base import SerializerProtocol

_CHECKPOINTS: Final = """
    SELECT thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
    FROM checkpoints {where} ORDER BY checkpoint_id DESC, thread_id, checkpoint_ns LIMIT ?
    """

_AFTER: Final = "checkpoint_id <= ? AND (checkpoint_id < ? OR (thread_id, checkpoint_ns) > (?, ?))"

# CROSS JOIN: the places in turn, each by the index of the writes (https://www.sqlite.org/optoverview.html#crossjoin).
_WRITES: Final = """
    SELECT place.key, w.task_id, w.channel, w.type, w.value, w.task_path, w.idx
    FROM json_each(?) AS place CROSS JOIN writes AS w
    WHERE w.thread_id = json_extract(place.value, '$[0]')
        AND w.checkpoint_ns = json_extract(place.value, '$[1]')
        AND w.checkpoint_id = json_extract(place.value, '$[2]')
    """


def page(
    connection: sqlite3.Connection,
    serde: SerializerProtocol,
    config: RunnableConfig | None,
    filter: dict[str, Any] | None,
    before: RunnableConfig | None,
    after: Place | None,
    size: int,
) -> list[CheckpointTuple]:
    """The checkpoints after that place, from the newest to the oldest."""
    where, values = search_where(config, filter, before)
    if after is not None:
        where = f"{where} AND {_AFTER}" if where else f"WHERE {_AFTER}"
        values = [*values, after.checkpoint_id, *after]
    rows = connection.execute(_CHECKPOINTS.format(where=where), (*values, size)).fetchall()
    writes = _writes(connection, serde, [row[:3] for row in rows])
    return [_loaded(serde, row, pending) for row, pending in zip(rows, writes, strict=True)]


def _writes(
    connection: sqlite3.Connection, serde: SerializerProtocol, places: Sequence[tuple[str, str, str]]
) -> list[list[PendingWrite]]:
    """The pending writes of each checkpoint."""
    found: list[list[Any]] = [[] for _ in places]
    for number, *write in connection.execute(_WRITES, (json.dumps(places),)):
        found[number].append(write)
    return [load_pending_writes(writes, serde) for writes in found]


def _loaded(serde: SerializerProtocol, row: Sequence[Any], writes: list[PendingWrite]) -> CheckpointTuple:
    thread_id, namespace, checkpoint_id, parent_id, kind, checkpoint, metadata = row
    return CheckpointTuple(
        _config(thread_id, namespace, checkpoint_id),
        serde.loads_typed((kind, checkpoint)),
        json.loads(metadata) if metadata is not None else {},
        _config(thread_id, namespace, parent_id) if parent_id else None,
        writes,
    )


def _config(thread_id: str, namespace: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}}
