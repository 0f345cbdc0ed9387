"""LangGraph's PostgreSQL saver over the shared pool: same tables, same bytes, no lock of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, cast

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncCursor
from psycopg.rows import DictRow, dict_row

from skeino.errors import DeltaChannelError, StoreError, ThreadExistsError
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


class StampedPostgresSaver(RunStampMixin, PostgresDatabaseSaver):
    """`PostgresDatabaseSaver`, stamped."""
