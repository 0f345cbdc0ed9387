"""`Heartbeat`: a thread that renews this process's lease, ends the runs of the dead, and those it has lost itself.

A thread of the operating system, with a connection of its own: an event loop that a handler blocks is not taken for a
death, and neither is a pool without a free connection.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from datetime import datetime
from types import TracebackType
from typing import Final

from skeino.errors import StoreError, StoreUnavailableError
from skeino.persistence.leases import KEPT, PATIENCE, Leases, LeasingStore

logger = logging.getLogger("skeino")

BEAT: Final = 1 / 4
LIMIT: Final = 1 / 6
FIRST_RETRY: Final = 1 / 60
LAST_RETRY: Final = 1 / 8
GAP: Final = 0.45
"""Parts of a lease: the pause between two renewals; the longest that one call may take; the first and the longest pause
after a failure; and the longest between two renewals that is no gap.

Whoever lives is back in time, where another has noticed a failure (`PATIENCE`), and where the failure was over before
the other's next renewal: then BEAT + GAP + LIMIT + LAST_RETRY are less than the lease.
"""

OPENING_PATIENCE: Final = 10.0
"""Seconds that the first lease is tried for."""

BATCH: Final = 500
"""Runs that are ended in one transaction."""

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def elapsed() -> float:
    """Seconds since some moment, those included for which the machine slept, where the system can tell."""
    return time.clock_gettime(_CLOCK)


class Steadiness:
    """For how long this process has renewed its lease without a gap.

    Only a process that has been steady for longer than a lease declares another's lost: after a restart of the
    database, or after this process or its machine stood still, all others may be late for the same reason.

    Args:
        seconds: how long this process's lease is.
        clock: seconds that pass; the machine's.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = elapsed) -> None:
        self._gap = GAP * seconds
        self._clock = clock
        self._since: float | None = None
        self._last: tuple[float, datetime] | None = None

    def renewed(self, until: datetime) -> None:
        """It was renewed just now, and is good until then by the database's clock."""
        now, before = self._clock(), self._last
        self._last = now, until
        if self._since is None or before is None or now - before[0] > self._gap:
            self._since = now
        elif abs((until - before[1]).total_seconds() - (now - before[0])) > self._gap:
            self._since = now  # the database's clock was set, or another server's has taken over

    def failed(self) -> None:
        """It could not be renewed."""
        self._since = None

    def seconds(self) -> float:
        """How long it has lasted; 0 if it does not."""
        return 0.0 if self._since is None else self._clock() - self._since


