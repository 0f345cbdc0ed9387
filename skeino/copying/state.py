"""Checkpoints and pending writes: one checkpoint at a time, several threads at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple

from skeino.copying.listing import inventory_of
from skeino.copying.report import CopyProgress, CopyReport, OnProgress
from skeino.copying.rows import is_same_thread
from skeino.copying.serializer import OpaqueSerializer, Sealed, sealed
from skeino.copying.versions import counts_in_texts, with_versions
from skeino.errors import InvalidInputError, SkeinoError, StoreUnavailableError
from skeino.persistence.inventory import StateInventory
from skeino.persistence.opening import Persistence
from skeino.persistence.protocol import MetadataStoreProtocol

PAGE: Final = 200
_REFUSALS: Final = (SkeinoError, TypeError, ValueError, LookupError, NotImplementedError)
"""What a saver may say to one thread's state; other threads are copied all the same."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two sides, open, its state opaque."""

    saver: BaseCheckpointSaver[Any]
    inventory: StateInventory
    store: MetadataStoreProtocol


@contextmanager
def opaque(persistence: Persistence) -> Iterator[Side]:
    """The side, with a serializer that reads no value until the block ends."""
    saver = persistence.checkpointer
    readable, saver.serde = saver.serde, OpaqueSerializer()
    try:
        yield Side(saver, inventory_of(saver), persistence.metadata_store)
    finally:
        saver.serde = readable


async def copy_state(
    source: Side, target: Side, report: CopyReport, *, concurrency: int, on_progress: OnProgress
) -> None:
    """Copy the state of all threads, those without a row included, and compare what is there then."""
    total = 0
    async for page in _pages_of_threads(source.inventory):
        total += len(page)
    places = asyncio.Semaphore(concurrency)

    async def one(thread_id: str) -> None:
        async with places:
            try:
                await _copy_thread(source, target, thread_id, report)
            except StoreUnavailableError:
                raise
            except _REFUSALS as exc:
                report.differ(f"The state of thread {thread_id!r} was not copied: {_reason(exc)}")
        report.threads_with_state += 1
        on_progress(CopyProgress("state", report.threads_with_state, max(total, report.threads_with_state)))

    on_progress(CopyProgress("state", 0, total))
    async for page in _pages_of_threads(source.inventory):
        try:
            async with asyncio.TaskGroup() as threads:
                for thread_id in page:
                    threads.create_task(one(thread_id))
        except BaseExceptionGroup as group:
            raise _first(group) from None


async def strangers(source: Side, target: Side, thread_ids: Sequence[str]) -> set[str]:
    """Those of which the target has state that is not a copy of the source's."""
    found = set()
    for thread_id in thread_ids:
        there = await target.inventory.ainventory(thread_id)
        if there and not there.keys() <= (await source.inventory.ainventory(thread_id)).keys():
            found.add(thread_id)
    return found


async def count_state(source: Side, report: CopyReport, *, on_progress: OnProgress) -> None:
    """Count what `copy_state` would copy."""
    async for page in _pages_of_threads(source.inventory):
        for thread_id in page:
            stored = await source.inventory.ainventory(thread_id)
            report.threads_with_state += 1
            report.checkpoints.found += len(stored)
            report.pending_writes.found += sum(stored.values())
            on_progress(CopyProgress("state", report.threads_with_state, None))


