"""`GroupCommit`: writes that arrive while others are being written share one transaction.

A commit waits for the disk, and that takes longer than the statements do. So what arrives meanwhile is collected, and
written together next. There is no timer: a write that comes alone goes at once.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from skeino.errors import StoreUnavailableError

Write = TypeVar("Write")

MAX_BATCH: Final = 256
"""Writes in one transaction, at the most: a larger one keeps its first writer waiting without doing more per second."""

MAX_WAITING: Final = 10_000
"""Writes that may wait; more are refused at once, so that a slow database does not fill the memory."""


class GroupCommit(Generic[Write]):
    """One writer for one database: it writes batches one after the other, in the order in which the writes came.

    Args:
        write_batch: commits all the writes, or none of them. It returns an answer for each: what the write results in,
            or the exception that it alone has earned, for one bad write must not fail its neighbours. What it raises
            has failed them all.
        place: names the database, for messages.
    """

    def __init__(
        self,
        write_batch: Callable[[Sequence[Write]], Awaitable[Sequence[Any]]],
        place: str,
        *,
        max_batch: int = MAX_BATCH,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._write_batch = write_batch
        self._place = place
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[Write, asyncio.Future[Any]]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._closed = False

    async def write(self, write: Write) -> Any:
        """Write it, and return its answer once it is committed.

        A caller that is cancelled loses the answer alone: the write is done all the same, once.

        Raises:
            StoreUnavailableError: too many writes wait, or it is closed.
            Exception: what the write itself, or its batch, has failed with.
        """
        return await self.enqueue(write)

    def enqueue(self, write: Write) -> asyncio.Future[Any]:
        """As `write`, for a caller that does not wait: it is queued when this returns the future of its answer."""
        if self._closed:
            raise StoreUnavailableError(f"{self._place} is closed.")
        if len(self._waiting) >= self._max_waiting:
            raise StoreUnavailableError(f"{self._place} is too slow: {self._max_waiting} writes wait already.")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((write, answer))
        if self._writer is None:
            self._begin()
        return answer

    async def close(self) -> None:
        """Take no more writes, and wait until those there are have been answered."""
        self._closed = True
        while self._writer is not None:
            await asyncio.wait([self._writer])

    def _begin(self) -> None:
        self._writer = asyncio.get_running_loop().create_task(
            self._write_all(), name="skeino writer", context=contextvars.Context()
        )
        self._writer.add_done_callback(self._is_over)

    def _is_over(self, writer: asyncio.Task[None]) -> None:
        self._writer = None
        if self._waiting:  # it was cancelled, with the event loop say, but not those that wait for these
            self._begin()

    async def _write_all(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]
            await self._answer(batch)

    async def _answer(self, batch: list[tuple[Write, asyncio.Future[Any]]]) -> None:
        try:
            answers = await self._write_batch([write for write, _ in batch])
        except BaseException as exc:
            answers = [exc] * len(batch)
            if not isinstance(exc, Exception):  # the event loop ends
                for _, future in batch:
                    future.cancel()
                raise
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)
