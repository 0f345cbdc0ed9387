"""What is done when time is up: threads deleted or pruned by their `ttl`, finished runs deleted by their age.

A *sweep* does all that is due, one thread after the other. Each thread is a transaction of its own, in which it is
decided once more that the time is up and no run active; where both halves are in one database it takes the state as
well. So whoever dies in the middle has done some of it, and the next sweep does the rest. That one process sweeps at a
time saves work, and nothing depends on it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, NamedTuple, Protocol, runtime_checkable

from langgraph.checkpoint.base import BaseCheckpointSaver

from skeino.errors import DeltaChannelError, StoreError, StoreUnavailableError

logger = logging.getLogger("skeino")

SWEEP: Final = "ttl"
"""The name of the sweep, in the row that says who is at it."""

SWEEP_SECONDS: Final = 60.0
"""For how long a process that sweeps is left alone without a sign of life."""

THREADS_AT_ONCE: Final = 100
RUNS_AT_ONCE: Final = 500
"""Of which one transaction deletes as many; it takes some milliseconds."""

FAILURES: Final = 3
"""Threads in a row for which the database is away, or takes too long: then it is not the thread."""

Strategy = Literal["delete", "keep_latest"]

DELETE: Final[tuple[Strategy, ...]] = ("delete",)
KEEP_LATEST: Final[tuple[Strategy, ...]] = ("keep_latest",)

Expiry = Literal["deleted", "pruned", "unprunable", "kept"]
"""What became of a thread whose time was up: "unprunable" has delta channels, "kept" has an active run, or has changed
meanwhile."""


class Due(NamedTuple):
    """How much there is to do, or has been done."""

    deleted_threads: int = 0
    pruned_threads: int = 0
    deleted_runs: int = 0


class Sweeps(Protocol):
    """What is due in one database, and what is done about it. All times are by the database's clock."""

    async def begin(self, worker_id: str, *, seconds: float, interval: float) -> float:
        """Begin a sweep, unless another is under way or has begun less than `interval` seconds ago.

        Args:
            worker_id: names the process.
            seconds: after how long without `renew` another process may begin.
            interval: from the beginning of one sweep to that of the next, whoever does it.

        Returns:
            0 if the sweep is this worker's; else the seconds after which asking again makes sense.
        """
        ...

    async def renew(self, worker_id: str, *, seconds: float) -> bool:
        """Go on for `seconds` from now on; False if another process has begun a sweep meanwhile."""
        ...

    async def end(self, worker_id: str) -> None:
        """Say that this worker's sweep is over; nothing, if it is another's by now."""
        ...

    async def count_due(self, run_retention: timedelta | None) -> Due:
        """How much there is to do; threads with active runs are counted as well."""
        ...

    async def due_threads(
        self, *, strategies: Collection[Strategy], limit: int, leave_out: Collection[str] = ()
    ) -> list[str]:
        """Threads whose time is up. A thread that was pruned is due again when it has changed."""
        ...

    async def expire_thread(self, thread_id: str, checkpointer: BaseCheckpointSaver[Any]) -> Expiry:
        """Do what the thread's `ttl` says, in both halves, if its time is up and no run is active on it.

        A thread that is deleted goes with its runs, as by `delete_thread`. One that is pruned, or cannot be, is not
        due until it changes again.
        """
        ...

    async def delete_finished_runs(self, older_than: timedelta, *, limit: int) -> int:
        """Delete runs that ended longer ago, at most `limit`; returns how many. Their threads stay as they are."""
        ...


@runtime_checkable
class SweepableStore(Protocol):
    """A metadata store that knows what is due. Without it threads and runs stay, whatever their age."""

    def sweeps(self) -> Sweeps:
        """For as long as the store is open."""
        ...


@dataclass(slots=True)
class SweepReport:
    """What a sweep has done."""

    deleted_threads: int = 0
    pruned_threads: int = 0
    deleted_runs: int = 0
    kept_threads: int = 0
    """With an active run, or changed at the last moment."""
    unprunable_threads: int = 0
    """With delta channels, which are rebuilt from older checkpoints."""
    cannot_prune: bool = False
    """Whether threads are left because the checkpointer has no such operation."""
    failed_threads: int = 0
    """Left for the next sweep."""
    broken_off: bool = False
    """Whether another process has taken over, or it was to stop."""

    @property
    def did_something(self) -> bool:
        """Whether there is something to tell of."""
        return any((self.deleted_threads, self.pruned_threads, self.deleted_runs, self.failed_threads))


