"""LangGraph's PostgreSQL saver over the shared pool: same tables, same bytes, no lock of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncCursor
from psycopg.rows import DictRow, dict_row

from skeino.persistence.postgres.connections import PostgresDatabase
from skeino.persistence.stamping import RunStampMixin

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import CheckpointTuple


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


class StampedPostgresSaver(RunStampMixin, PostgresDatabaseSaver):
    """`PostgresDatabaseSaver`, stamped."""
