"""`Opening`: persistence open on one event loop, and the runs in progress there: started, finished, drained."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from skeino.errors import InvalidInputError, RunInterruptedError, StoreError, StoreUnavailableError
from skeino.persistence.access import allow_write, check_owner
from skeino.persistence.claims import ClaimingStore, ThreadClaims, delete_checkpoints_of
from skeino.persistence.heartbeat import Heartbeat
from skeino.persistence.leases import LeasingStore
from skeino.persistence.memory import InMemoryMetadataStore
from skeino.persistence.opening import Persistence, open_persistence
from skeino.persistence.protocol import MetadataStoreProtocol
from skeino.persistence.rows import RunError, RunFinish
from skeino.persistence.sweeper import Sweeper
from skeino.runs import Description, Run, new_id
from skeino.scrubbing import scrubbed
from skeino.settings import SkeinoSettings
from skeino.validation import validate_json_object
from skeino_asgi.ends import End, Ends
from skeino_asgi.outcome import (
    Outcome,
    failed,
    interrupted,
    is_http_error,
    is_well,
    raised,
    reported,
    stopped,
    thread_status_after,
)
from skeino_asgi.row import write_row
from skeino_asgi.tasks import spawn

logger = logging.getLogger("skeino")

DRAIN_TIMEOUT: Final = 10.0
"""Seconds that closing waits for the ends of runs to be written."""

STOPPED: Final = "The server stopped before the run ended."

GRACE: Final = 1.0
"""Seconds that closing waits for runs that are being cancelled at that very moment."""


class Opening:
    """Persistence open on one event loop, with the runs that are in progress there.

    One task owns the resources: it enters and leaves them, in a context of its own, so that they inherit no
    request's context variables and no cancel scope is left in another task than it was entered in.
    """

    def __init__(self, settings: SkeinoSettings, when_closed: Callable[[Opening], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.process_id = os.getpid()
        self._heartbeat: Heartbeat | None = None
        self._worker_id = new_worker_id()
        self.users = 0
        self.closing = False
        self._settings = settings
        self._when_closed = when_closed
        self.state: dict[str, Any] = {}
        """What `request.state` gets, but for the run; empty until it is open."""
        self._strategy = settings.multitask_strategy
        self._claims: ThreadClaims | None = None
        self._close = asyncio.Event()
        self._ready: asyncio.Future[Persistence] = self.loop.create_future()
        self._active: set[Run] = set()
        self._said_unsaved = False
        self._rows_being_written: dict[str, asyncio.Task[None]] = {}
        self._idle: asyncio.Event | None = None  # for closing, which waits until no run is active
        self._store: MetadataStoreProtocol
        self._ends: Ends  # both are there once it is open
        self._owner = spawn(self._own(), "skeino")

    @property
    def worker_id(self) -> str:
        """What runs that start now name as their worker; another one after a lease was lost."""
        return self._worker_id if self._heartbeat is None else self._heartbeat.worker_id

    @property
    def is_open(self) -> bool:
        """Whether runs may start."""
        return bool(self.state) and not self.closing

    @property
    def persistence(self) -> Persistence:
        """Both halves; only once `opened()` has returned."""
        return self._ready.result()

    async def opened(self) -> None:
        """Wait until both halves are open; raises what opening raised."""
        if not self._ready.done():
            await asyncio.shield(self._ready)
        self._ready.result()

    def abandon(self) -> None:
        """Close as soon as it is open; for a caller that cannot wait for either."""
        self.closing = True
        self._close.set()

    async def close(self) -> None:
        """Stop taking runs, write the ends of runs, end the rest as interrupted, close in reverse order."""
        self.abandon()
        await asyncio.wait([self._owner])  # a cancelled caller does not cancel the closing
        if not self._owner.cancelled() and (exc := self._owner.exception()) is not None:
            raise exc

    def begin(
        self,
        thread_id: str | None,
        owner: str | None,
        guarded: bool,
        creates_thread: bool,
        request_id: str | None,
        traceparent: str | None,
        describe: Description,
    ) -> Run:
        """Begin a run. Its row is written by `write_row()`, or else when a saver first reads or writes for it, or at
        its end, if it was used.

        Args:
            thread_id: the thread it belongs to, if one is known.
            owner: whose run it is.
            guarded: threads have owners here, so that each is checked before it is read.
            creates_thread: a thread that does not exist is made; False for a request that only reads.
            request_id: what the request's sender calls it.
            traceparent: the W3C trace context it is part of.
            describe: says with which `metadata` and `kwargs` the row begins; asked when it is written.

        Raises:
            StoreUnavailableError: while closing, and while too many ends of runs wait for the store.
            InvalidInputError: an id is not storable.
        """
        if self.closing:
            raise _shutting_down()
        self._ends.refuse_if_full()
        # By position, in the order above, as the middleware calls this: by name both take 0.3 µs more, of the 6 that a
        # request costs here.
        run = Run(
            thread_id,
            owner,
            guarded,
            creates_thread,
            request_id,
            traceparent,
            self._store,
            self.loop,
            self._write_row_on_use,
            describe,
            self._claims,
        )
        if self._strategy != "enqueue":
            run.multitask_strategy = self._strategy
        self._active.add(run)  # before it is written: closing must know of it
        return run

    async def write_row(self, run: Run) -> None:
        """Write the row of a run that has begun; it is committed when this returns. Where it raises, there is no run.

        Raises:
            ThreadNotFoundError, InvalidInputError, StoreUnavailableError: as `start_run`; also while closing.
        """
        try:
            self._refuse_if_forgotten()
            await write_row(run, self._store, self.worker_id)
        except asyncio.CancelledError:
            run.write_row = None  # it may be there all the same
            self.finish(run, interrupted("cancelled", "The request was cancelled while its run was being started."))
            raise
        except StoreUnavailableError as exc:
            if exc.maybe_done:
                run.write_row = None
                message = "The database did not say whether the run was started; the request was refused."
                self.finish(run, failed("store_unavailable", message))
            else:
                self._leave(run)
            raise
        except BaseException:
            self._leave(run)
            raise

    async def admit(self, run: Run) -> None:
        """Let a run begin whose row is written later, unless its thread is another owner's: then there is no run.

        Raises:
            ThreadNotFoundError, StoreUnavailableError: as `check_owner`.
        """
        try:
            if run.thread_id is not None:
                await check_owner(run, run.thread_id)
        except BaseException:
            self._leave(run)
            raise

    async def claim(self, run: Run, thread_id: str) -> None:
        """Let the run hold its thread before anything of it begins; where that fails, it has ended.

        Raises:
            ThreadBusyError, RunInterruptedError, ThreadNotFoundError, StoreUnavailableError: as `allow_write`.
        """
        try:
            await allow_write(run, thread_id)
        except BaseException as exc:
            if run.write_row is not None and isinstance(exc, StoreError) and not getattr(exc, "maybe_done", False):
                self._leave(run)  # its row was refused: there is no run
            else:
                outcome = raised(exc, "before the handler") if run.conflict is None else stopped(run.conflict, 409)
                self.finish(run, outcome)
            raise

    def finish(self, run: Run, outcome: Outcome) -> End | None:
        """End the run. What is to be written is queued before this returns, and then tried until it is written.

        It does not wait, so that a cancelled request, too, leaves its end in the queue. None for a run without a row
        that nobody used: it leaves no trace.
        """
        if self.closing and not run.active and run.outcome is None:
            return None  # closing has ended it already
        if run.write_row is not None and not run.used:
            run.outcome = outcome  # a task that outlives the request may use it yet
            run.end(outcome.status)
            self._leave(run)
            return None
        if run.failure is not None and (outcome.status == "success" or is_http_error(outcome)):
            outcome = reported(run.failure, outcome.http_status)
        run.end(outcome.status)
        self._leave(run)
        if run.has_claimed:
            run.release_threads()
        elif run.seems_unsaved and not self._said_unsaved and is_well(outcome):
            self._said_unsaved = True
            logger.warning(
                "Run %s gave its config away, and ended before any graph with skeino's checkpointer used it. If the "
                "graph was compiled with another one, take request.state.checkpointer or tracker.checkpointer; else "
                "all is well, and this is said once.",
                run.run_id,
            )
        ledger = run.ledger
        ledger.close()
        finish: RunFinish = {
            "run_id": run.run_id,
            "worker_id": run.worker_id or self.worker_id,
            "status": outcome.status,
            "finished_at": datetime.now(UTC),
            "thread_id": run.thread_id,
            "thread_status": thread_status_after(run, outcome.status),
            "error": outcome.error,
            "http_status": outcome.http_status,
            "metadata": _storable_metadata(run),
            "checkpoint_count": ledger.checkpoint_count,
            "first_checkpoint_id": ledger.first_checkpoint_id,
            "last_checkpoint_id": ledger.last_checkpoint_id,
            "paused": ledger.paused_on(run.thread_id),
        }
        without_row = None if run.write_row is None else run
        end = End(finish, thread_to_attach=run.thread_to_attach, owner=run.owner, without_row=without_row)
        self._ends.add(end)
        return end

    async def _write_row_on_use(self, run: Run) -> None:
        """Write the row once, however many ask for it, and whoever of them is cancelled; `Run.write_row` calls this.

        Raises:
            ThreadNotFoundError, InvalidInputError, StoreUnavailableError: as `start_run`, and while closing; the next
                to ask tries again.
        """
        task = self._rows_being_written.get(run.run_id)
        if task is None:
            if self.closing:
                raise _shutting_down()
            task = self._rows_being_written[run.run_id] = spawn(self._write_row_late(run), "skeino start of run")
        await asyncio.shield(task)

    async def _write_row_late(self, run: Run) -> None:
        try:
            self._refuse_if_forgotten()
            await write_row(run, self._store, self.worker_id)
        finally:
            del self._rows_being_written[run.run_id]
        if run.outcome is not None:
            self.finish(run, run.outcome)

    async def settled(self) -> None:
        """Wait until the ends of runs that are queued are written, or refused for now."""
        await self._ends.settled()

    def _leave(self, run: Run) -> None:
        self._active.discard(run)
        if self._idle is not None and not self._active:
            self._idle.set()

    async def _own(self) -> None:
        """The owner task: open, wait to be closed (or cancelled with the event loop), drain, close."""
        try:
            async with (
                open_persistence(self._settings) as persistence,
                self._leased(persistence.metadata_store) as self._heartbeat,
                self._sweeping(persistence),
            ):
                self._store = persistence.metadata_store
                self._ends = Ends(self._store)
                self._claims = self._claims_in(persistence)
                self.state = {
                    "checkpointer": persistence.checkpointer,
                    "metadata_store": persistence.metadata_store,
                    "persistence": persistence,
                }
                self._ready.set_result(persistence)
                try:
                    await self._close.wait()
                finally:
                    self.closing = True
                    await self._drain(persistence.metadata_store)
        except BaseException as exc:
            if self._ready.done():
                raise
            self._ready.set_exception(exc)
            self._ready.exception()  # retrieved, in case nobody waits any more
        finally:
            self._when_closed(self)

    def _refuse_if_forgotten(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.refuse_if_forgotten()

    def _leased(self, store: MetadataStoreProtocol) -> AbstractAsyncContextManager[Heartbeat | None]:
        """Hold a lease within, if the store has them: where it has not, nobody ends the runs of a process that dies."""
        seconds = self._settings.lease_seconds
        if seconds and isinstance(store, LeasingStore):
            return Heartbeat(store, seconds, new_worker_id, self._known_runs, self._lost)
        if seconds and not isinstance(store, InMemoryMetadataStore):  # whose rows die with the process
            logger.warning("This metadata store keeps no leases: the runs of a process that dies will stay active.")
        return nullcontext()

    def _claims_in(self, persistence: Persistence) -> ThreadClaims | None:
        """What claims threads, if the store knows who writes to them."""
        store, settings = persistence.metadata_store, self._settings
        if not isinstance(store, ClaimingStore):
            return None
        roll_back = partial(delete_checkpoints_of, persistence.checkpointer)
        return ThreadClaims(store, roll_back, patience=settings.thread_wait_seconds, limit=settings.thread_queue_limit)

    def _lost(self, worker_id: str) -> None:
        """The runs of a lease that was lost have been ended; the heartbeat's thread says so."""
        with suppress(RuntimeError):  # the event loop is closed
            self.loop.call_soon_threadsafe(self._stop_runs_of, worker_id)

    def _stop_runs_of(self, worker_id: str) -> None:
        for run in [run for run in self._active if run.worker_id == worker_id]:
            run.lose(
                RunInterruptedError(
                    f"The process was not heard of for so long that the run {run.run_id} counts as dead: what it still "
                    "does is refused."
                )
            )

    def _sweeping(self, persistence: Persistence) -> AbstractAsyncContextManager[Sweeper | None]:
        """Sweep within, if somebody has asked for it."""
        interval = self._settings.sweep_interval
        if interval is None:
            return nullcontext()
        return Sweeper(persistence, self.worker_id, interval=interval, run_retention=self._settings.run_retention)

    def _known_runs(self) -> set[str] | None:
        """The runs that have no end in the store yet, but will; None once the event loop is closed.

        The heartbeat's thread asks. A copy of a set or a dictionary's keys is made at once, whoever changes it.
        """
        if self.loop.is_closed():
            return None
        active = {run.run_id for run in list(self._active)}
        return active.union(list(self._rows_being_written), self._ends.due() if self._ready.done() else ())

    async def _drain(self, store: MetadataStoreProtocol) -> None:
        """Write what is due; then end the runs that are still active as interrupted."""
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT):
                if self._active:  # cancelled in this very tick, perhaps: let them say how they ended
                    self._idle = asyncio.Event()
                    waiting = asyncio.ensure_future(self._idle.wait())
                    await asyncio.wait([waiting], timeout=GRACE)
                    waiting.cancel()
                for run in [run for run in self._active if run.write_row is not None and run.used]:
                    self.finish(run, interrupted("shutdown", STOPPED))
                while self._rows_being_written:
                    await asyncio.wait(list(self._rows_being_written.values()))
                await self._ends.drain()
                if self._claims is not None:
                    await self._claims.settled()
                error = RunError(code="shutdown", type=None, message=STOPPED)
                if number := await store.interrupt_runs(self.worker_id, error):
                    logger.warning("%d runs were active at shutdown and ended as interrupted.", number)
        except (TimeoutError, StoreError) as exc:
            logger.error("Not all runs could be ended at shutdown, %d ends are due: %s", len(self._ends), exc)
        finally:
            self._ends.close()


def new_worker_id() -> str:
    """For people it begins with the machine and the process."""
    return f"{socket.gethostname()[:100]}-{os.getpid()}-{new_id()}"


def _shutting_down() -> StoreUnavailableError:
    return StoreUnavailableError("The server is shutting down: try again.")


def _reason(exc: Exception) -> str:
    if isinstance(exc, InvalidInputError):
        return scrubbed(str(exc))
    return f"{type(exc).__name__} when it was read."  # its text is the application's own


def _storable_metadata(run: Run) -> dict[str, Any]:
    try:
        return validate_json_object(run.metadata, "run.metadata")
    except Exception as exc:  # the handler's own dictionary: another thread may be changing it
        logger.warning("The metadata added to run %s is left out: %s", run.run_id, _reason(exc))
        return {}
