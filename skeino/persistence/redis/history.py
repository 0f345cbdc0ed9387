"""What the Redis saver finds, deletes and copies through its indexes, in the stock saver's keys.

A checkpoint is one document, each pending write another, the write's keys stand in a sorted set of their checkpoint,
and a string per thread and namespace holds the key of the latest checkpoint. An id that is empty has a stand-in, as
RediSearch finds no empty strings.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from langgraph.checkpoint.base import CheckpointTuple, PendingWrite, get_checkpoint_id, writes_sort_key
from langgraph.checkpoint.redis.key_registry import CheckpointKeyRegistry
from langgraph.checkpoint.redis.util import (
    from_storage_safe_id,
    from_storage_safe_str,
    safely_decode,
    to_storage_safe_id,
    to_storage_safe_str,
)
from redis.commands.search.aggregation import AggregateRequest
from redis.exceptions import WatchError

from skeino.errors import ThreadExistsError
from skeino.persistence.pruning import CheckpointOutline, all_but_latest, of_runs, target_exists

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.redis.aio import AsyncRedisSaver

_PAGE: Final = 1000
_COPY_SECONDS: Final = 300  # a process that dies while it copies holds its target no longer
_SEPARATOR: Final = "\x1f"  # no id has it: it cannot be printed


class _Document(NamedTuple):
    """A checkpoint's or a write's key, and what was asked of it."""

    key: str
    fields: dict[str, Any]


def exact(schema: dict[str, Any]) -> dict[str, Any]:
    """The stock index's schema under a name of our own, with tags that are compared as they are."""
    as_it_is = {"case_sensitive": True, "separator": _SEPARATOR}
    fields = [{**field, "attrs": as_it_is} if field["type"] == "tag" else field for field in schema["fields"]]
    return {**schema, "index": {**schema["index"], "name": f"skeino_{schema['index']['name']}"}, "fields": fields}


async def places(
    saver: AsyncRedisSaver, config: RunnableConfig | None, before: RunnableConfig | None
) -> list[RunnableConfig]:
    """The checkpoints that a list is about, newest first, each as a config."""
    configurable = (config or {}).get("configurable") or {}
    wanted: dict[str, str] = {}
    if (thread_id := configurable.get("thread_id")) is not None:
        wanted["thread_id"] = to_storage_safe_id(thread_id)
    if (namespace := configurable.get("checkpoint_ns")) is not None:
        wanted["checkpoint_ns"] = to_storage_safe_str(namespace)
    if config is not None and (checkpoint_id := get_checkpoint_id(config)):
        wanted["checkpoint_id"] = to_storage_safe_id(checkpoint_id)
    end = None if before is None else get_checkpoint_id(before)
    found = [
        (from_storage_safe_id(one["checkpoint_id"]), one)
        for _, one in await _search(saver, saver.checkpoints_index.name, wanted, _PLACE)
    ]
    found.sort(key=lambda one: one[0], reverse=True)
    return [
        {
            "configurable": {
                "thread_id": from_storage_safe_id(one["thread_id"]),
                "checkpoint_ns": from_storage_safe_str(one["checkpoint_ns"]),
                "checkpoint_id": checkpoint_id,
            }
        }
        for checkpoint_id, one in found
        if end is None or checkpoint_id < end
    ]


async def is_at_its_place(saver: AsyncRedisSaver, found: CheckpointTuple) -> bool:
    """Whether a checkpoint that was read is of the thread and namespace asked for.

    A key is both and an id, joined by colons: thread "a" with namespace "b:c" has the key of thread "a:b" with "c".
    """
    place = found.config["configurable"]
    if ":" not in place["thread_id"] and ":" not in place["checkpoint_ns"]:
        return True
    key = saver._make_redis_checkpoint_key(place["thread_id"], place["checkpoint_ns"], place["checkpoint_id"])
    stored: Any = await saver._redis.json().get(key, "$.thread_id", "$.checkpoint_ns")
    return stored is not None and (stored["$.thread_id"], stored["$.checkpoint_ns"]) == (
        [to_storage_safe_id(place["thread_id"])],
        [to_storage_safe_str(place["checkpoint_ns"])],
    )


async def pending_writes(
    saver: AsyncRedisSaver, thread_id: str, namespace: str, checkpoint_id: str
) -> list[PendingWrite]:
    """A checkpoint's pending writes in the order in which the run applied them, which delta channels rely on."""
    client: Any = saver._redis  # whose pipeline collects what redis-py's types call awaitable
    registry = CheckpointKeyRegistry.make_write_keys_zset_key(thread_id, namespace, checkpoint_id)
    keys = [safely_decode(key) for key in await client.zrange(registry, 0, -1)]
    if not keys:
        return []
    async with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.json().get(key)
        documents = [document for document in await pipeline.execute() if document]
    documents.sort(key=lambda one: writes_sort_key(one.get("task_path", ""), one["task_id"], one["idx"]))
    return [
        (one["task_id"], one["channel"], saver.serde.loads_typed((one["type"], saver._decode_blob(one["blob"]))))
        for one in documents
    ]


