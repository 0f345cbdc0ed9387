"""`RunTracker`: persistence opened once per process, runs started and finished, all of it drained and closed once."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final
from weakref import WeakKeyDictionary

from langgraph.checkpoint.base import BaseCheckpointSaver

from skeino.errors import InvalidInputError, StoreError, StoreUnavailableError
from skeino.persistence.opening import Persistence, open_persistence
from skeino.persistence.protocol import MetadataStoreProtocol
from skeino.persistence.rows import RunError, RunFinish
from skeino.runs import Run, current_run_var, new_id
from skeino.settings import SkeinoSettings
from skeino.validation import validate_json_object
from skeino_asgi.outcome import Outcome, outcome_of_exception, thread_status_after

logger = logging.getLogger("skeino")

FINISH_DELAYS: Final = (0.05, 0.2, 1.0, 3.0)
"""Seconds between the attempts to write a run's end while the store is unavailable."""

DRAIN_TIMEOUT: Final = 10.0
"""Seconds that closing waits for the ends of runs to be written."""

GRACE: Final = 1.0
"""Seconds that closing waits for runs that are being cancelled at that very moment."""


class RunTracker:
    """Opens persistence once per process (and event loop), and starts and finishes runs in it.

    Args:
        settings: default `SkeinoSettings()`, which reads `SKEINO_*` environment variables.

    Raises:
        ConfigurationError: the settings cannot be built.
    """

    def __init__(self, settings: SkeinoSettings | None = None) -> None:
        self.settings = settings if settings is not None else SkeinoSettings()
        self._openings: WeakKeyDictionary[asyncio.AbstractEventLoop, Opening] = WeakKeyDictionary()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[dict[str, Any]]:
        """Keep persistence open inside; yields the state mapping for `request.state`.

        It is a Starlette lifespan, and works by hand: `async with tracker.lifespan() as state`. Entered more
        than once on one event loop, it opens once and closes with the last.

        Raises:
            ConfigurationError, StoreUnavailableError, SchemaError: as `open_persistence`.
        """
        opening = await self.acquire()
        try:
            yield opening.state
        finally:
            await self.release(opening)

    @property
    def persistence(self) -> Persistence:
        """Both halves, open. Raises `StoreUnavailableError` outside the lifespan."""
        return self.opening().persistence

    @property
    def checkpointer(self) -> BaseCheckpointSaver[Any]:
        """The stamped checkpointer, to compile graphs with. Raises `StoreUnavailableError` outside the lifespan."""
        return self.opening().persistence.checkpointer

    @property
    def metadata_store(self) -> MetadataStoreProtocol:
        """Thread and run rows. Raises `StoreUnavailableError` outside the lifespan."""
        return self.opening().persistence.metadata_store

    def run(
        self,
        *,
        thread_id: str | None = None,
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> TrackedRun:
        """A run that is no request, a queue worker's job say: `async with tracker.run(thread_id=...) as run`.

        Its start is durable before the block begins, its end before the block is left. An exception makes it
        `error`, a cancellation `interrupted`; both are raised again.

        Raises:
            ThreadNotFoundError: the thread belongs to another owner.
            InvalidInputError: an id or a JSON value is not storable.
            StoreUnavailableError: outside the lifespan, or the database does not answer.
        """
        return TrackedRun(self.opening(), thread_id, owner, metadata, kwargs)

    def opening(self) -> Opening:
        """What is open on this event loop.

        Raises:
            StoreUnavailableError: nothing is.
        """
        opening = self._openings.get(asyncio.get_running_loop())
        if opening is None or not opening.is_open:
            raise StoreUnavailableError(
                "skeino is not open: enter tracker.lifespan first (lifespan=tracker.lifespan, or RunMiddleware around "
                "the application)."
            )
        return opening

    async def opened(self) -> Opening:
        """What is open on this event loop; under a server without lifespan, the first request opens it.

        Then the end of the event loop closes it: `asyncio.run` cancels the task that owns it.

        Raises:
            StoreUnavailableError: it is closing, or the database cannot be reached.
        """
        opening = self._openings.get(asyncio.get_running_loop())
        if opening is None:
            return await self.acquire()
        if opening.closing:
            raise StoreUnavailableError("The server is shutting down: try again.")
        await opening.opened()
        return opening

    async def acquire(self) -> Opening:
        """Open on this event loop, or share what is open; to be paired with `release`."""
        loop = asyncio.get_running_loop()
        opening = self._openings.get(loop)
        if opening is None or opening.closing:
            opening = self._openings[loop] = Opening(self.settings)
        opening.users += 1
        try:
            await opening.opened()
        except BaseException:
            opening.users -= 1
            if self._openings.get(loop) is opening and opening.users == 0:
                del self._openings[loop]
            raise
        return opening

    async def release(self, opening: Opening) -> None:
        """The last one to release closes, in the task that opened."""
        opening.users -= 1
        if opening.users == 0:
            try:
                await opening.close()
            finally:
                loop = asyncio.get_running_loop()
                if self._openings.get(loop) is opening:
                    del self._openings[loop]


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

    async def close(self) -> None:
        """Stop taking runs, write the ends of runs, end the rest as interrupted, close in reverse order."""
        self.closing = True
        self._close.set()
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
                    logger.warning("The end of run %s came too late: its row had ended or was gone.", run_id)
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


class TrackedRun:
    """The async context manager that `RunTracker.run` returns."""

    def __init__(
        self,
        opening: Opening,
        thread_id: str | None,
        owner: str | None,
        metadata: Mapping[str, Any] | None,
        kwargs: Mapping[str, Any] | None,
    ) -> None:
        self._opening = opening
        self._arguments = {"thread_id": thread_id, "owner": owner, "metadata": metadata, "kwargs": kwargs}
        self._run: Run | None = None
        self._outer: Run | None = None

    async def __aenter__(self) -> Run:
        self._run = await self._opening.start(create_thread=True, **self._arguments)  # type: ignore[arg-type]
        self._outer = current_run_var.get()
        current_run_var.set(self._run)
        return self._run

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._run is not None
        current_run_var.set(self._outer)
        outcome = Outcome("success") if exc is None else Outcome(*outcome_of_exception(exc, "in the run"))
        await asyncio.wait([self._opening.finish(self._run, outcome)])


def _storable_metadata(run: Run) -> dict[str, Any]:
    try:
        return validate_json_object(run.metadata, "run.metadata")
    except InvalidInputError as exc:
        logger.warning("The metadata added to run %s is left out: %s", run.run_id, exc)
        return {}
