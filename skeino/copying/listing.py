"""`ListedInventory`: a `StateInventory` of any LangGraph saver, from what its interface has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver

from skeino.copying.serializer import OpaqueSerializer
from skeino.persistence.inventory import StateInventory, StoredWrite


def inventory_of(saver: BaseCheckpointSaver[Any]) -> StateInventory:
    """The saver itself, if it can say what it has stored; else what can be found out."""
    return saver if isinstance(saver, StateInventory) else ListedInventory(saver)


class ListedInventory:
    """For savers of your own.

    `alist` loads the state of all threads to name them. And it tells neither the path of the task that made a pending
    write, nor the write's place: both come out as the writes' order says, which is all that LangGraph uses them for.
    """

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        self._saver = saver
        self._serializer = OpaqueSerializer()
        self._threads: list[str] | None = None

    async def aidentity(self) -> str:
        return f"{id(self._saver)}"

    async def athread_ids(self, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        if self._threads is None or not after:
            self._threads = sorted({one.config["configurable"]["thread_id"] async for one in self._saver.alist(None)})
        return [thread_id for thread_id in self._threads if thread_id > after][:limit]

    async def ainventory(self, thread_id: str) -> dict[tuple[str, str], int]:
        config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
        return {
            (one.config["configurable"].get("checkpoint_ns", ""), one.checkpoint["id"]): len(one.pending_writes or ())
            async for one in self._saver.alist(config)
        }

    async def awrites(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> Sequence[StoredWrite]:
        found = await self._saver.aget_tuple(_config(thread_id, checkpoint_ns, checkpoint_id))
        writes: list[StoredWrite] = []
        paths: dict[str, str] = {}
        places: dict[str, int] = {}
        for task_id, channel, value in (found.pending_writes if found is not None else None) or ():
            idx = WRITES_IDX_MAP.get(channel)
            if idx is None:
                idx = places[task_id] = places.get(task_id, -1) + 1
            path = paths.setdefault(task_id, f"~{len(paths):06}")
            writes.append(StoredWrite(task_id, path, idx, channel, *self._serializer.dumps_typed(value)))
        return writes

    async def arestore_writes(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str, writes: Sequence[StoredWrite]
    ) -> None:
        tasks: dict[tuple[str, str], list[StoredWrite]] = {}
        for write in writes:
            tasks.setdefault((write.task_id, write.task_path), []).append(write)
        config = _config(thread_id, checkpoint_ns, checkpoint_id)
        for (task_id, task_path), of_task in tasks.items():
            pairs = [(one.channel, self._serializer.loads_typed((one.type, one.data))) for one in in_places(of_task)]
            await self._saver.aput_writes(config, pairs, task_id, task_path)


def in_places(writes: Sequence[StoredWrite]) -> list[StoredWrite]:
    """A task's writes in an order in which `aput_writes`, which counts them, gives each its own place again.

    Special channels have fixed places below zero wherever they stand, so they fill the gaps; a gap that is left over
    closes.
    """
    special = [write for write in writes if write.idx < 0]
    ordered: list[StoredWrite] = []
    for write in sorted((write for write in writes if write.idx >= 0), key=lambda write: write.idx):
        while len(ordered) < write.idx and special:
            ordered.append(special.pop(0))
        ordered.append(write)
    return ordered + special


def _config(thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id}}