async def delete_thread(saver: AsyncRedisSaver, thread_id: str) -> None:
    """Delete all that the thread has, the pointers to its latest checkpoints first."""
    await _delete(saver, thread_id, await _outlines(saver, thread_id), everything=True)


async def delete_for_runs(saver: AsyncRedisSaver, run_ids: list[str]) -> None:
    """Delete what these runs wrote, in all threads.

    Raises:
        DeltaChannelError: what stays could not be rebuilt; nothing was deleted.
    """
    threads: dict[str, None] = {}
    for run_id in run_ids:
        wanted = {"run_id": to_storage_safe_id(run_id)}
        for _, one in await _search(saver, saver.checkpoints_index.name, wanted, _PLACE):
            threads[from_storage_safe_id(one["thread_id"])] = None
    gone = {thread_id: of_runs(await _outlines(saver, thread_id), run_ids) for thread_id in threads}
    for thread_id, outlines in gone.items():
        await _delete(saver, thread_id, outlines)


async def prune(saver: AsyncRedisSaver, thread_ids: Sequence[str], strategy: str) -> None:
    """Delete all checkpoints of these threads, or all but the latest of each namespace.

    Raises:
        DeltaChannelError: what stays could not be rebuilt; nothing was deleted.
    """
    outlines = {thread_id: await _outlines(saver, thread_id) for thread_id in thread_ids}
    if strategy == "keep_latest":
        outlines = {thread_id: all_but_latest(found) for thread_id, found in outlines.items()}
    for thread_id, gone in outlines.items():
        await _delete(saver, thread_id, gone, everything=strategy == "delete")


async def copy_thread(saver: AsyncRedisSaver, source: str, target: str) -> None:
    """Copy all checkpoints and writes of a thread; of one that is not there, none.

    First the writes, then the checkpoints, last the pointers to the latest ones: nobody reads half a checkpoint.

    Raises:
        ThreadExistsError: the target has checkpoints already.
    """
    client, mark = saver._redis, f"skeino_copy:{target}"
    if not await client.set(mark, "1", nx=True, ex=_COPY_SECONDS):  # somebody copies onto it
        raise ThreadExistsError(target_exists(target))
    try:
        if await _outlines(saver, target):
            raise ThreadExistsError(target_exists(target))
        await delete_thread(saver, target)  # writes that have no checkpoint
        try:
            await _copy(saver, source, target)
        except BaseException:
            await delete_thread(saver, target)  # which is not there yet for its readers
            raise
    finally:
        await client.delete(mark)


async def _copy(saver: AsyncRedisSaver, source: str, target: str) -> None:
    client: Any = saver._redis
    of_source, of_target = ({"thread_id": to_storage_safe_id(thread_id)} for thread_id in (source, target))
    latest: dict[str, str] = {}  # of those that are copied: the source may have a newer one by the time of the last
    for index in (saver.checkpoint_writes_index, saver.checkpoints_index):
        keys = [key for key, _ in await _search(saver, index.name, of_source, _PLACE)]
        for some in _chunks(keys):
            async with client.pipeline(transaction=False) as reading:
                for key in some:
                    reading.json().get(key)
                documents = [document for document in await reading.execute() if document]
            async with client.pipeline(transaction=True) as writing:
                for document in documents:
                    namespace = from_storage_safe_str(document["checkpoint_ns"])
                    checkpoint_id = from_storage_safe_id(document["checkpoint_id"])
                    if "task_id" in document:
                        key = saver._make_redis_checkpoint_writes_key(
                            target, namespace, checkpoint_id, document["task_id"], document["idx"]
                        )
                        registry = CheckpointKeyRegistry.make_write_keys_zset_key(target, namespace, checkpoint_id)
                        writing.zadd(registry, {key: document["idx"]})
                    else:
                        key = saver._make_redis_checkpoint_key(target, namespace, checkpoint_id)
                        latest[namespace] = max(checkpoint_id, latest.get(namespace, ""))
                    writing.json().set(key, "$", {**document, **of_target})
                await writing.execute()
    for namespace, checkpoint_id in latest.items():
        key = saver._make_redis_checkpoint_key(target, namespace, checkpoint_id)
        await client.set(saver._make_redis_checkpoint_latest_key(target, namespace), key)


_PLACE: Final = ("thread_id", "checkpoint_ns", "checkpoint_id")


async def _outlines(saver: AsyncRedisSaver, thread_id: str) -> list[CheckpointOutline]:
    fields = (*_PLACE, "parent_checkpoint_id", "$.metadata")
    wanted = {"thread_id": to_storage_safe_id(thread_id)}
    return [
        CheckpointOutline(
            thread_id,
            from_storage_safe_str(one["checkpoint_ns"]),
            from_storage_safe_id(one["checkpoint_id"]),
            from_storage_safe_id(one.get("parent_checkpoint_id") or "") or None,
            json.loads(one.get("metadata") or "{}"),
        )
        for _, one in await _search(saver, saver.checkpoints_index.name, wanted, fields)
    ]


