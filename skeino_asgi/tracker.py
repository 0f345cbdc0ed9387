"""`RunTracker`: persistence opened once per process and event loop; runs that are requests, and runs that are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Final

from langgraph.checkpoint.base import BaseCheckpointSaver

from skeino.errors import ConfigurationError, StoreUnavailableError
from skeino.holds import MultitaskStrategy, checked_strategy
from skeino.persistence.opening import Persistence
from skeino.persistence.protocol import MetadataStoreProtocol
from skeino.persistence.registry import forgets_rows, normalised_scheme
from skeino.runs import Run, current_run_var, guard_var
from skeino.settings import SkeinoSettings
from skeino_asgi.opening import Opening
from skeino_asgi.openings import Openings
from skeino_asgi.outcome import Outcome, is_stopped, raised, stopped, succeeded

FINISH_PATIENCE: Final = 10.0
"""Seconds that the end of a `tracker.run()` block waits for its end to be written."""


class RunTracker:
    """Opens persistence once per process (and event loop), and starts and finishes runs in it.

    Args:
        settings: default `SkeinoSettings()`, which reads `SKEINO_*` environment variables.

    Raises:
        ConfigurationError: the settings cannot be built, or are none.
    """

    def __init__(self, settings: SkeinoSettings | None = None) -> None:
        given: object = settings
        if given is not None and not isinstance(given, SkeinoSettings):
            raise ConfigurationError(
                f"settings must be SkeinoSettings, not {type(given).__name__}: SkeinoSettings(checkpointer_scheme=…)."
            )
        self.settings = settings if settings is not None else SkeinoSettings()
        self.openings = Openings(self.settings)
        """For the middleware: what is open, on which event loop."""

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[dict[str, Any]]:
        """Keep persistence open inside; yields the state mapping for `request.state`.

        It is a Starlette lifespan, and works by hand: `async with tracker.lifespan() as state`. Entered more
        than once on one event loop, it opens once and closes with the last.

        Raises:
            ConfigurationError, StoreUnavailableError, SchemaError: as `open_persistence`.
        """
        opening = await self.openings.acquire()
        try:
            yield dict(opening.state)
        finally:
            await self.openings.release(opening)

    @property
    def persistence(self) -> Persistence:
        """Both halves, open. Raises `StoreUnavailableError` outside the lifespan."""
        return self.openings.here().persistence

    @property
    def checkpointer(self) -> BaseCheckpointSaver[Any]:
        """The stamped checkpointer, to compile graphs with. Raises `StoreUnavailableError` outside the lifespan."""
        return self.openings.here().persistence.checkpointer

    @property
    def metadata_store(self) -> MetadataStoreProtocol:
        """Thread and run rows. Raises `StoreUnavailableError` outside the lifespan."""
        return self.openings.here().persistence.metadata_store

    def run(
        self,
        *,
        thread_id: str | None = None,
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        multitask_strategy: MultitaskStrategy | None = None,
    ) -> TrackedRun:
        """A run that is no request, a queue worker's job say: `async with tracker.run(thread_id=...) as run`.

        Its start is durable before the block begins, its end before the block is left. An exception makes it
        `error`, a cancellation `interrupted`; both are raised again. Within a request of an owner it is that
        owner's, unless it names another; and what that request's run holds it may write to, too.

        Raises:
            ConfigurationError: `owner`, where threads and runs are in memory only beside durable state.
            ThreadNotFoundError: the thread belongs to another owner.
            InvalidInputError: an id or a JSON value is not storable, or there is no such `multitask_strategy`.
            StoreUnavailableError: outside the lifespan, or the database does not answer; at the end of the block,
                the end of the run could not be written in time.
        """
        if owner is not None:
            refuse_owners_that_are_forgotten(self.settings)
        if multitask_strategy is not None:
            checked_strategy(multitask_strategy)  # before anything begins
        return TrackedRun(self.openings.here(), thread_id, owner, metadata, kwargs, multitask_strategy)

    async def settled(self) -> None:
        """Wait until the ends of all runs that have ended are written, or refused for now; for tests.

        A response does not wait for the end of its run to be written.

        Raises:
            StoreUnavailableError: outside the lifespan.
        """
        await self.openings.here().settled()


def refuse_owners_that_are_forgotten(settings: SkeinoSettings) -> None:
    """Whose a thread is stands in its row. Where state outlives the rows, the next to name a thread would own it.

    Raises:
        ConfigurationError: the settings have durable state beside rows in memory.
    """
    if settings.allow_ephemeral_metadata and forgets_rows(normalised_scheme(settings.checkpointer_scheme)):
        raise ConfigurationError(
            "owner= needs a durable list of threads, which allow_ephemeral_metadata=True does without: after a restart "
            "nobody would know whose a thread is. Choose a scheme with a metadata store, and leave that setting out."
        )


class TrackedRun:
    """The async context manager that `RunTracker.run` returns."""

    def __init__(
        self,
        opening: Opening,
        thread_id: str | None,
        owner: str | None,
        metadata: Mapping[str, Any] | None,
        kwargs: Mapping[str, Any] | None,
        multitask_strategy: MultitaskStrategy | None,
    ) -> None:
        self._opening = opening
        self._thread_id = thread_id
        self._owner = owner
        self._metadata = metadata or {}
        self._kwargs = kwargs
        self._multitask_strategy = multitask_strategy
        self._run: Run | None = None
        self._outer: Run | None = None

    async def __aenter__(self) -> Run:
        outer = self._outer = current_run_var.get()
        guard = outer or guard_var.get()
        inherits = self._owner is None and guard is not None and guard.guarded
        run = self._opening.begin(
            self._thread_id,
            owner=guard.owner if inherits and guard is not None else self._owner,
            guarded=inherits,  # a request's run within it is its owner's
            creates_thread=True,
            request_id=None if outer is None else outer.request_id,
            traceparent=None if outer is None else outer.traceparent,
            describe=lambda: (self._metadata, self._kwargs),
        )
        run.outer = outer
        if self._multitask_strategy is not None:
            run.multitask_strategy = self._multitask_strategy
        await self._opening.write_row(run)
        self._run = run
        current_run_var.set(run)
        return run

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._run is not None
        current_run_var.set(self._outer)
        end = self._opening.finish(self._run, self._outcome(exc))
        assert end is not None  # its row is there
        with suppress(TimeoutError):
            async with asyncio.timeout(FINISH_PATIENCE):
                await end.written()
        if exc is None and end.lost:
            raise StoreUnavailableError(f"The end of run {self._run.run_id} came after the tracker was closed.")
        if exc is None and not end.is_written:
            raise StoreUnavailableError(
                f"The end of run {self._run.run_id} is not written yet: it is tried again while the process lives."
            )

    def _outcome(self, exc: BaseException | None) -> Outcome:
        assert self._run is not None
        if exc is None:
            return succeeded()
        conflict = self._run.conflict
        return stopped(conflict) if conflict is not None and is_stopped(self._run, exc) else raised(exc, "in the run")
