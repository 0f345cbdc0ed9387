"""LangGraph's SQLite saver over the shared `SqliteDatabase`: same tables, same bytes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from skeino.persistence.cancellation import CancelledOnItsWayError
from skeino.persistence.inventory import StoredWrite
from skeino.persistence.paging import Place, paged
from skeino.persistence.sqlite import history
from skeino.persistence.sqlite.checkpoints import page
from skeino.persistence.sqlite.database import SqliteDatabase
from skeino.persistence.stamping import RunStampMixin, fence_of

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import (
        ChannelVersions,
        Checkpoint,
        CheckpointMetadata,
        CheckpointTuple,
        DeltaChannelHistory,
    )
    from langgraph.checkpoint.serde.base import SerializerProtocol


T = TypeVar("T")


class _RefusedError(Exception):
    """The thread's fence is another one now. Nothing was written."""


class SqliteDatabaseSaver(AsyncSqliteSaver):
    """`AsyncSqliteSaver` that reads through the database's readers and writes through its writer thread.

    The stock saver leaves its transaction open when a write is cancelled, and holds its lock while the reader
    of `alist` is paused; this one does neither. Nor does it go to its thread and back for each step of an operation.
    """

    def __init__(self, database: SqliteDatabase) -> None:
        super().__init__(database.reader)
        self.database = database
        self.is_setup = True  # the tables were made, or verified, when the database was opened

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return await self._write(config, lambda saver: saver.put(config, checkpoint, metadata, new_versions))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await self._write(config, lambda saver: saver.put_writes(config, writes, task_id, task_path))

    async def _write(self, config: RunnableConfig, work: Callable[[SqliteSaver], T]) -> T:
        """What the work results in, unless the current run may no longer write to the thread."""
        run, fence = fence_of(config)
        thread_id = config["configurable"]["thread_id"]

        def write(connection: sqlite3.Connection) -> T:
            if fence is not None:
                statement = "SELECT 1 FROM app_threads WHERE thread_id = ? AND fence = ?"
                if connection.execute(statement, (thread_id, fence)).fetchone() is None:
                    raise _RefusedError
            return work(self._within(connection))

        try:
            return await self.database.write(write)
        except asyncio.CancelledError as exc:
            raise CancelledOnItsWayError(*exc.args) from None
        except _RefusedError:
            assert run is not None  # who else has a fence
            raise run.refused(thread_id) from None

    async def adelete_thread(self, thread_id: str) -> None:
        await self.database.write(lambda connection: self._within(connection).delete_thread(thread_id))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return await self.database.reading(lambda connection: self._within(connection).get_tuple(config))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        async def read(after: Place | None, size: int) -> Sequence[CheckpointTuple]:
            return await self.database.reading(
                lambda connection: page(connection, self.serde, config, filter, before, after, size)
            )

        async for checkpoint in paged(read, limit):
            yield checkpoint

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return await self.database.reading(
            lambda connection: self._within(connection).get_delta_channel_history(config=config, channels=channels)
        )

    # ── What the stock saver lacks ───────────────────────────────────────────────────────────────────────

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        await self.database.write(lambda connection: history.delete_for_runs(connection, run_ids))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        await self.database.write(
            lambda connection: history.copy_thread(connection, source_thread_id, target_thread_id)
        )

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        await self.database.write(lambda connection: history.prune(connection, thread_ids, strategy))

    def _within(self, connection: sqlite3.Connection) -> _SaverInTransaction:
        return _SaverInTransaction(connection, self.serde)

    # ── `StateInventory` ─────────────────────────────────────────────────────────────────────────────────

    async def aidentity(self) -> str:
        file = self.database.path.stat()
        return f"{file.st_dev}/{file.st_ino}"

    async def athread_ids(self, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        rows = await self.database.read(
            "SELECT DISTINCT thread_id FROM checkpoints WHERE thread_id > ? ORDER BY thread_id LIMIT ?", (after, limit)
        )
        return [row[0] for row in rows]

    async def ainventory(self, thread_id: str) -> dict[tuple[str, str], int]:
        rows = await self.database.read(
            """
            SELECT checkpoint_ns, checkpoint_id, (
                SELECT count(*) FROM writes w WHERE w.thread_id = c.thread_id
                    AND w.checkpoint_ns = c.checkpoint_ns AND w.checkpoint_id = c.checkpoint_id
            ) FROM checkpoints c WHERE thread_id = ?
            """,
            (thread_id,),
        )
        return {(namespace, checkpoint_id): writes for namespace, checkpoint_id, writes in rows}

    async def awrites(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> Sequence[StoredWrite]:
        rows = await self.database.read(
            """
            SELECT task_id, task_path, idx, channel, type, value FROM writes
            WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ? ORDER BY task_path, task_id, idx
            """,
            (thread_id, checkpoint_ns, checkpoint_id),
        )
        return [StoredWrite(*row) for row in rows]

    async def arestore_writes(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str, writes: Sequence[StoredWrite]
    ) -> None:
        values = [(thread_id, checkpoint_ns, checkpoint_id, *write) for write in writes]
        statement = """
            INSERT OR IGNORE INTO writes
                (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, value)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
        """

        def restore(connection: sqlite3.Connection) -> None:
            connection.executemany(statement, values).close()  # a cursor must not leave this thread

        await self.database.write(restore)


class StampedSqliteSaver(RunStampMixin, SqliteDatabaseSaver):
    """`SqliteDatabaseSaver`, stamped."""

    _goes_on_though_cancelled = True


class _SaverInTransaction(SqliteSaver):
    """LangGraph's synchronous saver inside a transaction that somebody else begins and ends."""

    def __init__(self, connection: sqlite3.Connection, serde: SerializerProtocol) -> None:
        # One is made for each operation: its parents' own would make a lock, and examine the serializer.
        self.serde = serde
        self.conn = connection
        self.is_setup = True

    @contextmanager
    def cursor(self, transaction: bool = True) -> Iterator[sqlite3.Cursor]:
        with closing(self.conn.cursor()) as cursor:
            yield cursor
