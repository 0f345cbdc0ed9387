"""Claims: one run at a time writes to a thread. Their contract for a store, and `ThreadClaims`, which makes them.

A thread has a *queue*: the ids of the runs that want to write to it, in the order in which they came. The first of them
that is active holds the thread. A run that has ended counts as gone wherever it stands, so that nothing has to be put
right when a process dies; and since no run becomes active again, whoever holds a thread by one's own reading of the
queue holds it by everybody's.

Whenever another run takes the thread its *fence* grows; that of a new thread begins with the time, so that one which
was deleted and made again has another. What a run writes goes with the fence that it took the thread with, and is
refused when that is no longer the thread's: in the checkpoint's own transaction, where the checkpointer and the
metadata store are one database, so that a process which was taken for dead, or a run that was interrupted, cannot write
beside its successor. (Kleppmann, "How to do distributed locking", calls it a fencing token.)
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import weakref
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from langgraph.checkpoint.base import BaseCheckpointSaver

from skeino.errors import ConfigurationError, RunInterruptedError, StoreError, ThreadBusyError
from skeino.persistence.cancellation import to_its_end
from skeino.runs import Run

logger = logging.getLogger("skeino")

FIRST_LOOK: Final = 0.01
LAST_LOOK: Final = 0.25
"""Seconds between two looks at a queue in which another process's run stands before: the first pause, for each run that
stands there, and the longest."""

CANCELLED: Final = 1.0
"""Seconds that a caller which is cancelled while it claims a thread waits for the answer, at the most."""

COLLISION: Final = 0.005
"""Seconds to wait at the most when the queue has changed while it was read."""


class Queue(NamedTuple):
    """The runs that want to write to a thread, first the one that came first."""

    run_ids: tuple[str, ...]
    active: frozenset[str]
    """Those of them that have not ended."""

    def may_be_held_by(self, doomed: Collection[str]) -> bool:
        """Whether none but one of these, which are about to end, may be the last that has had the thread."""
        holder = next((run_id for run_id in self.run_ids if run_id in self.active), None)
        return holder is None or holder in doomed


@runtime_checkable
class ClaimingStore(Protocol):
    """A metadata store that knows who writes to a thread. Without it any number of runs write to one at a time."""

    async def claim_thread(self, run_id: str, thread_id: str, *, owner: str | None) -> int | None:
        """As `attach_thread`; and if nobody is in the thread's queue, let the run be alone in it.

        Returns:
            The thread's new fence, if the run holds it now. None if somebody is in the queue.

        Raises:
            ThreadNotFoundError: the thread belongs to another owner. Nothing was written.
        """
        ...

    async def get_queue(self, thread_id: str) -> Queue | None:
        """The thread's queue at one moment; None if there is no such thread."""
        ...

    async def change_queue(
        self, thread_id: str, seen: Sequence[str], wanted: Sequence[str], *, takes: bool
    ) -> int | None:
        """Put `wanted` in the place of the queue, if that is still as it was `seen`.

        Args:
            thread_id: the thread.
            seen: the ids of the queue that was read.
            wanted: those it is to have.
            takes: the first of them takes the thread: its fence grows by one.

        Returns:
            The thread's fence; None if the queue was another one, or there is no such thread. Nothing was written then.
        """
        ...

    def release_thread(self, run_id: str, thread_id: str) -> Awaitable[None]:
        """Take the run out of the thread's queue, wherever it stands in it. A coroutine function will do."""
        ...