class Sweep:
    """One sweep, begun with `Sweeps.begin`.

    Args:
        sweeps: what is due.
        checkpointer: the other half.
        worker_id: as the sweep was begun with.
        run_retention: how long finished runs are kept; None is for ever.
        on_progress: called with what has been done so far.
        must_stop: asked between two steps.
    """

    def __init__(
        self,
        sweeps: Sweeps,
        checkpointer: BaseCheckpointSaver[Any],
        worker_id: str,
        run_retention: timedelta | None,
        *,
        on_progress: Callable[[Due], None] = lambda _: None,
        must_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._sweeps = sweeps
        self._checkpointer = checkpointer
        self._worker_id = worker_id
        self._run_retention = run_retention
        self._on_progress = on_progress
        self._must_stop = must_stop
        self._renewed_at = time.monotonic()
        self.report = SweepReport()

    async def run(self) -> SweepReport:
        """Do all that is due, and say that the sweep is over.

        Raises:
            StoreError: the database cannot be reached, or refuses. What was done stays done.
        """
        try:
            await self._expire_threads()
            if self._run_retention is not None:
                await self._delete_runs(self._run_retention)
        finally:
            with suppress(StoreError):  # it ends by itself, later
                await self._sweeps.end(self._worker_id)
        return self.report

    async def _expire_threads(self) -> None:
        strategies = DELETE + KEEP_LATEST
        if not can_prune(self._checkpointer):
            strategies = DELETE
            left_out = await self._sweeps.due_threads(strategies=KEEP_LATEST, limit=1)
            self.report.cannot_prune = bool(left_out)
        left: set[str] = set()
        unreachable = 0
        while await self._goes_on():
            began = time.monotonic()
            threads = await self._sweeps.due_threads(strategies=strategies, limit=THREADS_AT_ONCE, leave_out=left)
            if not threads:
                return
            for thread_id in threads:
                if not await self._goes_on():
                    return
                try:
                    expiry = await self._sweeps.expire_thread(thread_id, self._checkpointer)
                except Exception as exc:  # one that cannot be read, say, must not keep the others from their end
                    unreachable = unreachable + 1 if isinstance(exc, StoreUnavailableError) else 0
                    if unreachable == FAILURES:
                        raise
                    self._note_failure(thread_id, exc)
                    left.add(thread_id)
                else:
                    unreachable = 0
                    self._count(expiry)
                    if expiry == "kept":
                        left.add(thread_id)
            await _leave_time_to_others(began)

    def _note_failure(self, thread_id: str, exc: Exception) -> None:
        if not self.report.failed_threads:
            bug = None if isinstance(exc, StoreError) else exc
            logger.warning("The thread %r cannot be swept, and is left: %s", thread_id, exc, exc_info=bug)
        self.report.failed_threads += 1

    def _count(self, expiry: Expiry) -> None:
        match expiry:
            case "deleted":
                self.report.deleted_threads += 1
            case "pruned":
                self.report.pruned_threads += 1
            case "unprunable":
                self.report.unprunable_threads += 1
            case "kept":
                self.report.kept_threads += 1
        self._tell()

    async def _delete_runs(self, older_than: timedelta) -> None:
        while await self._goes_on():
            began = time.monotonic()
            number = await self._sweeps.delete_finished_runs(older_than, limit=RUNS_AT_ONCE)
            self.report.deleted_runs += number
            self._tell()
            if number < RUNS_AT_ONCE:
                return
            await _leave_time_to_others(began)

    def _tell(self) -> None:
        report = self.report
        self._on_progress(Due(report.deleted_threads, report.pruned_threads, report.deleted_runs))

    async def _goes_on(self) -> bool:
        """Whether the sweep is still this worker's, and nobody wants it to stop."""
        if not self.report.broken_off and self._must_stop():
            self.report.broken_off = True
        elif not self.report.broken_off and time.monotonic() - self._renewed_at > SWEEP_SECONDS / 4:
            self._renewed_at = time.monotonic()
            self.report.broken_off = not await self._sweeps.renew(self._worker_id, seconds=SWEEP_SECONDS)
        return not self.report.broken_off


async def _leave_time_to_others(began: float) -> None:
    """As much as the last step took, but not more than a second."""
    await asyncio.sleep(min(time.monotonic() - began, 1.0))


def can_prune(checkpointer: BaseCheckpointSaver[Any]) -> bool:
    """Whether the saver has the operation: LangGraph's own has a place for it only."""
    return getattr(type(checkpointer), "aprune", None) is not getattr(BaseCheckpointSaver, "aprune", None)


async def remove_state(checkpointer: BaseCheckpointSaver[Any], thread_id: str, strategy: Strategy) -> Expiry:
    """Delete or prune what the checkpointer has of the thread, where it has a database of its own."""
    if strategy == "delete":
        await checkpointer.adelete_thread(thread_id)
        return "deleted"
    try:
        await checkpointer.aprune([thread_id], strategy="keep_latest")
    except (DeltaChannelError, NotImplementedError):
        return "unprunable"
    return "pruned"
