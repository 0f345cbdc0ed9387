"""`StateInventory`: what a saver can say of its checkpoints without loading them, for copying.

LangGraph's own interface lists threads only with all of their state, and leaves the path and the index of a pending
write out. skeino's savers have these operations besides. They ask nobody for leave, so they are not for requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable


class StoredWrite(NamedTuple):
    """One pending write as it is stored; its value is not read."""

    task_id: str
    task_path: str
    idx: int
    """Its place among the task's writes; below zero for LangGraph's special channels."""
    channel: str
    type: str
    """The serializer's name for the format of `data`."""
    data: bytes


@runtime_checkable
class StateInventory(Protocol):
    """What skeino's durable savers have besides LangGraph's interface."""

    async def aidentity(self) -> str:
        """What the place of these checkpoints has alone, however its address is spelt."""
        ...

    async def athread_ids(self, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        """The threads that have checkpoints, in a stable order: at most `limit` of those after `after`."""
        ...

    async def ainventory(self, thread_id: str) -> dict[tuple[str, str], int]:
        """For each checkpoint, by namespace and id, the number of its pending writes."""
        ...

    async def awrites(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> Sequence[StoredWrite]:
        """The checkpoint's pending writes, as they are stored."""
        ...

    async def arestore_writes(
        self, thread_id: str, checkpoint_ns: str, checkpoint_id: str, writes: Sequence[StoredWrite]
    ) -> None:
        """Store pending writes as they are; those whose task and index are there stay. The checkpoint may follow."""
        ...
