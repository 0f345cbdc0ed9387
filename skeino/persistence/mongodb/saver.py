"""LangGraph's MongoDB saver: same collections, same bytes, in threads of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from langgraph.checkpoint.base import BaseCheckpointSaver, get_checkpoint_id
from langgraph.checkpoint.mongodb import MongoDBSaver
from pymongo import ASCENDING, UpdateOne
from pymongo.collection import Collection

from skeino.persistence.cancellation import CancelledOnItsWayError
from skeino.persistence.inventory import StoredWrite
from skeino.persistence.latest import LatestReads
from skeino.persistence.mongodb import history
from skeino.persistence.mongodb.checkpoint_writes import CHECKPOINTS, PENDING, CheckpointWrites, RefusedError
from skeino.persistence.mongodb.checkpoints import Ancestors, latest_of_each, one, page, place_of
from skeino.persistence.mongodb.connections import MongoDatabase
from skeino.persistence.paging import Place, paged, paged_blocking
from skeino.persistence.stamping import RunStampMixin, fence_of
from skeino.runs import Run
from skeino.validation import validate_thread_id

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import (
        ChannelVersions,
        Checkpoint,
        CheckpointMetadata,
        CheckpointTuple,
        DeltaChannelHistory,
    )

T = TypeVar("T")


class MongoDatabaseSaver(MongoDBSaver):
    """`MongoDBSaver` over `MongoDatabase`.

    The stock saver's asynchronous methods use the event loop's default threads, of which there are few and which
    everybody shares. These use the database's own, as many as it has connections; and what is written while others
    write shares one bulk operation (`CheckpointWrites`).
    """

    def __init__(self, database: MongoDatabase) -> None:
        super().__init__(database.blocking_client, database.checkpoints_name)
        self.database = database
        self.db = database.checkpoints
        self.checkpoint_collection = self.db[self.checkpoint_collection.name]
        self.writes_collection = self.db[self.writes_collection.name]
        self._latest: LatestReads[tuple[MongoDBSaver, tuple[str, str]], CheckpointTuple] = LatestReads(
            lambda asked: self._in_thread(lambda: latest_of_each(asked))
        )
        self._writes = CheckpointWrites(database, self.checkpoint_collection, self.writes_collection)

    # ── Asynchronous: the blocking methods of this class, not those that a subclass may add a stamp to ───

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        async def alone() -> Sequence[CheckpointTuple]:
            found = await self.database.in_thread(lambda: MongoDatabaseSaver.get_tuple(self, config))
            return [] if found is None else [found]

        if get_checkpoint_id(config):
            rows = await alone()
        else:
            rows = await self._latest.rows((self, place_of(config)), alone)
        return rows[0] if rows else None

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        async def read(after: Place | None, size: int) -> Sequence[CheckpointTuple]:
            return await self._in_thread(lambda: page(self, config, filter, before, after, size))

        async for checkpoint in paged(read, limit):  # a reader that pauses keeps neither a thread nor a cursor
            yield checkpoint

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return await self.database.in_thread(
            lambda: MongoDatabaseSaver.get_delta_channel_history(self, config=config, channels=channels)
        )

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        stored: RunnableConfig = await self._write(
            CHECKPOINTS, config, lambda saver: MongoDBSaver.put(saver, config, checkpoint, metadata, new_versions)
        )
        return stored

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await self._write(
            PENDING, config, lambda saver: MongoDBSaver.put_writes(saver, config, writes, task_id, task_path)
        )

    async def _write(self, of: str, config: RunnableConfig, work: Callable[[MongoDBSaver], T]) -> T:
        run, held = _held(config)
        try:
            written: T = await self._writes.write(of, self, work, held)
        except asyncio.CancelledError as exc:
            raise CancelledOnItsWayError(*exc.args) from None
        except RefusedError:
            assert run is not None  # who else has a fence
            raise run.refused(config["configurable"]["thread_id"]) from None
        return written

    async def adelete_thread(self, thread_id: str) -> None:
        await self._writes.settled(self)  # what is deleted must not come back
        of_thread = {"thread_id": validate_thread_id(thread_id)}

        def deleted(collection: Collection[dict[str, Any]]) -> Awaitable[object]:
            return self.database.in_thread(lambda: collection.delete_many(of_thread))

        # At the same time, for each waits for the disk. No transaction: a long history would fill the server's cache.
        both = (deleted(self.checkpoint_collection), deleted(self.writes_collection))
        for failure in await asyncio.gather(*both, return_exceptions=True):
            if isinstance(failure, BaseException):
                raise failure

    # ── Blocking ─────────────────────────────────────────────────────────────────────────────────────────

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        with self.database.blocking_operation():
            return one(self, config)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        def read(after: Place | None, size: int) -> Sequence[CheckpointTuple]:
            with self.database.blocking_operation():
                return page(self, config, filter, before, after, size)

        yield from paged_blocking(read, limit)

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        with self.database.blocking_operation():
            ancestors = cast("MongoDBSaver", Ancestors(self))
            return BaseCheckpointSaver.get_delta_channel_history(ancestors, config=config, channels=channels)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        stored: RunnableConfig = self._write_blocking(
            config, lambda saver: MongoDBSaver.put(saver, config, checkpoint, metadata, new_versions)
        )
        return stored

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        self._write_blocking(config, lambda saver: MongoDBSaver.put_writes(saver, config, writes, task_id, task_path))

    def _write_blocking(self, config: RunnableConfig, work: Callable[[MongoDBSaver], T]) -> T:
        run, held = _held(config)
        try:
            written: T = self._writes.write_blocking(self, work, held)
        except RefusedError:
            assert run is not None
            raise run.refused(config["configurable"]["thread_id"]) from None
        return written

    def delete_thread(self, thread_id: str) -> None:
        with self.database.blocking_operation():
            super().delete_thread(thread_id)

    async def aclose(self) -> None:
        """Write what is still to be written, and take no more."""
        await self._writes.close()

    def close(self) -> None:
        """Nothing: the client is closed by whoever opened it. The stock saver closes it, the application's too."""

    # ── What the stock saver lacks ───────────────────────────────────────────────────────────────────────

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        await self._writes.settled(self)
        await self.database.in_thread(lambda: MongoDatabaseSaver.delete_for_runs(self, run_ids))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        await self._writes.settled(self)
        await self.database.in_thread(lambda: MongoDatabaseSaver.copy_thread(self, source_thread_id, target_thread_id))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        await self._writes.settled(self)
        await self.database.in_thread(lambda: MongoDatabaseSaver.prune(self, thread_ids, strategy=strategy))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        with self.database.blocking_operation():
            history.delete_for_runs(self, self.database, run_ids)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        with self.database.blocking_operation():
            history.copy_thread(self, self.database, source_thread_id, target_thread_id)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        with self.database.blocking_operation():
            history.prune(self, self.database, thread_ids, strategy)

    # ── `StateInventory` ─────────────────────────────────────────────────────────────────────────────────

    async def aidentity(self) -> str:
        hello = await self._in_thread(lambda: self.database.blocking_client.admin.command("hello"))
        process = hello.get("topologyVersion", {}).get("processId", self.database.place)
        return f"{process}/{self.database.checkpoints_name}/{self.database.metadata.name}"

    async def athread_ids(self, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        def names() -> Iterator[str]:
            last = after  # from one to the next by the index: to group them all takes as long as there are checkpoints
            for _ in range(limit):
                beyond = {"thread_id": {"$gt": last}}
                found = self.checkpoint_collection.find_one(beyond, {"thread_id": 1}, sort=[("thread_id", ASCENDING)])
                if found is None:
                    return
                last = found["thread_id"]
                yield last

        return await self._in_thread(lambda: [*names()])

    async def ainventory(self, thread_id: str) -> dict[tuple[str, str], int]:
        fields = {"checkpoint_ns": 1, "checkpoint_id": 1, "_id": 0}
        group = {"_id": {"ns": "$checkpoint_ns", "id": "$checkpoint_id"}, "writes": {"$sum": 1}}

        def count() -> dict[tuple[str, str], int]:
            of_thread = {"thread_id": thread_id}
            counted = self.writes_collection.aggregate([{"$match": of_thread}, {"$group": group}])
            writes = {(one["_id"]["ns"], one["_id"]["id"]): one["writes"] for one in counted}
            found = self.checkpoint_collection.find(of_thread, fields)
            places = [(one["checkpoint_ns"], one["checkpoint_id"]) for one in found]
            return {place: writes.get(place, 0) for place in places}

        return await self._in_thread(count)

    async def awrites(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> Sequence[StoredWrite]:
        place = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id}
        found = await self._in_thread(lambda: [*self.writes_collection.find(place)])
        return [
            StoredWrite(
                one["task_id"], one.get("task_path", ""), one["idx"], one["channel"], one["type"], bytes(one["value"])
            )
            for one in found
        ]

    async def arestore_writes(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str, writes: Sequence[StoredWrite]
    ) -> None:
        place = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id}
        operations: list[Any] = [
            UpdateOne(
                {**place, "task_id": write.task_id, "task_path": write.task_path, "idx": write.idx},
                {"$setOnInsert": {"channel": write.channel, "type": write.type, "value": write.data}},
                upsert=True,
            )
            for write in writes
        ]
        if operations:
            await self._in_thread(lambda: self.writes_collection.bulk_write(operations))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        def bounded() -> T:
            with self.database.blocking_operation():
                return work()

        return await self.database.in_thread(bounded)


class StampedMongoDBSaver(RunStampMixin, MongoDatabaseSaver):
    """`MongoDatabaseSaver`, stamped."""

    _goes_on_though_cancelled = True


def _held(config: RunnableConfig) -> tuple[Run | None, tuple[str, int] | None]:
    """The current run, and the thread with the fence that the run's writes go with."""
    run, fence = fence_of(config)
    return run, None if fence is None else (config["configurable"]["thread_id"], fence)
