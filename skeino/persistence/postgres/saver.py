"""LangGraph's PostgreSQL saver over the shared pool: same tables, same bytes, no lock of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, cast

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncCursor
from psycopg.rows import DictRow, dict_row

from skeino.errors import DeltaChannelError, StoreError, ThreadExistsError
from skeino.persistence.inventory import StoredWrite
from skeino.persistence.postgres import history
from skeino.persistence.postgres.connections import PostgresDatabase
from skeino.persistence.pruning import checked_copy, checked_prune, checked_run_ids, target_exists
from skeino.persistence.stamping import RunStampMixin

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import CheckpointTuple

_UNIQUE_VIOLATION: Final = "23505"


class PostgresDatabaseSaver(AsyncPostgresSaver):
    """`AsyncPostgresSaver` over `PostgresDatabase`.

    The stock saver takes one lock for the whole process even over a pool, and holds it while the reader of
    `alist` is paused. Each operation here has a connection of its own instead.
    """

    def __init__(self, database: PostgresDatabase) -> None:
        super().__init__(cast("Any", database.pool))
        self.database = database
        self.supports_pipeline = self.supports_pipeline and database.pipeline

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

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        found = [one async for one in super().alist(config, filter=filter, before=before, limit=limit)]
        for checkpoint in found:  # the connection is back in the pool by now
            yield checkpoint

    # ── What the stock saver lacks, and its pruning with our errors ──────────────────────────────────────

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        wanted = checked_run_ids(run_ids)
        async with self.database.connection() as connection:
            await history.delete_for_runs(connection, wanted)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        source, target = checked_copy(source_thread_id, target_thread_id)
        try:
            async with self.database.connection() as connection:
                await history.copy_thread(connection, source, target)
        except StoreError as exc:
            if exc.sqlstate == _UNIQUE_VIOLATION:  # another process was faster
                raise ThreadExistsError(target_exists(target)) from exc
            raise

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        threads, strategy = checked_prune(thread_ids, strategy)
        try:
            await super().aprune(threads, strategy=strategy)
        except NotImplementedError as exc:
            raise DeltaChannelError(
                "One of the threads has delta channels, which are rebuilt from its older checkpoints: it cannot be "
                "pruned to the latest ones."
            ) from exc

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


class StampedPostgresSaver(RunStampMixin, PostgresDatabaseSaver):
    """`PostgresDatabaseSaver`, stamped."""