async def _delete(
    saver: AsyncRedisSaver, thread_id: str, gone: Iterable[CheckpointOutline], *, everything: bool = False
) -> None:
    """Delete these checkpoints with their writes; with `everything`, writes whose checkpoint never came, too.

    Pointers first, so that no read of the latest checkpoint finds one that is half deleted.
    """
    client: Any = saver._redis
    deleted = {(one.namespace, one.checkpoint_id) for one in gone}
    if not deleted and not everything:
        return
    left = [one for one in await _outlines(saver, thread_id) if (one.namespace, one.checkpoint_id) not in deleted]
    latest: dict[str, str] = {}
    for one in left:
        latest[one.namespace] = max(one.checkpoint_id, latest.get(one.namespace, ""))
    keys = {saver._make_redis_checkpoint_key(thread_id, *place) for place in deleted}
    for namespace in {namespace for namespace, _ in deleted}:
        await _turn_pointer(saver, thread_id, namespace, latest.get(namespace), keys)
    async with client.pipeline(transaction=True) as pipeline:
        for one in left:
            if (one.namespace, one.parent_id) in deleted:
                key = saver._make_redis_checkpoint_key(thread_id, one.namespace, one.checkpoint_id)
                pipeline.json().set(key, "$.parent_checkpoint_id", "")
        await pipeline.execute()
    of_thread = {"thread_id": to_storage_safe_id(thread_id)}
    for key, write in await _search(saver, saver.checkpoint_writes_index.name, of_thread, _PLACE):
        place = (from_storage_safe_str(write["checkpoint_ns"]), from_storage_safe_id(write["checkpoint_id"]))
        if everything or place in deleted:
            registry = CheckpointKeyRegistry.make_write_keys_zset_key(thread_id, *place)
            keys |= {key, registry, saver._make_redis_checkpoint_key(thread_id, *place)}  # the last may be a stub
    for some in _chunks([*keys]):
        await client.delete(*some)


async def _turn_pointer(
    saver: AsyncRedisSaver, thread_id: str, namespace: str, latest: str | None, deleted: Collection[str]
) -> None:
    """Point at the latest checkpoint that stays, but only away from one that goes: a newer one may have come."""
    pointer = saver._make_redis_checkpoint_latest_key(thread_id, namespace)
    pipeline: Any = saver._redis.pipeline(transaction=True)
    async with pipeline:
        await pipeline.watch(pointer)
        if safely_decode(await pipeline.get(pointer)) not in deleted:
            return
        pipeline.multi()
        if latest is None:
            pipeline.delete(pointer)
        else:
            pipeline.set(pointer, saver._make_redis_checkpoint_key(thread_id, namespace, latest))
        with suppress(WatchError):  # it points elsewhere by now
            await pipeline.execute()


async def _search(saver: AsyncRedisSaver, index: str, wanted: dict[str, str], fields: Sequence[str]) -> list[_Document]:
    """The documents whose tags equal what is wanted: values go as parameters, so that none is read as a query.

    By a cursor: what is written meanwhile shifts the pages of a search by numbers, so that some would be left out. A
    document that is written anew while the cursor runs may come twice. RediSearch takes no notice of spaces at a tag's
    ends: what is found is compared once more.
    """
    request = _WholeAnswer(" ".join(f"@{name}:{{${name}}}" for name in wanted) or "*")
    loaded = [part for name in {*fields, *wanted} for part in (name, *_AS.get(name, ()))]
    request.load("@__key", *loaded).cursor(count=_PAGE).dialect(2)
    client: Any = saver._redis.ft(index)  # redis-py's types name what it answers, where they mean what is asked
    found: dict[str, _Document] = {}
    page: Any = await client.aggregate(request, query_params={name: value.strip() for name, value in wanted.items()})
    while True:
        for row in page.rows:
            values = [safely_decode(value) for value in row]
            document = dict(zip(values[::2], values[1::2], strict=True))
            key = document.pop("__key")
            # Without its place it is a stub, which writes without their checkpoint leave.
            if _PLACE[0] in document and all(document.get(name) == value for name, value in wanted.items()):
                found[key] = _Document(key, document)
        if page.cursor is None or not page.cursor.cid:
            return [*found.values()]
        page = await client.aggregate(page.cursor)


class _WholeAnswer(AggregateRequest):
    """Without the server's own limit in time (500 ms), at which it answers with a part and does not say so."""

    def build_args(self) -> list[str]:
        return [*super().build_args(), "TIMEOUT", "0"]


_AS: Final = {"$.metadata": ("AS", "metadata")}


def _chunks(keys: list[str]) -> Iterable[list[str]]:
    return (keys[start : start + _PAGE] for start in range(0, len(keys), _PAGE))
