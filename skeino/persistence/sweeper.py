"""`Sweeper`: a task that sweeps from time to time, while it is this process's turn."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Final

from skeino.errors import StoreError
from skeino.persistence.cancellation import to_its_end
from skeino.persistence.sweeping import SWEEP_SECONDS, Sweep, SweepableStore, SweepReport, Sweeps

if TYPE_CHECKING:
    from skeino.persistence.opening import Persistence

logger = logging.getLogger("skeino")

FIRST_WAIT: Final = 60.0
"""Seconds that the first sweep is put off, at the most: processes that start together do not ask together."""

RETRY: Final = 60.0
"""Seconds until the next attempt after a failure, at the most."""

PATIENCE: Final = 5.0
"""Seconds that closing waits for the step that is under way."""


class Sweeper:
    """Sweeps while the context is entered, in a task of its own.

    Args:
        persistence: both halves.
        worker_id: names the process.
        interval: seconds from one sweep to the next, whichever process does it.
        run_retention: how long finished runs are kept; None is for ever.
    """

    def __init__(
        self, persistence: Persistence, worker_id: str, *, interval: float, run_retention: timedelta | None
    ) -> None:
        self._persistence = persistence
        self._worker_id = worker_id
        self._interval = interval
        self._run_retention = run_retention
        self._stopping = asyncio.Event()
        self._is_failing = False
        self._said_unprunable = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Sweeper:
        if not isinstance(self._persistence.metadata_store, SweepableStore):
            logger.warning("This metadata store cannot be swept: threads and runs stay, whatever their age.")
        else:
            sweeping = self._sweep_until_stopped(self._persistence.metadata_store.sweeps())
            self._task = asyncio.create_task(sweeping, name="skeino sweeper", context=contextvars.Context())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let it finish what it is at, a thread say."""
        self._stopping.set()
        if self._task is not None:
            await to_its_end(self._ended(self._task))

    async def _ended(self, task: asyncio.Task[None]) -> None:
        await asyncio.wait([task], timeout=PATIENCE)
        task.cancel()
        await asyncio.wait([task])

    async def _sweep_until_stopped(self, sweeps: Sweeps) -> None:
        wait = random.uniform(0.0, min(self._interval, FIRST_WAIT))
        while not await self._stops_within(wait):
            try:
                wait = await sweeps.begin(self._worker_id, seconds=SWEEP_SECONDS, interval=self._interval)
                if wait == 0.0:
                    sweep = Sweep(
                        sweeps,
                        self._persistence.checkpointer,
                        self._worker_id,
                        self._run_retention,
                        must_stop=self._stopping.is_set,
                    )
                    self._tell(await sweep.run())
                    wait = self._interval
                wait = min(wait, self._interval) * random.uniform(1.0, 1.1)
            except Exception as exc:
                wait = min(self._interval, RETRY) * random.uniform(0.5, 1.0)
                self._tell_of_failure(exc)
            else:
                self._tell_of_failure(None)

    async def _stops_within(self, seconds: float) -> bool:
        stopping = asyncio.ensure_future(self._stopping.wait())
        done, _ = await asyncio.wait([stopping], timeout=seconds)
        stopping.cancel()
        return bool(done)

    def _tell(self, report: SweepReport) -> None:
        if report.did_something:
            logger.info(
                "Swept: %d threads deleted, %d pruned, %d finished runs deleted.",
                report.deleted_threads,
                report.pruned_threads,
                report.deleted_runs,
            )
        if report.cannot_prune and not self._said_unprunable:
            self._said_unprunable = True
            logger.warning("This checkpointer cannot prune: threads with a ttl of 'keep_latest' stay as they are.")
        if report.unprunable_threads and not self._said_unprunable:
            self._said_unprunable = True
            logger.warning(
                "Threads have delta channels, which are rebuilt from older checkpoints, and a ttl of 'keep_latest': "
                "they stay as they are, %d in this sweep.",
                report.unprunable_threads,
            )

    def _tell_of_failure(self, exc: Exception | None) -> None:
        """Say once when it begins to fail, and once when that is over."""
        if exc is None and self._is_failing:
            logger.info("Sweeping works again.")
        elif exc is not None and not self._is_failing:
            bug = None if isinstance(exc, StoreError) else exc  # of a store of somebody's own, maybe
            logger.warning("Sweeping fails, and is tried again: %s", exc, exc_info=bug)
        self._is_failing = exc is not None
