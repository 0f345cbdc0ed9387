"""LangGraph's MongoDB saver: same collections, same bytes, in threads of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.mongodb import MongoDBSaver

from skeino.persistence.mongodb.connections import MongoDatabase
from skeino.persistence.stamping import RunStampMixin

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, CheckpointTuple


class MongoDatabaseSaver(MongoDBSaver):
    """`MongoDBSaver` over `MongoDatabase`.

    The stock saver's asynchronous methods use the event loop's default threads, of which there are few and which
    everybody shares. These use the database's own, as many as it has connections.
    """

    def __init__(self, database: MongoDatabase) -> None:
        super().__init__(database.blocking_client, database.checkpoints_name)
        self.database = database

    # ── Asynchronous: the blocking methods of this class, not those that a subclass may add a stamp to ───

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return await self.database.in_thread(lambda: MongoDatabaseSaver.get_tuple(self, config))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        found = await self.database.in_thread(
            lambda: [*MongoDatabaseSaver.list(self, config, filter=filter, before=before, limit=limit)]
        )
        for checkpoint in found:  # a reader that pauses keeps neither a thread nor a cursor
            yield checkpoint

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return await self.database.in_thread(
            lambda: MongoDatabaseSaver.put(self, config, checkpoint, metadata, new_versions)
        )

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await self.database.in_thread(lambda: MongoDatabaseSaver.put_writes(self, config, writes, task_id, task_path))

    async def adelete_thread(self, thread_id: str) -> None:
        await self.database.in_thread(lambda: MongoDatabaseSaver.delete_thread(self, thread_id))

    # ── Blocking ─────────────────────────────────────────────────────────────────────────────────────────

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        with self.database.blocking_operation():
            return super().get_tuple(config)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        with self.database.blocking_operation():
            yield from super().list(config, filter=filter, before=before, limit=limit)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        with self.database.blocking_operation():
            return super().put(config, checkpoint, metadata, new_versions)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        with self.database.blocking_operation():
            super().put_writes(config, writes, task_id, task_path)

    def delete_thread(self, thread_id: str) -> None:
        with self.database.blocking_operation():
            super().delete_thread(thread_id)


class StampedMongoDBSaver(RunStampMixin, MongoDatabaseSaver):
    """`MongoDatabaseSaver`, stamped."""
