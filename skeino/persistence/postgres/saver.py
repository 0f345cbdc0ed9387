"""LangGraph's PostgreSQL saver over the shared pool: same tables, same bytes, no lock of its own."""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from langgraph.checkpoint.base import WRITES_IDX_MAP, get_checkpoint_id, get_serializable_checkpoint_metadata
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from psycopg import AsyncCursor
from psycopg.rows import DictRow, dict_row

from skeino.errors import DeltaChannelError, StoreError, ThreadExistsError
from skeino.persistence.cancellation import CancelledOnItsWayError
from skeino.persistence.inventory import StoredWrite
from skeino.persistence.latest import LatestReads
from skeino.persistence.paging import Place, paged
from skeino.persistence.postgres import history, reading
from skeino.persistence.postgres.checkpoints import CHECKPOINT, INSERTED, UPSERTED
from skeino.persistence.postgres.connections import PostgresDatabase
from skeino.persistence.postgres.jsonb import json_bytes, json_bytes_of_metadata, plain
from skeino.persistence.postgres.session import LOST_PLANS
from skeino.persistence.pruning import checked_copy, checked_prune, checked_run_ids, target_exists
from skeino.persistence.stamping import RunStampMixin, fence_of

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, CheckpointTuple

T = TypeVar("T")

_UNIQUE_VIOLATION: Final = "23505"
_LARGE: Final = 64 * 1024  # bytes, which take a millisecond or so to deserialize
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_COLLECTIONS: Final = frozenset((list, tuple, set, frozenset, deque))  # LangGraph has a task's writes in a deque
_SMALL: Final = frozenset((int, float, bool, type(None)))


