"""`Opening`: persistence open on one event loop, and the runs in progress there: started, finished, drained."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import random
import socket
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from skeino.errors import InvalidInputError, StoreError, StoreUnavailableError, ThreadNotFoundError
from skeino.persistence.opening import Persistence, open_persistence
from skeino.persistence.protocol import MetadataStoreProtocol
from skeino.persistence.rows import RunError, RunFinish
from skeino.runs import Run, new_id
from skeino.settings import SkeinoSettings
from skeino.validation import validate_json_object
from skeino_asgi.outcome import Outcome, thread_status_after

logger = logging.getLogger("skeino")

FIRST_RETRY: Final = 0.05
LAST_RETRY: Final = 5.0
"""Seconds between the attempts to write the ends of runs, while the store is unavailable: the first and the longest."""

DRAIN_TIMEOUT: Final = 10.0
"""Seconds that closing waits for the ends of runs to be written."""

GRACE: Final = 1.0
"""Seconds that closing waits for runs that are being cancelled at that very moment."""


class Opening:
    """Persistence open on one event loop, with the runs that are in progress there.

    One task owns the resources: it enters and leaves them, in a context of its own, so that they inherit no
    request's context variables and no cancel scope is left in another task than it was entered in.
    """

    def __init__(self, settings: SkeinoSettings) -> None:
        self.worker_id = f"{socket.gethostname()[:100]}-{os.getpid()}-{new_id()}"
        self.users = 0
        self.closing = False
        self._settings = settings
        self._close = asyncio.Event()
        self._ready: asyncio.Future[Persistence] = asyncio.get_running_loop().create_future()
        self._active: set[str] = set()
        self._idle = asyncio.Event()
        self._ends: dict[str, End] = {}  # those that are not written yet
        self._writes: set[asyncio.Task[None]] = set()
        self._retrying: asyncio.Task[None] | None = None
        self._owner = self._spawn(self._own(), "skeino")

    @property
    def is_open(self) -> bool:
        """Whether runs may start."""
        return self._ready.done() and not self.closing

    @property
    def persistence(self) -> Persistence:
        """Both halves; only once `opened()` has returned."""
        return self._ready.result()

    @property
    def state(self) -> dict[str, Any]:
        """What `request.state` gets, but for the run."""
        persistence = self.persistence
        return {
            "checkpointer": persistence.checkpointer,
            "metadata_store": persistence.metadata_store,
            "persistence": persistence,
        }

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

    async def start(
        self,
        *,
        thread_id: str | None,
        create_thread: bool,
        owner: str | None,
        guarded: bool = False,
        metadata: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Run:
        """Start a run; its row is committed when this returns.

        Raises:
            ThreadNotFoundError, InvalidInputError, StoreUnavailableError: as `start_run`; also while closing.
        """
        if self.closing:
            raise StoreUnavailableError("The server is shutting down: try again.")
        store = self.persistence.metadata_store
        run = Run(thread_id=thread_id, owner=owner, store=store, guarded=guarded, creates_thread=create_thread)
        self._active.add(run.run_id)  # before it is written: closing must know of it
        try:
            await store.start_run(
                run.run_id,
                worker_id=self.worker_id,
                thread_id=thread_id,
                create_thread=create_thread,
                owner=owner,
                metadata=metadata,
                kwargs=kwargs,
                created_at=run.started_at,
            )
        except asyncio.CancelledError:  # its row may be there all the same
            message = "The request was cancelled while its run was being started."
            self.finish(run, Outcome("interrupted", RunError(code="cancelled", type=None, message=message)))
            raise
        except StoreUnavailableError as exc:
            if exc.maybe_done:
                message = "The database did not say whether the run was started; the request was refused."
                self.finish(run, Outcome("error", RunError(code="store_unavailable", type=None, message=message)))
            else:
                self._leave(run)
            raise
        except BaseException:
            self._leave(run)
            raise
        if thread_id is not None and create_thread:
            run.mark_attached(thread_id)
        return run

    def finish(self, run: Run, outcome: Outcome) -> End:
        """End the run. What is to be written is queued before this returns, and then tried until it is written.

        It does not wait, so that a cancelled request, too, leaves its end in the queue.
        """
        run.end(outcome.status)
        end = End(
            RunFinish(
                run_id=run.run_id,
                worker_id=self.worker_id,
                status=outcome.status,
                finished_at=datetime.now(UTC),
                thread_id=run.thread_id,
                thread_status=thread_status_after(run, outcome.status),
                error=outcome.error,
                http_status=outcome.http_status,
                metadata=_storable_metadata(run),
                checkpoint_count=run.ledger.checkpoint_count,
                first_checkpoint_id=run.ledger.first_checkpoint_id,
                last_checkpoint_id=run.ledger.last_checkpoint_id,
                paused=run.ledger.paused_on(run.thread_id),
            ),
            run.thread_to_attach,
            run.owner,
        )
        self._ends[run.run_id] = end
        self._leave(run)
        task = self._spawn(self._write(end), "skeino end of run")
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return end

    def _leave(self, run: Run) -> None:
        self._active.discard(run.run_id)
        if not self._active:
            self._idle.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(coroutine, name=name, context=contextvars.Context())

    async def _own(self) -> None:
        """The owner task: open, wait to be closed (or cancelled with the event loop), drain, close."""
        try:
            async with open_persistence(self._settings) as persistence:
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

    # ── The ends of runs ─────────────────────────────────────────────────────────────────────────────────

    async def _write(self, end: End) -> None:
        if not await self._settle(end) and self._retrying is None:
            self._retrying = self._spawn(self._retry(), "skeino ends of runs")

    async def _retry(self) -> None:
        """Try what is not written yet, again and again, until nothing is left."""
        delay = FIRST_RETRY
        while self._ends:
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, LAST_RETRY)
            for end in list(self._ends.values()):
                if not await self._settle(end):
                    # The store is still away, most likely: no need to ask for each. But the next time others come
                    # first, so that one that is refused for ever holds up nobody.
                    self._ends[end.finish["run_id"]] = self._ends.pop(end.finish["run_id"])
                    break
        self._retrying = None

    async def _settle(self, end: End) -> bool:
        """Write one end; False if that is worth another attempt."""
        store = self.persistence.metadata_store
        run_id = end.finish["run_id"]
        try:
            if end.thread_to_attach is not None:
                try:
                    await store.attach_thread(run_id, end.thread_to_attach, owner=end.owner)
                except (ThreadNotFoundError, InvalidInputError):
                    logger.warning("Run %s chose a thread of another owner: it ends without it.", run_id)
                end.thread_to_attach = None
            if not await store.finish_run(end.finish):
                logger.info("The end of run %s changed nothing: its row had ended already, or is gone.", run_id)
        except InvalidInputError as exc:
            if end.reduced:
                logger.error("The end of run %s cannot be written: %s", run_id, exc)
                self._forget(end)
                return True
            logger.error("The end of run %s is written without its details: %s", run_id, exc)
            end.reduce()
            return await self._settle(end)
        except StoreError as exc:
            logger.warning("The end of run %s is not written yet: %s", run_id, exc)
            return False
        except Exception:  # a bug in a store of somebody's own must not lose the others' ends
            logger.exception("The end of run %s is not written yet.", run_id)
            return False
        self._forget(end)
        return True

    def _forget(self, end: End) -> None:
        self._ends.pop(end.finish["run_id"], None)
        end.written.set()

    async def _drain(self, store: MetadataStoreProtocol) -> None:
        """Write what is due; then end the runs that are still active as interrupted."""
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT):
                if self._active:  # cancelled in this very tick, perhaps: let them say how they ended
                    self._idle.clear()
                    waiting = asyncio.ensure_future(self._idle.wait())
                    await asyncio.wait([waiting], timeout=GRACE)
                    waiting.cancel()
                if self._retrying is not None:
                    self._retrying.cancel()
                while self._writes:
                    await asyncio.wait(list(self._writes))
                for end in list(self._ends.values()):  # its task was cancelled, or the store was away
                    await self._settle(end)
                error = RunError(code="shutdown", type=None, message="The server stopped before the run ended.")
                if number := await store.interrupt_runs(self.worker_id, error):
                    logger.warning("%d runs were active at shutdown and ended as interrupted.", number)
        except (TimeoutError, StoreError) as exc:
            logger.error("Not all runs could be ended at shutdown, %d ends are due: %s", len(self._ends), exc)


class End:
    """How a run ended, on its way to the store."""

    __slots__ = ("finish", "owner", "reduced", "thread_to_attach", "written")

    def __init__(self, finish: RunFinish, thread_to_attach: str | None, owner: str | None) -> None:
        self.finish = finish
        self.thread_to_attach = thread_to_attach
        self.owner = owner
        self.reduced = False
        self.written = asyncio.Event()

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


def _storable_metadata(run: Run) -> dict[str, Any]:
    try:
        return validate_json_object(run.metadata, "run.metadata")
    except Exception as exc:  # the handler's own dictionary: another thread may be changing it
        logger.warning("The metadata added to run %s is left out: %s", run.run_id, exc)
        return {}
