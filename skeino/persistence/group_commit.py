"""`GroupCommit`: writes that arrive while others are being written share one transaction.

A commit waits for the disk, and that takes longer than the statements do. So what arrives meanwhile is collected, and
written together next. There is no timer: a write that comes alone goes at once.

`TaskCommit` is that for a driver with coroutines, `ThreadCommit` for one that blocks.
"""

from __future__ import annotations

import asyncio
import contextvars
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Generic, TypeVar

from skeino.errors import StoreUnavailableError
from skeino.persistence.answers import fail
from skeino.persistence.one_thread import OneThread

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


AGAIN: Final = object()
"""What `ThreadCommit` is told of a write that was not done, and is to be the first in the next batch."""


class GroupCommit(ABC, Generic[Write]):
    """One writer for one database: it writes batches one after the other, in the order in which the writes came.

    It belongs to the event loop that it is first used on.

    Args:
        place: names the database, for messages.
        patience: seconds in which a write is answered; None waits for ever.
        max_batch: writes in one transaction, at the most.
        max_waiting: writes that may wait.
    """

    def __init__(
        self, place: str, *, patience: float | None, max_batch: int = MAX_BATCH, max_waiting: int = MAX_WAITING
    ) -> None:
        self._place = place
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._patience = patience
        self._waiting: deque[tuple[Write, asyncio.Future[Any]]] = deque()
        self._deadlines: dict[asyncio.Future[Any], float] = {}  # the next first
        self._timer: asyncio.TimerHandle | None = None  # one for all: a timer for each would cost more than the rest
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
        self._begin()
        return answer

    async def close(self) -> None:
        """Take no more writes, and wait until those there are have been answered."""
        self._closed = True
        await self._end()
        if self._timer is not None and not self._deadlines:
            self._timer.cancel()

    @abstractmethod
    def _begin(self) -> None:
        """Have what waits be written, from the event loop's next turn on, if that is not being done already."""

    @abstractmethod
    async def _end(self) -> None:
        """Wait until nothing waits any more."""

    def _take(self, size: int) -> list[Write]:
        """The writes of the next batch, which begins with this."""
        self._batch = [self._waiting.popleft() for _ in range(size)]
        return [write for write, _ in self._batch]

    def _taken(self) -> list[tuple[Write, asyncio.Future[Any]]]:
        """The batch, which ends with this."""
        batch, self._batch = self._batch, []
        return batch

    def _cancel_batch(self) -> None:
        for _, future in self._taken():
            future.cancel()

    def _turns_after(self, size: int) -> int:
        """Of the event loop, until what comes after a batch of this size is taken."""
        return TURNS if max(size, len(self._waiting)) <= FEW else 0

    def _answer(self, future: asyncio.Future[Any], answer: Any) -> None:
        self._deadlines.pop(future, None)
        if future.done():  # it is answered already, its caller was cancelled, or has been told that it takes too long
            return
        if isinstance(answer, StopIteration):  # which no future takes
            future.set_exception(RuntimeError(f"a write to {self._place} raised StopIteration"))
        elif isinstance(answer, BaseException):
            fail(future, answer)
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
            self._answer(future, StoreUnavailableError(problem, maybe_done=True))