class ThreadClaims:
    """The claims of one process: at most one run of all processes holds a thread.

    Args:
        store: where the queues are.
        roll_back: deletes the checkpoints of these runs, for `multitask_strategy="rollback"`.
        patience: seconds that a run waits in a queue.
        limit: how many runs may be in a queue, the one that holds the thread included.
    """

    def __init__(
        self,
        store: ClaimingStore,
        roll_back: Callable[[Sequence[str]], Awaitable[None]],
        *,
        patience: float,
        limit: int,
    ) -> None:
        self._store = store
        self._roll_back = roll_back
        self.patience = patience
        self._limit = limit
        self._here: weakref.WeakValueDictionary[str, Run] = weakref.WeakValueDictionary()
        self._looking: dict[str, dict[str, asyncio.Event]] = {}  # thread → run → wakes it; in the order they came
        self._leaving: set[asyncio.Future[None]] = set()

    async def claim(self, run: Run, thread_id: str, *, goes_on: bool = False) -> None:
        """Let the run hold the thread, unless it does.

        Args:
            run: the run; its `multitask_strategy` says what becomes of others.
            thread_id: the thread.
            goes_on: what it will write was computed from what it read when it held the thread before.

        Raises:
            ThreadBusyError: another run holds it, and waiting is not wanted, has lasted too long, or too many wait.
            RunInterruptedError: another run has interrupted this one; or it goes on, and another has held the thread.
            ThreadNotFoundError: the thread belongs to another owner.
            StoreUnavailableError: the store does not answer.
        """
        holds = run.holds
        async with holds.lock_of(thread_id):
            if holds.has(thread_id):
                return
            if (lender := _lender(run, thread_id)) is not None:
                holds.takes(thread_id, lender)
                return
            before = holds.fence_of(thread_id)
            holds.asks(thread_id)
            self._here[run.run_id] = run
            fence = await self._claimed(run, thread_id)
            if fence is None:
                fence = await self._queue_up(run, thread_id)
            holds.takes(thread_id, fence)
            if goes_on and before is not None and fence != before + 1:
                lost = RunInterruptedError(
                    f"The run {run.run_id} has let the thread {thread_id!r} go with its response, and another has "
                    "written to it since: what it computed from the older state is refused."
                )
                holds.loses(lost)
                raise lost

    async def _claimed(self, run: Run, thread_id: str) -> int | None:
        """The store's answer. A caller that is cancelled meanwhile waits a moment for it, and the run has the thread
        then: asked again, it would seem to have lost it to another.
        """
        asked = asyncio.ensure_future(self._store.claim_thread(run.run_id, thread_id, owner=run.owner))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(lambda claim: claim.cancelled() or claim.exception())  # nobody else asks for it
            await asyncio.wait([asked], timeout=CANCELLED)
            answered = asked.done() and not asked.cancelled() and asked.exception() is None
            if answered and (fence := asked.result()) is not None:
                run.holds.takes(thread_id, fence)
            raise

    def release(self, run: Run) -> Collection[asyncio.Future[None]]:
        """Let go what the run holds, and let whoever stands next in a queue go on.

        Returns:
            What is done when that is durable. It raises nothing: what fails is done at the latest when the run ends.
        """
        asked = [self._release(run.run_id, thread_id) for thread_id in run.holds.lets_go()]
        return [future for future in asked if future is not None]

    async def settled(self) -> None:
        """Wait until what was let go is released."""
        while self._leaving:
            await asyncio.wait(list(self._leaving))

    def _release(self, run_id: str, thread_id: str) -> asyncio.Future[None] | None:
        try:
            future = asyncio.ensure_future(self._store.release_thread(run_id, thread_id))
        except StoreError as exc:
            _report(exc)
            return None
        self._leaving.add(future)
        future.add_done_callback(partial(self._released, thread_id))
        return future

    def _released(self, thread_id: str, future: asyncio.Future[None]) -> None:
        self._leaving.discard(future)
        if not future.cancelled() and (exc := future.exception()) is not None:
            _report(exc)
        for event in self._looking.get(thread_id, {}).values():
            event.set()
            return

    async def _queue_up(self, run: Run, thread_id: str) -> int:
        """The thread's fence, once the run holds it."""
        try:
            return await self._stand_in_queue(run, thread_id)
        except BaseException:  # whatever it was, the run must not stand in others' way
            run.holds.does_not_get(thread_id)
            self._release(run.run_id, thread_id)
            raise
        finally:
            self._look_no_more(run.run_id, thread_id)

    async def _stand_in_queue(self, run: Run, thread_id: str) -> int:
        me, loop, strategy = run.run_id, asyncio.get_running_loop(), run.multitask_strategy
        until = loop.time() + self.patience
        queued, place, pause = False, 0, 0.0
        while True:
            queue = await self._store.get_queue(thread_id)
            if queue is None:  # it was deleted
                fence = await self._store.claim_thread(me, thread_id, owner=run.owner)
                if fence is not None:
                    return fence
                continue
            if queued and me not in queue.run_ids:
                raise _interrupted(run, thread_id)
            run.holds.has(thread_id)  # raises if it was interrupted meanwhile
            alive = [one for one in queue.run_ids if one == me or one in queue.active]
            before = alive[: alive.index(me)] if me in alive else alive
            if not before:
                wanted, takes = [me, *(one for one in alive if one != me)], True
            elif strategy in ("interrupt", "rollback"):
                wanted, takes = [me], True
            elif strategy == "reject":
                raise ThreadBusyError(f"The thread {thread_id!r} is busy: another run writes to it.")
            elif me in alive:
                if (left := until - loop.time()) <= 0:
                    raise ThreadBusyError(
                        f"The thread {thread_id!r} was busy for {self.patience:g} s: other runs write to it."
                    )
                pause = FIRST_LOOK * len(before) if len(before) != place else min(2 * pause, LAST_LOOK)
                place = len(before)
                await self._look_later(me, thread_id, min(pause, left))
                continue
            elif len(alive) >= self._limit:
                raise ThreadBusyError(f"The thread {thread_id!r} is busy: {len(alive)} runs wait for it already.")
            else:
                wanted, takes = [*alive, me], False
            fence = await self._store.change_queue(thread_id, queue.run_ids, wanted, takes=takes)
            if fence is None:
                await asyncio.sleep(random.uniform(0, COLLISION))
            elif takes:
                await self._take_the_place_of([one for one in alive if one not in wanted], run, thread_id)
                return fence
            else:
                queued = True

    async def _look_later(self, run_id: str, thread_id: str, pause: float) -> None:
        """Wait so long, or until a run of this process has let the thread go, if no other of this process is first."""
        looking = self._looking.setdefault(thread_id, {})
        event = looking.setdefault(run_id, asyncio.Event())
        event.clear()
        woken = asyncio.ensure_future(event.wait())  # not asyncio.timeout, which granian's own tasks break
        try:
            await asyncio.wait([woken], timeout=pause * random.uniform(0.75, 1.0))
        finally:
            woken.cancel()

    def _look_no_more(self, run_id: str, thread_id: str) -> None:
        looking = self._looking.get(thread_id, {})
        looking.pop(run_id, None)
        if not looking:
            self._looking.pop(thread_id, None)

    async def _take_the_place_of(self, interrupted: Sequence[str], run: Run, thread_id: str) -> None:
        if not interrupted:
            return
        logger.info("Run %s interrupts %d others on thread %r.", run.run_id, len(interrupted), thread_id)
        for run_id in interrupted:
            if (other := self._here.get(run_id)) is not None:  # the others are refused when they write
                other.holds.loses(_interrupted(other, thread_id))
                if event := self._looking.get(thread_id, {}).get(run_id):
                    event.set()
        if run.multitask_strategy == "rollback":
            await to_its_end(self._roll_back(interrupted))