async def _copy_thread(source: Side, target: Side, thread_id: str, report: CopyReport) -> None:
    here = await source.inventory.ainventory(thread_id)
    report.checkpoints.found += len(here)
    report.pending_writes.found += sum(here.values())
    row, row_there = await source.store.get_thread(thread_id), await target.store.get_thread(thread_id)
    if row_there is not None and (row is None or not is_same_thread(row, row_there)):
        raise InvalidInputError("the target has another thread of that id.")
    there = await target.inventory.ainventory(thread_id)
    if not there.keys() <= here.keys():
        raise InvalidInputError("the target has other state of that id.")
    if row_there is None and row is not None:  # what is somebody's must not become nobody's
        raise InvalidInputError("the target has refused its row.")
    reasons: dict[str, None] = {}
    stored: set[tuple[str, str, Any]] = set()  # namespace, channel, version: PostgreSQL has each value once
    for namespace, checkpoint_id in sorted(here, key=lambda place: place[1]):  # parents first, for ids grow with time
        place = namespace, checkpoint_id
        if there.get(place, -1) < here[place]:
            # Pending writes first: a checkpoint that is there is complete, and that is what resuming goes by.
            writes = await source.inventory.awrites(thread_id, namespace, checkpoint_id)
            if writes:
                await target.inventory.arestore_writes(thread_id, namespace, checkpoint_id, writes)
                report.pending_writes.copied += len(writes) - there.get(place, 0)
        if place not in there:
            try:
                await _copy_checkpoint(source, target, config_of(thread_id, namespace, checkpoint_id), stored)
            except StoreUnavailableError:
                raise
            except _REFUSALS as exc:  # the others follow: the latest is what a thread goes on from
                reasons.setdefault(_reason(exc))
            else:
                report.checkpoints.copied += 1
    for reason in reasons:
        report.differ(f"The state of thread {thread_id!r} was not copied completely: {reason}")
    _compare(thread_id, here, await target.inventory.ainventory(thread_id), report)


async def _copy_checkpoint(
    source: Side, target: Side, config: RunnableConfig, stored: set[tuple[str, str, Any]]
) -> None:
    found = await source.saver.aget_tuple(config)
    if found is None:  # deleted meanwhile: the comparison says so
        return
    if isinstance(found.checkpoint, Sealed):
        raise InvalidInputError(
            f"A checkpoint is stored in the format {found.checkpoint.type!r}, which only its application can read."
        )
    values = {name: sealed(value) for name, value in found.checkpoint["channel_values"].items()}
    checkpoint = with_versions(
        {**found.checkpoint, "channel_values": values},
        texts=counts_in_texts(target.saver),
        dump=target.saver.serde.dumps_typed,
    )
    namespace = config["configurable"]["checkpoint_ns"]
    new = {
        channel: version
        for channel, version in checkpoint["channel_versions"].items()
        if channel in checkpoint["channel_values"] and (namespace, channel, version) not in stored
    }
    await target.saver.aput(_parent_of(found, config), checkpoint, found.metadata, new)
    stored.update((namespace, channel, version) for channel, version in new.items())


def _compare(
    thread_id: str, here: dict[tuple[str, str], int], there: dict[tuple[str, str], int], report: CopyReport
) -> None:
    missing = here.keys() - there.keys()
    if missing:
        report.differ(
            f"The state of thread {thread_id!r} lacks {len(missing)} of {len(here)} checkpoints at the target."
        )
    other = sum(here[place] != there[place] for place in here.keys() & there.keys())
    if other:
        report.differ(
            f"The state of thread {thread_id!r} has other pending writes at the target on {other} checkpoints."
        )


async def _pages_of_threads(inventory: StateInventory) -> AsyncIterator[Sequence[str]]:
    after = ""
    while page := await inventory.athread_ids(after=after, limit=PAGE):
        yield page
        after = page[-1]


def config_of(thread_id: str, namespace: str, checkpoint_id: str | None) -> RunnableConfig:
    """The config of one checkpoint."""
    configurable = {"thread_id": thread_id, "checkpoint_ns": namespace}
    return {"configurable": configurable if checkpoint_id is None else {**configurable, "checkpoint_id": checkpoint_id}}


def _parent_of(found: CheckpointTuple, config: RunnableConfig) -> RunnableConfig:
    """What `aput` takes as the config: the parent's, with nothing in it that would be merged into the metadata."""
    place = config["configurable"]
    parent = None if found.parent_config is None else found.parent_config["configurable"].get("checkpoint_id")
    return config_of(place["thread_id"], place["checkpoint_ns"], parent)


def _reason(exc: Exception) -> str:
    """One sentence without a value: our own errors say one, of others the kind is told."""
    if isinstance(exc, SkeinoError):
        return str(exc)
    return f"it has a value that the target cannot store ({type(exc).__name__})."


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    first: BaseException = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
