"""`GroupCommit`: writes that arrive while others are being written share one transaction.

A commit waits for the disk, and that takes longer than the statements do. So what arrives meanwhile is collected, and
written together next. There is no timer: a write that comes alone goes at once.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Generic, TypeVar

from skeino.errors import StoreUnavailableError

Write = TypeVar("Write")

MAX_BATCH: Final = 256
"""Writes in one transaction, at the most: a larger one keeps its first writer waiting without doing more per second."""

MAX_WAITING: Final = 10_000
"""Writes that may wait; more are refused at once, so that a slow database does not fill the memory."""

FEW: Final = 4
"""Writes in a batch, and as many that wait, after which those that were answered go on first, for what they write next
shall share the next batch: so a graph's next checkpoint goes with the pending writes that wait already, and the graph
has a commit less. With more writes at once there is enough to write while they go on."""

TURNS: Final = 2
"""Of the event loop, which it takes LangGraph to ask for the next checkpoint once the last one is stored: the task that
stored it ends, and the one that waits for this wakes up."""


class GroupCommit(Generic[Write]):
    """One writer for one database: it writes batches one after the other, in the order in which the writes came.

    Args:
        write_batch: commits all the writes, or none of them, but for those that it answers itself before (`answer`). It
            returns an answer for each: what the write results in, or the exception that it alone has earned, for one
            bad write must not fail its neighbours; or a future of either, where it will take longer than the others
            should wait. What it raises has failed them all.
        place: names the database, for messages.
        patience: seconds in which a write is answered; None waits for ever.
        halves: the size from which on a batch is but half of what there is to write, what was answered last included:
            the database, where that is another process, then works on one half while this one prepares the other. None
            is always all. Each batch costs something by itself, so with few it does not pay.
    """

    def __init__(
        self,
        write_batch: Callable[[Sequence[Write]], Awaitable[Sequence[Any]]],
        place: str,
        *,
        patience: float | None = None,
        max_batch: int = MAX_BATCH,
        max_waiting: int = MAX_WAITING,
        halves: int | None = None,
    ) -> None:
        self._write_batch = write_batch
        self._place = place
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._halves = halves
        self._patience = patience
        self._waiting: deque[tuple[Write, asyncio.Future[Any]]] = deque()
        self._deadlines: dict[asyncio.Future[Any], float] = {}  # the next first
        self._timer: asyncio.TimerHandle | None = None  # one for all: a timer for each would cost more than the rest
        self._writer: asyncio.Task[None] | None = None  # until its callback has run, some time after the last answer
        self._batch: list[tuple[Write, asyncio.Future[Any]]] = []  # that is being written
        self._context = contextvars.Context()  # no request's; its own, for none is entered in two threads at once
        self._closed = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is being written: all has its answer, or a future that will be it."""
        return not self._waiting and not self._batch

    async def write(self, write: Write) -> Any:
        """Write it, and return its answer once it is committed.

        A caller that is cancelled loses the answer alone: the write is done all the same, once.

        Raises:
            StoreUnavailableError: too many writes wait, or it is closed, or there is no answer in time.
            Exception: what the write itself, or its batch, has failed with.
        """
        return await self.enqueue(write)

    def enqueue(self, write: Write) -> asyncio.Future[Any]:
        """As `write`, whose answer is the future's result. The write is in its place when this returns.

        Raises:
            StoreUnavailableError: too many writes wait, or it is closed.
        """
        if self._closed:
            raise StoreUnavailableError(f"{self._place} is closed.")
        if len(self._waiting) >= self._max_waiting:
            raise StoreUnavailableError(f"{self._place} is too slow: {self._max_waiting} writes wait already.")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((write, answer))
        if self._patience is not None:
            self._deadlines[answer] = deadline = loop.time() + self._patience
            if self._timer is None:
                self._timer = loop.call_at(deadline, self._give_up, context=self._context)
        if self._writer is None:
            self._begin()
        return answer

    def answer(self, position: int, answer: Any) -> None:
        """Answer one write of the batch before the others are written, since it has been committed, or has failed.

        Only for `write_batch`, while it runs; what it returns, or raises, changes nothing for this write.
        """
        self._answer_one(self._batch[position][1], answer)

    async def close(self) -> None:
        """Take no more writes, and wait until those there are have been answered."""
        self._closed = True
        while self._writer is not None:
            await asyncio.wait([self._writer])
        if self._timer is not None and not self._deadlines:
            self._timer.cancel()

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._writer = loop.create_task(self._write_all(), name="skeino writer", context=contextvars.Context())
        self._writer.add_done_callback(self._is_over, context=self._context)

    def _is_over(self, writer: asyncio.Task[None]) -> None:
        self._writer = None
        if self._waiting:  # it was cancelled, with the event loop say, but not those that wait for these
            self._begin()

    async def _write_all(self) -> None:
        size = 0
        while self._waiting:
            half = (len(self._waiting) + size + 1) // 2  # those that were answered last write again, or have by now
            size = min(len(self._waiting), self._max_batch)
            if self._halves is not None and half >= self._halves:
                size = min(size, half)
            await self._answer([self._waiting.popleft() for _ in range(size)])
            for _ in range(TURNS if max(size, len(self._waiting)) <= FEW else 0):
                await asyncio.sleep(0)

    async def _answer(self, batch: list[tuple[Write, asyncio.Future[Any]]]) -> None:
        self._batch = batch
        try:
            answers = await self._write_batch([write for write, _ in batch])
        except BaseException as exc:
            answers = [exc] * len(batch)
            if not isinstance(exc, Exception):  # the event loop ends
                for _, future in batch:
                    future.cancel()
                raise
        finally:
            self._batch = []
        for (_, future), answer in zip(batch, answers, strict=True):
            self._answer_one(future, answer)

    def _answer_one(self, future: asyncio.Future[Any], answer: Any) -> None:
        """Twice is once."""
        if isinstance(answer, asyncio.Future):
            answer.add_done_callback(partial(self._answered_late, future), context=self._context)
        else:
            self._answered(future, answer)

    def _answered_late(self, future: asyncio.Future[Any], answer: asyncio.Future[Any]) -> None:
        if answer.cancelled():
            future.cancel()
        self._answered(future, None if answer.cancelled() else answer.exception() or answer.result())

    def _answered(self, future: asyncio.Future[Any], answer: Any) -> None:
        self._deadlines.pop(future, None)
        if future.done():  # it is answered, its caller was cancelled, or has been told that it takes too long
            return
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _give_up(self) -> None:
        """Tell those that have waited too long; their writes are done all the same, as soon as they can be."""
        self._timer = None
        loop = asyncio.get_running_loop()
        for future, deadline in list(self._deadlines.items()):
            if deadline > loop.time():
                self._timer = loop.call_at(deadline, self._give_up, context=self._context)
                return
            problem = f"{self._place} did not answer in time."
            self._answered(future, StoreUnavailableError(problem, maybe_done=True))
