"""`Ends`: how runs ended, queued until the store has it."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import random
from collections.abc import Awaitable
from functools import partial
from typing import Any, Final

from skeino.errors import InvalidInputError, StoreError, StoreUnavailableError, ThreadNotFoundError
from skeino.persistence.protocol import MetadataStoreProtocol
from skeino.persistence.rows import RunError, RunFinish
from skeino.runs import Run
from skeino_asgi.row import write_row
from skeino_asgi.tasks import spawn

logger = logging.getLogger("skeino")

FIRST_RETRY: Final = 0.05
LAST_RETRY: Final = 5.0
"""Seconds between the attempts to write the ends of runs, while the store is unavailable: the first and the longest."""

MOST_DUE: Final = 10_000
"""Ends that may be due before no more runs begin: a database that is away for long must not fill the memory. Those of
runs that are in progress then are taken all the same."""

TOGETHER: Final = 200
"""Ends that are tried at the same time, once one has come through."""


class Ends:
    """The ends that are not written yet: each is tried at once, and then again until it is written.

    A store of ours queues an end when it is asked to, and answers with a future: that takes no task. What needs one is
    the rest: an end with something to be written before it, a store that is a coroutine function, a failure.
    """

    def __init__(self, store: MetadataStoreProtocol) -> None:
        self._store = store
        self._due: dict[str, End] = {}
        self._first_attempts: set[asyncio.Future[Any]] = set()
        self._retrying: asyncio.Task[None] | None = None
        self._draining = False
        self._closed = False
        self._context = contextvars.Context()  # no request's

    def __len__(self) -> int:
        return len(self._due)

    def refuse_if_full(self) -> None:
        """Nothing, unless so many ends are due that no more runs may begin.

        Raises:
            StoreUnavailableError: they are.
        """
        if len(self._due) >= MOST_DUE:
            raise StoreUnavailableError(f"The ends of {len(self._due)} runs wait for the database: try again.")

    def due(self) -> list[str]:
        """The runs whose ends are not written yet; any thread may ask."""
        return list(self._due)

    def add(self, end: End) -> None:
        """Queue an end. It is in the queue when this returns, so that a cancelled request, too, leaves its end."""
        if self._closed:
            logger.warning("The end of run %s came after the store was closed.", end.finish["run_id"])
            end.lost = True
            end.mark_written()
            return
        self._due[end.finish["run_id"]] = end
        if end.without_row is not None or end.thread_to_attach is not None:
            self._write_in_a_task(end)
            return
        answer = self._asked(end)
        if not isinstance(answer, asyncio.Future):
            self._write_in_a_task(end, answer)
        elif answer.done():
            self._answered(end, answer)
        else:
            self._first_attempts.add(answer)
            answer.add_done_callback(partial(self._answered, end), context=self._context)

    async def settled(self) -> None:
        """Wait until each end in the queue has been tried."""
        while self._first_attempts:
            await asyncio.wait(list(self._first_attempts))

    async def drain(self) -> None:
        """Write what is due, each once more, and leave what the store does not take."""
        self._draining = True
        if self._retrying is not None:
            self._retrying.cancel()
        await self.settled()
        due = list(self._due.values())  # whose first attempt was cancelled, or the store was away
        for begin in range(0, len(due), TOGETHER):
            await asyncio.gather(*(self._settle(end) for end in due[begin : begin + TOGETHER]))

    def close(self) -> None:
        """Take no more: the store is about to be closed."""
        self._closed = True

    def _asked(self, end: End) -> Awaitable[bool]:
        try:
            return self._store.finish_run(end.finish)
        except Exception as exc:
            failure: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            failure.set_exception(exc)
            return failure

    def _answered(self, end: End, answer: asyncio.Future[bool]) -> None:
        self._first_attempts.discard(answer)
        if answer.cancelled():
            return  # with the event loop: draining tries it again
        if answer.exception() is None:
            self._written(end, answer.result())
        else:
            self._write_in_a_task(end, answer)  # which sees to what went wrong

    def _write_in_a_task(self, end: End, answer: Awaitable[bool] | None = None) -> None:
        task = spawn(self._write(end, answer), "skeino end of run")
        self._first_attempts.add(task)
        task.add_done_callback(self._first_attempts.discard)

    async def _write(self, end: End, answer: Awaitable[bool] | None) -> None:
        if not await self._settle(end, answer) and self._retrying is None and not self._draining:
            self._retrying = spawn(self._retry(), "skeino ends of runs")

    async def _retry(self) -> None:
        """Try what is not written yet, again and again, until nothing is left."""
        delay = FIRST_RETRY
        try:
            while self._due:
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(2 * delay, LAST_RETRY)
                # One alone: if the store is still away, there is no need to ask it for each.
                number = 1
                while self._due and await self._settle_first(number):
                    number, delay = TOGETHER, FIRST_RETRY
        finally:
            self._retrying = None

    async def _settle_first(self, number: int) -> bool:
        """Try the first so many of those that are due; whether all of them are settled now."""
        some = list(itertools.islice(self._due.items(), number))
        settled = await asyncio.gather(*(self._settle(end) for _, end in some))
        for (run_id, end), is_settled in zip(some, settled, strict=True):
            # The next time others come first, so that one that is refused for ever holds up nobody.
            if not is_settled and self._due.pop(run_id, None) is not None:  # else its own first attempt came through
                self._due[run_id] = end
        return all(settled)

    async def _settle(self, end: End, answer: Awaitable[bool] | None = None) -> bool:
        """Write one end; False if that is worth another attempt.

        Args:
            end: the end.
            answer: the store's, where it has been asked already.
        """
        try:
            if answer is None:
                await self._write_what_comes_before(end)
                answer = self._store.finish_run(end.finish)
            self._written(end, await answer)
        except InvalidInputError as exc:
            if end.reduced:
                logger.error("The end of run %s cannot be written: %s", end.finish["run_id"], exc)
                self._forget(end)
                return True
            logger.error("The end of run %s is written without its details: %s", end.finish["run_id"], exc)
            end.reduce()
            return await self._settle(end)
        except StoreError as exc:
            logger.warning("The end of run %s is not written yet: %s", end.finish["run_id"], exc)
            return False
        except Exception:  # a bug in a store of somebody's own must not lose the others' ends
            logger.exception("The end of run %s is not written yet.", end.finish["run_id"])
            return False
        return True

    async def _write_what_comes_before(self, end: End) -> None:
        run_id = end.finish["run_id"]
        if end.without_row is not None:
            await self._begin(end.without_row, end.finish["worker_id"])
            end.without_row = None
        if end.thread_to_attach is not None:
            try:
                await self._store.attach_thread(run_id, end.thread_to_attach, owner=end.owner)
            except (ThreadNotFoundError, InvalidInputError):
                logger.warning("Run %s chose a thread of another owner: it ends without it.", run_id)
            end.thread_to_attach = None

    async def _begin(self, run: Run, worker_id: str) -> None:
        try:
            await write_row(run, self._store, worker_id)
        except ThreadNotFoundError:
            logger.warning("Run %s chose a thread of another owner: it is kept without it.", run.run_id)
            await write_row(run, self._store, worker_id, with_thread=False)

    def _written(self, end: End, changed: bool) -> None:
        if not changed:
            message = "The end of run %s changed nothing: its row had ended already, or is gone."
            logger.info(message, end.finish["run_id"])
        self._forget(end)

    def _forget(self, end: End) -> None:
        self._due.pop(end.finish["run_id"], None)
        end.mark_written()


class End:
    """How a run ended, on its way to the store."""

    __slots__ = ("_waiting", "finish", "is_written", "lost", "owner", "reduced", "thread_to_attach", "without_row")

    def __init__(
        self, finish: RunFinish, *, thread_to_attach: str | None, owner: str | None, without_row: Run | None
    ) -> None:
        self.finish = finish
        self.thread_to_attach = thread_to_attach
        self.owner = owner
        self.without_row = without_row  # a run that was used, but whose row is not written yet
        self.lost = False  # it came too late
        self.reduced = False
        self.is_written = False
        """The store has it, or will never take it."""
        self._waiting: asyncio.Event | None = None  # for whoever waits, which few do

    async def written(self) -> None:
        """Wait until it is written."""
        if not self.is_written:
            if self._waiting is None:
                self._waiting = asyncio.Event()
            await self._waiting.wait()

    def mark_written(self) -> None:
        """Tell whoever waits."""
        self.is_written = True
        if self._waiting is not None:
            self._waiting.set()

    def reduce(self) -> None:
        """Keep the status alone, of an end whose details no store can hold."""
        self.reduced = True
        self.thread_to_attach = None
        error = RunError(code="unstorable", type=None, message="What is known of the run's end could not be stored.")
        known = self.finish
        self.finish = RunFinish(
            run_id=known["run_id"],
            worker_id=known["worker_id"],
            status=known["status"],
            finished_at=known["finished_at"],
            thread_id=None,
            thread_status=known["thread_status"],
            error=None if known["status"] == "success" else error,
            http_status=None,
            metadata={},
            checkpoint_count=known["checkpoint_count"],
            first_checkpoint_id=None,
            last_checkpoint_id=None,
            paused=known["paused"],
        )
