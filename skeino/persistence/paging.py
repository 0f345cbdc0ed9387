"""`paged`: a saver's list, read a page at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from langgraph.checkpoint.base import CheckpointTuple

PAGE: Final = 100
"""Checkpoints: a reader that takes ten of ten thousand has not loaded them all; one that takes them all asks rarely."""


class Place(NamedTuple):
    """Where a page ended: lists go from the newest to the oldest; copies of a thread have the same checkpoint ids."""

    checkpoint_id: str
    thread_id: str
    checkpoint_ns: str


async def paged(
    read: Callable[[Place | None, int], Awaitable[Sequence[CheckpointTuple]]], limit: int | None
) -> AsyncIterator[CheckpointTuple]:
    """All that `read` finds, or as many as the limit.

    Args:
        read: what comes after that place, so many at the most. While the reader is paused nothing of it is held.
        limit: None for all.
    """
    pages = _Pages(limit)
    while pages.size > 0:
        found = await read(pages.after, pages.size)
        for checkpoint in found:
            yield checkpoint
        pages.read(found)


def paged_blocking(
    read: Callable[[Place | None, int], Sequence[CheckpointTuple]], limit: int | None
) -> Iterator[CheckpointTuple]:
    """As `paged`, for a saver's blocking methods."""
    pages = _Pages(limit)
    while pages.size > 0:
        found = read(pages.after, pages.size)
        yield from found
        pages.read(found)


def has_one_place(config: Any) -> bool:
    """Whether what it lists is of one thread and one namespace, where checkpoint ids are unique."""
    configurable = (config or {}).get("configurable") or {}
    return configurable.get("thread_id") is not None and configurable.get("checkpoint_ns") is not None


class _Pages:
    """The size of the next page, which is 0 after the last, and where it begins."""

    def __init__(self, limit: int | None) -> None:
        self.after: Place | None = None
        self._left = limit
        self.size = PAGE if limit is None else min(limit, PAGE)

    def read(self, found: Sequence[CheckpointTuple]) -> None:
        if self._left is not None:
            self._left -= len(found)
        if len(found) < self.size:
            self.size = 0
            return
        last = found[-1].config["configurable"]
        self.after = Place(last["checkpoint_id"], last["thread_id"], last["checkpoint_ns"])
        self.size = PAGE if self._left is None else min(self._left, PAGE)
