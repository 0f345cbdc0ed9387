"""LangGraph's Redis saver over `RedisDatabase`: same keys, same documents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from langgraph.checkpoint.redis.aio import AsyncRedisSaver
from langgraph.checkpoint.redis.util import EMPTY_ID_SENTINEL, EMPTY_STRING_SENTINEL
from redisvl.exceptions import RedisVLError

from skeino.errors import InvalidInputError, SchemaError
from skeino.persistence.cancellation import CancelledOnItsWayError, to_its_end
from skeino.persistence.pruning import checked_copy, checked_prune, checked_run_ids
from skeino.persistence.redis import history
from skeino.persistence.redis.connections import RedisDatabase
from skeino.persistence.redis.serializer import FaithfulRedisSerializer, is_packed
from skeino.persistence.stamping import RunStampMixin

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import (
        ChannelVersions,
        Checkpoint,
        CheckpointMetadata,
        CheckpointTuple,
        PendingWrite,
    )

T = TypeVar("T")

_AT_ONCE = 16
"""Checkpoints of a list that are read at the same time."""


class RedisDatabaseSaver(AsyncRedisSaver):
    """`AsyncRedisSaver` over `RedisDatabase`.

    The stock saver's index folds upper and lower case and splits ids at commas, so one thread's list and deletion
    reach into another's; a list ends at 10,000 and ignores `before`; a cancelled `aput` leaves a checkpoint without its
    parent. This one has an index of its own over the same keys, `skeino_checkpoint`, and does none of this.
    """

    def __init__(self, database: RedisDatabase) -> None:
        super().__init__(redis_client=database.client)
        self.serde: FaithfulRedisSerializer = FaithfulRedisSerializer()
        self.database = database

    @property
    def checkpoints_schema(self) -> dict[str, Any]:
        return history.exact(super().checkpoints_schema)

    @property
    def writes_schema(self) -> dict[str, Any]:
        return history.exact(super().writes_schema)

    async def asetup(self) -> None:
        """Make the indexes, unless they are there, and wait until they have what was stored before.

        Raises:
            SchemaError: with `setup_schema=False`, one of them is missing.
        """
        self.create_indexes()  # which makes objects, and nothing in the server
        indexes = (self.checkpoints_index, self.checkpoint_writes_index)
        missing = [index for index in indexes if not await index.exists()]
        if missing and not self.database.setup_schema:
            raise SchemaError(
                f"Redis at {self.database.place} lacks the indexes {', '.join(index.name for index in missing)}: start "
                "once with setup_schema=True."
            )
        for index in missing:
            try:
                await index.create()
            except RedisVLError:
                if not await index.exists():  # else another process was faster
                    raise
        await super().asetup()
        for index in (self.checkpoints_index, self.checkpoint_writes_index):
            while int((await index.info())["indexing"]):
                await asyncio.sleep(0.02)

    # ── Asynchronous ─────────────────────────────────────────────────────────────────────────────────────

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        _refuse_stand_ins(config)
        async with self.database.operation():
            found = await super().aget_tuple(config)
            # Without an id it is a stub, which the stock saver makes of writes whose checkpoint is not there.
            if found is None or not found.checkpoint.get("id"):
                return None
            return found if await history.is_at_its_place(self, found) else None

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        async with self.database.operation():
            places = await history.places(self, config, before)
        left = len(places) if limit is None else limit
        while places and left > 0:
            some, places = places[:_AT_ONCE], places[_AT_ONCE:]
            # Of this class: those that a subclass adds a check to have been checked.
            found = await asyncio.gather(*(RedisDatabaseSaver.aget_tuple(self, one) for one in some))
            for checkpoint in found:
                if checkpoint is not None and left > 0 and _has(checkpoint.metadata, filter):
                    left -= 1
                    yield checkpoint

    async def aput(  # type: ignore[override]  # the stock saver's further argument is not LangGraph's
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        _refuse_stand_ins(config)
        # The run id by which the index finds it is the metadata's, whatever a caller's config says.
        plain = {name: value for name, value in config["configurable"].items() if name != "run_id"}
        changed = cast("RunnableConfig", {**config, "configurable": plain})

        async def put() -> RunnableConfig:
            async with self.database.operation():
                # In its other modes the stock saver answers the time limit with another write, which has none.
                return await super(RedisDatabaseSaver, self).aput(
                    changed, checkpoint, metadata, new_versions, stream_mode="updates"
                )

        putting = asyncio.ensure_future(put())
        try:
            return await to_its_end(putting)
        except asyncio.CancelledError as exc:
            if not putting.cancelled() and putting.exception() is None:
                raise CancelledOnItsWayError(*exc.args) from None
            raise

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        _refuse_stand_ins(config)
        async with self.database.operation():
            await super().aput_writes(config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        async with self.database.operation():
            await history.delete_thread(self, thread_id)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        wanted = checked_run_ids(run_ids)
        async with self.database.operation():
            await history.delete_for_runs(self, wanted)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        source, target = checked_copy(source_thread_id, target_thread_id)

        async def copy() -> None:
            async with self.database.operation():
                await history.copy_thread(self, source, target)

        await to_its_end(copy())

    async def aprune(  # type: ignore[override]  # the stock saver's further arguments are not LangGraph's
        self, thread_ids: Sequence[str], *, strategy: str = "keep_latest"
    ) -> None:
        threads, strategy = checked_prune(thread_ids, strategy)
        async with self.database.operation():
            await history.prune(self, threads, strategy)

    async def _aload_pending_writes(
        self, thread_id: str, checkpoint_ns: str = "", checkpoint_id: str = ""
    ) -> list[PendingWrite]:
        return await history.pending_writes(self, thread_id, checkpoint_ns, checkpoint_id)

    def _recursive_deserialize(self, obj: Any) -> Any:
        return self.serde.unpacked(obj) if is_packed(obj) else super()._recursive_deserialize(obj)

    # ── Blocking, from another thread than the event loop's ──────────────────────────────────────────────

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        self._wait(self.aput_writes(config, writes, task_id, task_path))  # the stock one forgets the path

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        async def all_of_it() -> Any:
            return [one async for one in self.alist(config, filter=filter, before=before, limit=limit)]

        yield from self._wait(all_of_it())

    def delete_thread(self, thread_id: str) -> None:
        self._wait(self.adelete_thread(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        self._wait(self.adelete_for_runs(run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        self._wait(self.acopy_thread(source_thread_id, target_thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        self._wait(self.aprune(thread_ids, strategy=strategy))

    def _wait(self, operation: Coroutine[Any, Any, T]) -> T:
        loop = self.loop
        assert loop is not None  # set by asetup
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run_coroutine_threadsafe(operation, loop).result()
        operation.close()
        where = "on its own event loop" if here is loop else "on an event loop"
        raise InvalidInputError(f"A blocking method of the checkpointer was called {where}: use the asynchronous one.")


def _refuse_stand_ins(config: RunnableConfig) -> None:
    """The stock saver stores these two for what is empty."""
    configurable = config["configurable"]
    if configurable.get("checkpoint_ns") == EMPTY_STRING_SENTINEL or EMPTY_ID_SENTINEL in (
        configurable["thread_id"],
        configurable.get("checkpoint_id"),
    ):
        raise InvalidInputError("Redis keeps that id for an empty one: choose another.")


def _has(metadata: CheckpointMetadata, wanted: dict[str, Any] | None) -> bool:
    return all(metadata.get(name) == value for name, value in (wanted or {}).items())


class StampedRedisSaver(RunStampMixin, RedisDatabaseSaver):  # type: ignore[misc]  # as above
    """`RedisDatabaseSaver`, stamped."""

    _goes_on_though_cancelled = True