class TaskCommit(GroupCommit[Write]):
    """As `GroupCommit`, in a task.

    Args:
        write_batch: commits all the writes, or none of them, but for those that it answers itself before (`answer`). It
            returns an answer for each: what the write results in, or the exception that it alone has earned, for one
            bad write must not fail its neighbours; or a future of either, where it will take longer than the others
            should wait. What it raises has failed them all.
        halves: the size from which on a batch is but half of what there is to write, what was answered last included:
            the database, where that is another process, then works on one half while this one prepares the other. None
            is always all. Each batch costs something by itself, so with few it does not pay.
        place, patience, limits: as `GroupCommit`.
    """

    def __init__(
        self,
        write_batch: Callable[[Sequence[Write]], Awaitable[Sequence[Any]]],
        place: str,
        *,
        patience: float | None = None,
        halves: int | None = None,
        **limits: int,
    ) -> None:
        super().__init__(place, patience=patience, **limits)
        self._write_batch = write_batch
        self._halves = halves
        self._writer: asyncio.Task[None] | None = None  # until its callback has run, some time after the last answer

    def answer(self, position: int, answer: Any) -> None:
        """Answer one write of the batch before the others are written, since it has been committed, or has failed.

        Only for `write_batch`, while it runs; what it returns, or raises, changes nothing for this write.
        """
        self._answer_or_wait(self._batch[position][1], answer)

    def _begin(self) -> None:
        if self._writer is None:
            loop = asyncio.get_running_loop()
            self._writer = loop.create_task(self._write_all(), name="skeino writer", context=contextvars.Context())
            self._writer.add_done_callback(self._is_over, context=self._context)

    async def _end(self) -> None:
        while self._writer is not None:
            await asyncio.wait([self._writer])

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
            await self._write_and_answer(self._take(size))
            for _ in range(self._turns_after(size)):
                await asyncio.sleep(0)

    async def _write_and_answer(self, batch: Sequence[Write]) -> None:
        try:
            answers = await self._write_batch(batch)
        except Exception as exc:
            answers = [exc] * len(batch)
        except BaseException:  # the event loop ends
            self._cancel_batch()
            raise
        for (_, future), answer in zip(self._taken(), answers, strict=True):
            self._answer_or_wait(future, answer)

    def _answer_or_wait(self, future: asyncio.Future[Any], answer: Any) -> None:
        """Twice is once."""
        if isinstance(answer, asyncio.Future):
            answer.add_done_callback(partial(self._answered_late, future), context=self._context)
        else:
            self._answer(future, answer)

    def _answered_late(self, future: asyncio.Future[Any], answer: asyncio.Future[Any]) -> None:
        if answer.cancelled():
            future.cancel()
        self._answer(future, None if answer.cancelled() else answer.exception() or answer.result())


class ThreadCommit(GroupCommit[Write]):
    """As `GroupCommit`, in a thread.

    What has been written is answered by the very callback that the thread wakes the event loop with: a task that waits
    for the thread costs a write that comes alone one more turn of the event loop, and itself.

    Args:
        thread: calls `write_batch`.
        write_batch: commits all the writes, or none of them. It returns an answer for each: what the write results in,
            or the exception that it alone has earned, or `AGAIN`. What it raises has failed them all.
        place, patience, limits: as `GroupCommit`.
    """

    def __init__(
        self,
        thread: OneThread,
        write_batch: Callable[[Sequence[Write]], Sequence[Any]],
        place: str,
        *,
        patience: float | None = None,
        **limits: int,
    ) -> None:
        super().__init__(place, patience=patience, **limits)
        self._thread = thread
        self._write_batch = write_batch
        self._loop: asyncio.AbstractEventLoop | None = None  # while there is something to write, and a little longer
        self._at_rest: asyncio.Event | None = None

    def _begin(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._write_next, self._loop, 0, context=self._context)

    async def _end(self) -> None:
        while self._loop is not None:
            self._at_rest = self._at_rest or asyncio.Event()
            await self._at_rest.wait()

    def _write_next(self, loop: asyncio.AbstractEventLoop, turns: int) -> None:
        if turns > 0:
            loop.call_soon(self._write_next, loop, turns - 1)
        elif self._waiting:
            batch = self._take(min(len(self._waiting), self._max_batch))
            try:
                self._thread.ask(partial(self._write_batch, batch), partial(self._written, loop))
            except Exception as exc:  # it cannot be started
                loop.call_soon(self._written, loop, None, exc)
        else:
            self._loop = None
            if self._at_rest is not None:
                self._at_rest.set()

    def _written(self, loop: asyncio.AbstractEventLoop, answers: Any, failure: BaseException | None) -> None:
        size = len(self._batch)
        try:
            if failure is not None and not isinstance(failure, Exception):  # the process ends
                self._cancel_batch()
                raise failure
            again: list[tuple[Write, asyncio.Future[Any]]] = []
            for waiting, answer in zip(self._taken(), answers if failure is None else [failure] * size, strict=True):
                if answer is AGAIN:
                    again.append(waiting)
                else:
                    self._answer(waiting[1], answer)
            self._waiting.extendleft(reversed(again))
        finally:  # whatever comes of it, for those that wait
            self._write_next(loop, self._turns_after(size))
