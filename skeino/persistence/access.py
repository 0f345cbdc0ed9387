"""What comes before a saver touches a thread: the run's row, the thread's owner, and the run's claim.

A run remembers what it has been allowed, so that most calls ask nobody. Each function has a `_blocking` form for a
saver's synchronous methods, which a graph calls from worker threads, or on the event loop itself.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, Final

from skeino.errors import (
    InvalidInputError,
    RunInterruptedError,
    StoreUnavailableError,
    ThreadBusyError,
    ThreadNotFoundError,
)
from skeino.runs import Run

LOOP_PATIENCE: Final = 0.25
"""Seconds after which an event loop that does not move is taken for one that a graph's `invoke` blocks."""

ROW_PATIENCE: Final = 10.0
"""The same where nothing can be done without the event loop, which may just be busy."""

STORE_PATIENCE: Final = 60.0
"""Seconds that a graph's worker thread waits for the metadata store."""


async def allow_write(run: Run, thread_id: str, *, goes_on: bool = False) -> None:
    """Make sure that the thread exists, is the run's owner's and held by it, and that the run's row names it.

    Args:
        run: the run that is about to write.
        thread_id: the thread.
        goes_on: a graph goes on that has loaded the thread's state before.

    Raises:
        ThreadNotFoundError: it belongs to another owner.
        ThreadBusyError, RunInterruptedError: another run writes to it, or has taken it.
        StoreUnavailableError: the metadata store does not answer.
    """
    if run.may_write(thread_id):
        return
    await _ensure_row(run)
    if run.claims is not None:
        try:
            await run.claims.claim(run, thread_id, goes_on=goes_on)
        except RunInterruptedError as exc:
            run.conflict = exc
            raise
        except ThreadBusyError as exc:
            if run.thread_id in (None, thread_id):  # over another thread it is an exception like any other
                run.conflict = exc
            raise
        if isinstance(run.conflict, ThreadBusyError):  # the application goes on without that thread
            run.conflict = None
    elif run.store is not None:
        await run.store.attach_thread(run.run_id, thread_id, owner=run.owner)
    run.learn_thread(thread_id)
    run.mark_attached(thread_id)


def allow_write_blocking(run: Run, thread_id: str, *, goes_on: bool = False) -> None:
    """`allow_write`, from any thread. Where that stops the event loop, the thread is attached when the run ends.

    Raises:
        InvalidInputError: it stops the event loop, and the thread's owner or the run's row cannot wait.
        SkeinoError: as `allow_write`; `StoreUnavailableError` also if the event loop has not answered for a minute.
    """
    if run.may_write(thread_id):
        return
    _ensure_row_blocking(run)
    if run.claims is None and run.is_attached(thread_id):
        return
    patience = STORE_PATIENCE if run.claims is None else STORE_PATIENCE + run.claims.patience
    if not _waited_for(run, allow_write(run, thread_id, goes_on=goes_on), answer_within=patience):
        _refuse_if_guarded(run)
        run.learn_thread(thread_id)
        run.attach_at_the_end(thread_id)  # so that the next write does not wait
        if run.claims is not None:
            run.holds.does_without(thread_id)


async def allow_read(run: Run, thread_id: str) -> None:
    """Make sure, once per thread, that it is not another owner's. Costs nothing where nobody has an owner.

    Raises:
        ThreadNotFoundError: it belongs to another owner.
        RunInterruptedError: another run has interrupted this one.
    """
    if run.has_claimed:
        run.may_write(thread_id)  # raises if it was interrupted
    await _ensure_row(run)
    await check_owner(run, thread_id)
    run.learn_thread(thread_id)


def allow_read_blocking(run: Run, thread_id: str) -> None:
    """`allow_read`, from any thread; raises as `allow_write_blocking` does."""
    if run.has_claimed:
        run.may_write(thread_id)  # raises if it was interrupted
    _ensure_row_blocking(run)
    check_owner_blocking(run, thread_id)
    run.learn_thread(thread_id)


async def check_owner(run: Run, thread_id: str) -> None:
    """`allow_read` for a thread that the run deals with beside its own.

    Raises:
        ThreadNotFoundError: it belongs to another owner.
    """
    if not run.must_check(thread_id):
        return
    row = await run.store.get_thread(thread_id) if run.store is not None else None
    if row is not None:
        if row["owner"] != run.owner:
            raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
        run.mark_allowed(thread_id)  # a thread that is not there yet may become somebody's


def check_owner_blocking(run: Run, thread_id: str) -> None:
    """`check_owner`, from any thread; raises as `allow_write_blocking` does."""
    if run.must_check(thread_id) and not _waited_for(run, check_owner(run, thread_id)):
        _refuse_if_guarded(run)


async def _ensure_row(run: Run) -> None:
    if run.write_row is not None:
        run.mark_used()
        await run.write_row(run)


def _ensure_row_blocking(run: Run) -> None:
    if run.write_row is not None and not _waited_for(run, _ensure_row(run), ROW_PATIENCE):
        raise InvalidInputError(
            "With record='on_use', a graph's synchronous methods cannot wait for the run's row on the event loop: "
            "use ainvoke or astream, or asyncio.to_thread(graph.invoke, ...)."
        )


def _refuse_if_guarded(run: Run) -> None:
    if run.guarded:
        raise InvalidInputError(
            "A graph's synchronous methods cannot check a thread's owner on the event loop: use ainvoke or astream."
        )


def _waited_for(
    run: Run,
    coroutine: Coroutine[Any, Any, None],
    patience: float = LOOP_PATIENCE,
    answer_within: float = STORE_PATIENCE,
) -> bool:
    """Run the coroutine on the run's event loop, from another thread; False, and it is not begun, if that cannot be.

    It cannot be where a graph's `invoke` is called on the event loop, which then stands still: in its own thread, and
    in the worker threads that LangGraph writes from.
    """
    try:
        running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is run.loop or not _moves(run.loop, patience):
        coroutine.close()
        return False
    try:
        asyncio.run_coroutine_threadsafe(coroutine, run.loop).result(answer_within)
    except concurrent.futures.TimeoutError as exc:
        raise StoreUnavailableError("The metadata store did not answer a graph's thread in time.") from exc
    return True


def _moves(loop: asyncio.AbstractEventLoop, patience: float) -> bool:
    moved = threading.Event()
    try:
        loop.call_soon_threadsafe(moved.set)
    except RuntimeError:  # it is closed
        return False
    return moved.wait(patience)
