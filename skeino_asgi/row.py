"""`write_row()`: a run's row, as it begins."""

from __future__ import annotations

from skeino.persistence.protocol import MetadataStoreProtocol, RunStart
from skeino.persistence.repeating import PATIENCE, repeated
from skeino.runs import Run
from skeino_asgi.correlation import correlation_of


async def write_row(run: Run, store: MetadataStoreProtocol, worker_id: str, *, with_thread: bool = True) -> None:
    """Write the row; again, if need be: the store knows the run by its id, and it stays the worker's who tried first.

    Where the store's answer is lost, it is asked again, for as long as `repeating.PATIENCE` says.

    Raises:
        ThreadNotFoundError, InvalidInputError, StoreUnavailableError: as `start_run`.
    """
    metadata, kwargs = ({}, None) if run.describe is None else run.describe()
    if run.traceparent is not None:
        kwargs = {**(kwargs or {}), "traceparent": run.traceparent}
    thread_id = run.thread_id if with_thread else None
    owned_by = run.worker_id = run.worker_id or worker_id
    start = RunStart(
        thread_id=thread_id,
        create_thread=run.creates_thread,
        owner=run.owner,
        metadata={**correlation_of(run), **metadata},
        kwargs=kwargs,
        created_at=run.started_at,
    )
    await repeated(lambda: store.start_run(run.run_id, worker_id=owned_by, **start), patience=PATIENCE)
    run.write_row = None
    if thread_id is not None and run.creates_thread:
        run.mark_attached(thread_id)
