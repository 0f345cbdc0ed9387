"""`Opening`: persistence open on one event loop, and the runs in progress there: started, finished, drained."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from skeino.errors import InvalidInputError, StoreError, StoreUnavailableError
from skeino.persistence.opening import Persistence, open_persistence
from skeino.persistence.protocol import MetadataStoreProtocol
from skeino.persistence.rows import RunError, RunFinish
from skeino.runs import Run, new_id
from skeino.settings import SkeinoSettings
from skeino.validation import validate_json_object
from skeino_asgi.outcome import Outcome, thread_status_after

logger = logging.getLogger("skeino")

FINISH_DELAYS: Final = (0.05, 0.2, 1.0, 3.0)
"""Seconds between the attempts to write a run's end while the store is unavailable."""

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
        self._due: dict[str, RunFinish] = {}
        self._writes: set[asyncio.Task[None]] = set()
        self._owner = asyncio.get_running_loop().create_task(self._own(), name="skeino", context=contextvars.Context())

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
            _ = self.finish(run, Outcome("interrupted", RunError(code="cancelled", type=None, message=message)))
            raise
        if thread_id is not None and create_thread:
            run.mark_attached(thread_id)
        self._active.add(run.run_id)
        return run

    def finish(self, run: Run, outcome: Outcome) -> asyncio.Task[None]:
        """End the run. What is to be written is queued before this returns; the task writes it.

        It does not wait, so that a cancelled request, too, leaves its end in the queue.
        """
        run.status = outcome.status
        self._active.discard(run.run_id)
        if not self._active:
            self._idle.set()
        self._due[run.run_id] = finish = RunFinish(
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
            paused=run.ledger.paused,
        )
        task = asyncio.get_running_loop().create_task(
            self._write(finish, run.thread_to_attach, run.owner), context=contextvars.Context()
        )
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return task

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

    async def _write(self, finish: RunFinish, thread_to_attach: str | None, owner: str | None) -> None:
        store = self.persistence.metadata_store
        run_id = finish["run_id"]
        for delay in (*FINISH_DELAYS, None):
            try:
                if thread_to_attach is not None:
                    await store.attach_thread(run_id, thread_to_attach, owner=owner)
                if not await store.finish_run(finish):
                    logger.info("The end of run %s changed nothing: its row had ended already, or is gone.", run_id)
            except StoreUnavailableError:
                if delay is None:
                    logger.warning("The end of run %s (%s) could not yet be written.", run_id, finish["status"])
                    return  # it stays due: closing tries once more
                await asyncio.sleep(delay)
            except (StoreError, InvalidInputError) as exc:
                if thread_to_attach is None:
                    logger.error("The end of run %s could not be written: %s", run_id, exc)  # no driver's text
                    break
                thread_to_attach = None  # another owner's thread, say: the run ends all the same
            except Exception:  # a store's bug must not lose a run's end in silence
                logger.exception("The end of run %s could not be written.", run_id)
                return
            else:
                break
        self._due.pop(run_id, None)

    async def _drain(self, store: MetadataStoreProtocol) -> None:
        """Write what is due; then end the runs that are still active as interrupted."""
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT):
                if self._active:  # cancelled in this very tick, perhaps: let them say how they ended
                    self._idle.clear()
                    waiting = asyncio.ensure_future(self._idle.wait())
                    await asyncio.wait([waiting], timeout=GRACE)
                    waiting.cancel()
                while self._writes:
                    await asyncio.wait(list(self._writes))
                for finish in list(self._due.values()):  # its task was cancelled, or the store was away
                    await store.finish_run(finish)
                    self._due.pop(finish["run_id"], None)
                if self._active:
                    error = RunError(code="shutdown", type=None, message="The server stopped before the run ended.")
                    number = await store.interrupt_runs(self.worker_id, error)
                    logger.warning("%d runs were active at shutdown and ended as interrupted.", number)
        except (TimeoutError, StoreError) as exc:
            logger.error("Not all ends of runs could be written at shutdown, %d are due: %s", len(self._due), exc)


def _storable_metadata(run: Run) -> dict[str, Any]:
    try:
        return validate_json_object(run.metadata, "run.metadata")
    except InvalidInputError as exc:
        logger.warning("The metadata added to run %s is left out: %s", run.run_id, exc)
        return {}
