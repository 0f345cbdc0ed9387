"""`Record`: a run's row, until it is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from skeino.runs import Run
from skeino_asgi.correlation import correlation_of
from skeino_asgi.outcome import Outcome
from skeino_asgi.tasks import spawn

if TYPE_CHECKING:
    from skeino_asgi.opening import Opening

Describe = Callable[[], tuple[Mapping[str, Any], Mapping[str, Any] | None]]
"""Says with which `metadata` and `kwargs` a run's row begins; asked when the row is written."""


class Record:
    """A run's row that is not written yet."""

    __slots__ = ("_describe", "_opening", "_run", "_thread_id", "_writing", "outcome")

    def __init__(self, opening: Opening, run: Run, describe: Describe | None) -> None:
        self._opening = opening
        self._run = run
        self._thread_id = run.thread_id  # the request's; one that the handler chooses is attached to it
        self._describe = describe
        self._writing: asyncio.Task[None] | None = None
        self.outcome: Outcome | None = None  # of a run that ended before anybody used it

    async def __call__(self) -> None:
        """Write the row now that the run is used; once, however many ask for it, and whoever of them is cancelled.

        Raises:
            ThreadNotFoundError, InvalidInputError, StoreUnavailableError: as `start_run`; the next to ask tries again.
        """
        if self._writing is None:
            self._writing = spawn(self._write_late(), "skeino start of run")
        await asyncio.shield(self._writing)

    async def write(self) -> None:
        """Write the row; again, if need be: the store knows the run by its id."""
        run = self._run
        metadata, kwargs = ({}, None) if self._describe is None else self._describe()
        if run.traceparent is not None:
            kwargs = {**(kwargs or {}), "traceparent": run.traceparent}
        await self._opening.persistence.metadata_store.start_run(
            run.run_id,
            worker_id=self._opening.worker_id,
            thread_id=self._thread_id,
            create_thread=run.creates_thread,
            owner=run.owner,
            metadata={**correlation_of(run), **metadata},
            kwargs=kwargs,
            created_at=run.started_at,
        )
        run.record = None
        if self._thread_id is not None and run.creates_thread:
            run.mark_attached(self._thread_id)

    async def _write_late(self) -> None:
        try:
            await self.write()
        finally:
            self._writing = None
        if self.outcome is not None:
            self._opening.finish(self._run, self.outcome)