async def delete_checkpoints_of(checkpointer: BaseCheckpointSaver[Any], run_ids: Sequence[str]) -> None:
    """Delete what these runs have written, as their `multitask_strategy="rollback"` successor wants.

    Raises:
        ConfigurationError: the checkpointer cannot delete by run.
        StoreError: as the checkpointer.
    """
    try:
        # In a context of its own: what a request may delete by itself does not matter here.
        await asyncio.create_task(_deletion(checkpointer, run_ids), context=contextvars.Context())
    except NotImplementedError as exc:
        name = type(checkpointer).__name__
        raise ConfigurationError(
            f"multitask_strategy='rollback' needs a checkpointer with adelete_for_runs, which {name} lacks: choose "
            "'interrupt'."
        ) from exc


async def _deletion(checkpointer: BaseCheckpointSaver[Any], run_ids: Sequence[str]) -> None:
    await checkpointer.adelete_for_runs(run_ids)


def _lender(run: Run, thread_id: str) -> int | None:
    """The fence of the run that this one is part of, if that holds the thread."""
    outer = run.outer
    while outer is not None:
        if outer.active and outer.holds.has(thread_id):
            return outer.holds.fence_of(thread_id)
        outer = outer.outer
    return None


def _interrupted(run: Run, thread_id: str) -> RunInterruptedError:
    return RunInterruptedError(f"The run {run.run_id} was interrupted by another run on the thread {thread_id!r}.")


def _report(exc: BaseException) -> None:
    logger.info("A thread is released when its run has ended, not before: %s", exc)
