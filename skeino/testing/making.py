"""Runs and their ends, with what a test does not care about filled in."""

from datetime import UTC, datetime, timedelta
from typing import Any, cast

from skeino.persistence import MetadataStoreProtocol, RunFinish, RunRow, ThreadRow
from skeino.runs import new_id

WORKER = "worker-1"
T0 = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """So many seconds after `T0`."""
    return T0 + timedelta(seconds=seconds)


async def started(store: MetadataStoreProtocol, thread_id: str | None = None, **arguments: Any) -> str:
    """The id of a run that has just been started; `arguments` are those of `start_run`."""
    run_id = arguments.pop("run_id", None) or new_id()
    await store.start_run(run_id, **{"worker_id": WORKER, "thread_id": thread_id, **arguments})
    return run_id


def ending(run_id: str, **changes: Any) -> RunFinish:
    """A successful end of the run, a minute from `T0`, with changes."""
    finish: RunFinish = {
        "run_id": run_id,
        "worker_id": WORKER,
        "status": "success",
        "finished_at": at(60),
        "thread_id": None,
        "thread_status": "idle",
        "error": None,
        "http_status": None,
        "metadata": {},
        "checkpoint_count": 0,
        "first_checkpoint_id": None,
        "last_checkpoint_id": None,
        "paused": False,
    }
    return cast("RunFinish", {**finish, **changes})


async def finished(store: MetadataStoreProtocol, thread_id: str | None = None, **changes: Any) -> str:
    """The id of a run that has ended; `start` are arguments of `start_run`, `changes` those of `ending`."""
    run_id = await started(store, thread_id, **changes.pop("start", {}))
    assert await store.finish_run(ending(run_id, **changes))
    return run_id


async def ended_in_turn(store: MetadataStoreProtocol, finish: RunFinish) -> bool:
    """As `finish_run`, which may queue the end when it is called: this does so when it is its turn to run."""
    return await store.finish_run(finish)


async def the_run(store: MetadataStoreProtocol, run_id: str) -> RunRow:
    """The run's row, which must be there."""
    row = await store.get_run(run_id)
    assert row is not None
    return row


async def the_thread(store: MetadataStoreProtocol, thread_id: str) -> ThreadRow:
    """The thread's row, which must be there."""
    row = await store.get_thread(thread_id)
    assert row is not None
    return row


async def everything(store: MetadataStoreProtocol) -> tuple[list[ThreadRow], list[RunRow]]:
    """All rows, to compare before and after."""
    return await store.search_threads(limit=1000), await store.search_runs(limit=1000)