class PostgresDatabaseSaver(AsyncPostgresSaver):
    """`AsyncPostgresSaver` over `PostgresDatabase`.

    The stock saver takes one lock for the whole process even over a pool, and holds it while the reader of
    `alist` is paused. Each operation here has a connection of its own instead.
    """

    def __init__(self, database: PostgresDatabase) -> None:
        super().__init__(cast("Any", database.pool))
        self.database = database
        self.supports_pipeline = self.supports_pipeline and database.pipeline
        self._latest: LatestReads[tuple[str, str], DictRow] = LatestReads(self._latest_of_each)

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        async with self.database.connection() as connection:
            if not pipeline:
                together: Any = nullcontext()
            elif self.supports_pipeline:
                together = connection.pipeline()
            else:
                together = connection.transaction()
            async with together, connection.cursor(binary=True, row_factory=dict_row) as cursor:
                yield cursor

    # ── Writing: as the stock saver, but together with others, and in one statement ──────────────────────

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        configurable = config["configurable"]
        thread_id, namespace = configurable["thread_id"], configurable["checkpoint_ns"]
        inline, values = _inline_and_blobs(checkpoint["channel_values"])
        versions = {channel: version for channel, version in new_versions.items() if channel in values}
        blobs = await _serialized(self._dump_blobs, thread_id, namespace, values, versions)
        as_json = json_bytes({**checkpoint, "channel_values": inline})
        metadata_as_json = json_bytes_of_metadata(get_serializable_checkpoint_metadata(config, metadata))
        place = (thread_id, namespace, checkpoint["id"])
        row = (*place, configurable.get("checkpoint_id"), as_json.decode(), metadata_as_json.decode())
        run, fence = fence_of(config)
        written = self.database.writer.enqueue(
            CHECKPOINT,
            {"checkpoint": row, "blobs": blobs, "fence": fence},
            ("checkpoint", *place),
            thread=("checkpoints", thread_id),
            size=len(as_json) + len(metadata_as_json) + sum(len(blob[5] or b"") for blob in blobs),
        )
        try:
            refused = await written
        except asyncio.CancelledError as exc:
            raise CancelledOnItsWayError(*exc.args) from None
        if refused and run is not None:
            raise run.refused(thread_id)
        return {"configurable": {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": checkpoint["id"]}}

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        if not writes:
            return
        configurable = config["configurable"]
        place = (configurable["thread_id"], configurable["checkpoint_ns"], configurable["checkpoint_id"])
        rows = await _serialized(self._dump_writes, *place, task_id, task_path, writes)
        kind = INSERTED
        if all(channel in WRITES_IDX_MAP for channel, _ in writes):
            kind, rows = UPSERTED, list({row[5]: row for row in rows}.values())  # the last of each index
        run, fence = fence_of(config)
        written = self.database.writer.enqueue(
            kind,
            {"rows": rows, "fence": fence},
            ("writes", *place, task_id),
            thread=("checkpoints", place[0]),
            size=sum(len(row[8]) for row in rows),
        )
        try:
            refused = await written
        except asyncio.CancelledError as exc:
            raise CancelledOnItsWayError(*exc.args) from None
        if refused and run is not None:
            raise run.refused(place[0])

    # ── Reading ──────────────────────────────────────────────────────────────────────────────────────────

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        async def alone() -> Sequence[DictRow]:
            return await self._with_kept_plans(lambda: self._row_of(config))

        if get_checkpoint_id(config):
            rows = await alone()
        else:
            configurable = config["configurable"]
            rows = await self._latest.rows((configurable["thread_id"], configurable.get("checkpoint_ns", "")), alone)
        found = await self._loaded(rows)
        return found[0] if found else None

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        async def read(after: Place | None, size: int) -> Sequence[CheckpointTuple]:
            rows = await self._read(lambda cursor: reading.page(cursor, self, config, filter, before, after, size))
            return await self._loaded(rows)  # the connection is back in the pool by now

        async for checkpoint in paged(read, limit):
            yield checkpoint

    async def _row_of(self, config: RunnableConfig) -> Sequence[DictRow]:
        async def read(cursor: AsyncCursor[DictRow]) -> list[DictRow]:
            prepare = await self.database.keeps_plans(cursor.connection)
            return await reading.one(cursor, self, config, prepare=prepare)

        return await self._read(read)

    async def _latest_of_each(self, places: Sequence[tuple[str, str]]) -> Sequence[Sequence[DictRow] | None]:
        async def read(cursor: AsyncCursor[DictRow]) -> Sequence[Sequence[DictRow] | None]:
            prepare = await self.database.keeps_plans(cursor.connection)
            return await reading.latest_of_each(cursor, places, prepare=prepare)

        return await self._with_kept_plans(lambda: self._read(read))

    async def _read(self, read: Callable[[AsyncCursor[DictRow]], Awaitable[T]]) -> T:
        """What is read; again, if the connection is lost meanwhile."""

        async def once() -> T:
            async with self._cursor() as cursor:
                return await read(cursor)

        return await self.database.repeated(once)

    async def _with_kept_plans(self, operation: Callable[[], Awaitable[T]]) -> T:
        """The operation's result; a second time without, if there is a pooler, after all."""
        try:
            return await operation()
        except StoreError as exc:
            if exc.sqlstate not in LOST_PLANS:
                raise
            self.database.prepare_no_more()
            return await operation()

    async def _loaded(self, rows: Sequence[DictRow]) -> Sequence[CheckpointTuple]:
        """What the rows hold; the stock saver goes to a thread for each, and for small ones the way takes longer."""
        if reading.size_of(rows) > _LARGE:
            return await asyncio.to_thread(reading.loaded, self, rows)
        return reading.loaded(self, rows)

    # ── Deleting and copying: what the stock saver lacks, and its pruning with our errors ────────────────

    async def adelete_thread(self, thread_id: str) -> None:
        await self._settled(thread_id)

        async def delete() -> None:
            async with self.database.connection() as connection:
                prepare = await self.database.keeps_plans(connection)
                await history.delete_thread(connection, str(thread_id), prepare=prepare)

        await self._with_kept_plans(delete)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        wanted = checked_run_ids(run_ids)
        await self._settled()
        async with self.database.connection() as connection:
            await history.delete_for_runs(connection, wanted)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        source, target = checked_copy(source_thread_id, target_thread_id)
        await self._settled(source, target)
        try:
            async with self.database.connection() as connection:
                await history.copy_thread(connection, source, target)
        except StoreError as exc:
            if exc.sqlstate == _UNIQUE_VIOLATION:  # another process was faster
                raise ThreadExistsError(target_exists(target)) from exc
            raise

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        threads, strategy = checked_prune(thread_ids, strategy)
        await self._settled(*threads)
        try:
            await super().aprune(threads, strategy=strategy)
        except NotImplementedError as exc:
            raise DeltaChannelError(
                "One of the threads has delta channels, which are rebuilt from its older checkpoints: it cannot be "
                "pruned to the latest ones."
            ) from exc

    async def _settled(self, *threads: str) -> None:
        """Wait for the writes of calls that were cancelled: what is deleted must not come back."""
        for thread_id in threads or (None,):
            await self.database.writer.settled(("checkpoints", thread_id))

    # ── `StateInventory` ─────────────────────────────────────────────────────────────────────────────────

    async def aidentity(self) -> str:
        async with self._cursor() as cursor:
            await cursor.execute(
                "SELECT pg_postmaster_start_time()::text || '/' || current_database() || '/' || "
                "'checkpoints'::regclass::oid::text AS identity"
            )
            row = await cursor.fetchone()
            return str(row and row["identity"])

    async def athread_ids(self, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        async with self._cursor() as cursor:
            await cursor.execute(
                "SELECT DISTINCT thread_id FROM checkpoints WHERE thread_id > %s ORDER BY thread_id LIMIT %s",
                (after, limit),
            )
            return [row["thread_id"] for row in await cursor.fetchall()]

    async def ainventory(self, thread_id: str) -> dict[tuple[str, str], int]:
        async with self._cursor() as cursor:
            await cursor.execute(
                """
                SELECT checkpoint_ns, checkpoint_id, (
                    SELECT count(*) FROM checkpoint_writes w WHERE w.thread_id = c.thread_id
                        AND w.checkpoint_ns = c.checkpoint_ns AND w.checkpoint_id = c.checkpoint_id
                ) AS writes FROM checkpoints c WHERE thread_id = %s
                """,
                (thread_id,),
            )
            return {(row["checkpoint_ns"], row["checkpoint_id"]): row["writes"] for row in await cursor.fetchall()}

    async def awrites(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> Sequence[StoredWrite]:
        async with self._cursor() as cursor:
            await cursor.execute(
                """
                SELECT task_id, task_path, idx, channel, type, blob FROM checkpoint_writes
                WHERE thread_id = %s AND checkpoint_ns = %s AND checkpoint_id = %s
                ORDER BY task_path COLLATE "C", task_id COLLATE "C", idx
                """,
                (thread_id, checkpoint_ns, checkpoint_id),
            )
            return [
                StoredWrite(
                    row["task_id"], row["task_path"], row["idx"], row["channel"], row["type"], bytes(row["blob"])
                )
                for row in await cursor.fetchall()
            ]

    async def arestore_writes(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str, writes: Sequence[StoredWrite]
    ) -> None:
        values = [(thread_id, checkpoint_ns, checkpoint_id, *write) for write in writes]
        async with self._cursor(pipeline=True) as cursor:
            await cursor.executemany(self.INSERT_CHECKPOINT_WRITES_SQL, values)


def _inline_and_blobs(channel_values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Channels' values as the stock saver divides them: what the checkpoint's row has, and what has rows of its own.

    The stock saver puts all texts and numbers into the row, which PostgreSQL refuses if a text has a NUL or a lone
    surrogate in it, as a client's may, or a number is none. They have rows of their own here, which it reads as well.
    """
    inline: dict[str, Any] = {}
    blobs: dict[str, Any] = {}
    for channel, value in channel_values.items():
        if isinstance(value, _DeltaSnapshot):
            inline[channel], blobs[channel] = True, value
        elif _is_inline(value):
            inline[channel] = plain(value)
        else:
            blobs[channel] = value
    return inline, blobs


def _is_inline(value: object) -> bool:
    if isinstance(value, str):
        if value.isascii():
            return "\x00" not in value
        return "\x00" not in value and _SURROGATE.search(value) is None
    return value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


async def _serialized(dump: Callable[..., T], *arguments: Any) -> T:
    """The result of `dump`; in a thread if the arguments are large. For small ones the way there takes longer."""
    return await asyncio.to_thread(dump, *arguments) if _is_large(arguments) else dump(*arguments)


def _is_large(value: Any) -> bool:
    """Whether it has more than some hundred parts, or KiB of text: a guess, which looks at no more than that."""
    left = 100
    parts = [value]
    while parts and left > 0:
        one = parts.pop()
        kind = type(one)  # comparing it costs a fraction of `isinstance`, and this is done for each write
        if kind is str or kind is bytes or kind is bytearray:
            left -= len(one) >> 10
        elif kind is dict or kind in _COLLECTIONS:
            left -= len(one)
            if left > 0:
                parts += one.values() if kind is dict else one
        elif kind not in _SMALL:
            left -= 5  # a message, say: its class takes part in it
    return left <= 0


class StampedPostgresSaver(RunStampMixin, PostgresDatabaseSaver):
    """`PostgresDatabaseSaver`, stamped."""

    _goes_on_though_cancelled = True