class Heartbeat:
    """This process's lease, kept while the context is entered.

    Args:
        store: where the lease is kept.
        seconds: how long it is good for; it is renewed about four times meanwhile.
        new_worker_id: makes the name under which it is held; another one, if a lease was lost.
        known: the runs whose end this process has in its hands, or is going to have; asked in the thread. None when
            nobody is left to end them, because their event loop is closed: then the lease is given up.
        when_lost: told of a worker whose lease was lost, in the thread.
    """

    def __init__(
        self,
        store: LeasingStore,
        seconds: float,
        new_worker_id: Callable[[], str],
        known: Callable[[], Collection[str] | None],
        when_lost: Callable[[str], None] = lambda worker_id: None,
    ) -> None:
        self._seconds = seconds
        self._limit = LIMIT * seconds
        self._leases: Leases = store.open_leases(self._limit)
        self._new_worker_id = new_worker_id
        self._known = known
        self._when_lost = when_lost
        self._worker_id = ""
        self._steadiness = Steadiness(seconds)
        self._renewed_at = elapsed()
        self._suspects: set[str] = set()
        self._is_failing = False
        self._stop = threading.Event()
        self._acquired: Future[None] = Future()
        self._over: Future[None] = Future()
        # A daemon: a process that ends without closing must not wait for it.
        self._thread = threading.Thread(target=self._live, name="skeino-heartbeat", daemon=True)

    @property
    def worker_id(self) -> str:
        """The worker that runs are started for; another one after a lease was lost."""
        return self._worker_id

    def refuse_if_forgotten(self) -> None:
        """Nothing, unless the lease may have been lost so long ago that nobody would find a run that starts now.

        Raises:
            StoreUnavailableError: it may have been.
        """
        if elapsed() - self._renewed_at > KEPT.total_seconds() / 2:
            raise StoreUnavailableError("The process's lease could not be renewed for long: try again.")

    async def __aenter__(self) -> Heartbeat:
        """Wait for the first lease.

        Raises:
            StoreError: it cannot be had.
        """
        for future in (self._acquired, self._over):
            future.set_running_or_notify_cancel()  # who waits may be cancelled, they are not
        self._thread.start()
        try:
            await asyncio.wrap_future(self._acquired)
        except BaseException:
            self._stop.set()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the lease back, and wait for that; but not for a database that does not answer."""
        self._stop.set()
        over = asyncio.wrap_future(self._over)
        await asyncio.wait([over], timeout=4 * self._limit)
        over.cancel()  # the thread may outlive the event loop
        if self._over.done():
            self._thread.join()  # which has nothing left to do

    # ── In the thread ────────────────────────────────────────────────────────────────────────────────────

    def _live(self) -> None:
        try:
            if self._begin():
                self._beat_until_stopped()
                self._give_back()
        finally:
            try:
                self._leases.close()
            finally:
                self._over.set_result(None)

    def _begin(self) -> bool:
        """Acquire the first lease, and say so, or why not."""
        deadline = elapsed() + OPENING_PATIENCE
        while True:
            try:
                self._acquire()
            except StoreUnavailableError as exc:
                if elapsed() > deadline or self._stop.wait(random.uniform(0.05, 0.25)):
                    self._acquired.set_exception(exc)
                    return False
            except BaseException as exc:
                self._acquired.set_exception(exc)
                return False
            else:
                self._acquired.set_result(None)
                return True

    def _beat_until_stopped(self) -> None:
        pause = retry = 0.0
        while not self._stop.wait(pause):
            began = elapsed()
            try:
                if not self._beat():
                    return
            except Exception as exc:
                retry = min(max(2 * retry, FIRST_RETRY * self._seconds), LAST_RETRY * self._seconds)
                pause = retry * random.uniform(0.5, 1.0)
                self._report(exc)
            else:
                retry = 0.0
                pause = max(0.0, began + BEAT * self._seconds * random.uniform(0.75, 1.0) - elapsed())
                self._report(None)

    def _beat(self) -> bool:
        """One heartbeat; False if the lease is to be given up."""
        known = self._known()
        if known is None:
            return False
        try:
            until = self._leases.renew(self._worker_id, self._seconds)
        except BaseException:
            self._steadiness.failed()
            raise
        if until is None:
            self._start_anew()
        else:
            self._renewed_at = elapsed()
            self._steadiness.renewed(until)
        enough = elapsed() + self._limit  # the next renewal must not be late
        self._end_runs_of_the_dead(enough)
        if elapsed() < enough:
            self._end_runs_that_are_unknown()
        return True

    def _acquire(self) -> None:
        worker_id = self._new_worker_id()  # each time: one whose answer was lost may have been acquired
        until = self._leases.acquire(worker_id, self._seconds)
        self._worker_id, self._renewed_at = worker_id, elapsed()
        self._steadiness.failed()
        self._steadiness.renewed(until)

    def _start_anew(self) -> None:
        """Another has declared the lease lost, and the runs under it were ended: new ones need a new lease."""
        lost = self._worker_id
        self._acquire()
        self._suspects.clear()
        self._when_lost(lost)
        logger.warning(
            "The worker %s was not heard of for %g s and counted as dead: the runs it had were ended as errors, and "
            "what still comes of them is kept aside. The process goes on as %s.",
            lost,
            self._seconds,
            self._worker_id,
        )

    def _end_runs_of_the_dead(self, enough: float) -> None:
        if (steady_for := self._steadiness.seconds()) > PATIENCE * self._seconds:
            for worker_id in self._leases.declare_lost(steady_for):
                logger.warning("The worker %s is not heard of any more: its runs are ended as errors.", worker_id)
        while elapsed() < enough and self._leases.end_runs_of_lost(BATCH) == BATCH:
            pass

    def _end_runs_that_are_unknown(self) -> None:
        """End runs of ours that are active by the database, though this process has neither them nor their ends.

        Twice in a row: one that is just on its way from one hand to the other is seen in none.
        """
        worker_id = self._worker_id
        active = self._leases.active_runs(worker_id, older_than=self._seconds, limit=BATCH)
        known = self._known() if active else ()
        unknown = set() if known is None else set(active) - set(known)
        if (doomed := unknown & self._suspects) and (number := self._leases.end_runs(worker_id, doomed)):
            logger.error(
                "%d of this process's runs were active though it knew nothing of them: ended as errors.", number
            )
        self._suspects = unknown

    def _give_back(self) -> None:
        try:
            self._leases.release(self._worker_id)
        except Exception as exc:  # it runs out by itself
            logger.warning("The lease of worker %s could not be given back: %s", self._worker_id, exc)

    def _report(self, exc: Exception | None) -> None:
        """Say once when it begins to fail, and once when that is over."""
        if exc is None and self._is_failing:
            logger.info("The heartbeat of worker %s is well again.", self._worker_id)
        elif exc is not None and not self._is_failing:
            bug = None if isinstance(exc, StoreError) else exc  # of a store of somebody's own, maybe
            logger.warning("The heartbeat of worker %s fails: %s", self._worker_id, exc, exc_info=bug)
        self._is_failing = exc is not None
