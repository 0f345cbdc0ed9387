"""`MetadataStoreProtocol`: the contract of every metadata store, written down once.

All implementations pass the same test-suite, so what is said here holds on each of them:

- Ids are validated before anything is written, JSON values too (`skeino.validation`); `InvalidInputError`.
- Rows are copies. Times are aware UTC, of the process that wrote them, to the microsecond.
- No exception of a driver escapes: `StoreUnavailableError` when the database cannot be reached or is too slow.
- A thread that belongs to another owner is treated as one that does not exist.
- A store that has the method of `skeino.persistence.leases.LeasingStore` as well keeps leases: the runs of a process
  that dies are ended by others. Without it they stay active.
- Lists have a stable order: the chosen column, then the id, so pages neither overlap nor leave gaps.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol, TypedDict, Unpack, runtime_checkable

from skeino.persistence.rows import (
    ANY_OWNER,
    MetadataFilter,
    OwnerFilter,
    RunError,
    RunFinish,
    RunRow,
    RunStatus,
    ThreadRow,
    ThreadStatus,
    ThreadTTL,
)

ThreadSort = Literal["created_at", "updated_at", "thread_id"]
RunSort = Literal["created_at", "finished_at", "run_id"]
SortOrder = Literal["asc", "desc"]

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000


class RunStart(TypedDict, total=False):
    """What may be known when a run starts."""

    thread_id: str | None
    """The thread that the run works on; its status reads `busy` until the run ends."""
    create_thread: bool
    """Default True. False for a run that only reads: it is not tied to the thread until it ends, so the thread is
    neither created nor busy. It is refused all the same if another owns the thread."""
    owner: str | None
    """The tenant or user; a thread created here gets it, an existing one must have the same."""
    metadata: Mapping[str, Any] | None
    """A JSON object kept with the run."""
    kwargs: Mapping[str, Any] | None
    """A JSON object that says what was asked: method and path of a request, say."""
    created_at: datetime | None
    """Aware; default now."""


class NewThread(TypedDict, total=False):
    """What may be known of a new thread."""

    owner: str | None
    """The tenant or user it belongs to, for good."""
    metadata: Mapping[str, Any] | None
    """A JSON object to search by."""
    config: Mapping[str, Any] | None
    """A JSON object."""
    ttl: ThreadTTL | None
    """How long it lives after its last change; None is for ever. Left out, it is what the store was opened with
    (`CheckpointerSpec.thread_ttl`), as for a thread that a run makes."""


class Search(TypedDict, total=False):
    """The conditions that searches for threads and for runs share; rows must satisfy every one given."""

    metadata: MetadataFilter | None
    """Top-level keys, each with the scalar that it must equal (None: present, and null)."""
    ids: Collection[str] | None
    """These ids only, at most 1000; an empty collection matches nothing."""
    owner: OwnerFilter
    """Of this owner only; None means rows without an owner, the default is rows of all."""
    created_after: datetime | None
    """Created at this time or later; aware."""
    created_before: datetime | None
    """Created before this time; aware."""
    sort_order: SortOrder
    """"desc" (the default) or "asc"."""
    limit: int
    """Rows at the most: 1 to 1000, default 100."""
    offset: int
    """Rows to leave out first, default 0."""


class ThreadSearch(Search, total=False):
    """The arguments of `search_threads`."""

    status: ThreadStatus | Collection[ThreadStatus] | None
    """One status or several; an empty collection matches nothing."""
    sort_by: ThreadSort
    """Default "updated_at". Rows equal in it follow by id."""


class RunSearch(Search, total=False):
    """The arguments of `search_runs`."""

    thread_id: str | None
    """Of this thread only."""
    status: RunStatus | Collection[RunStatus] | None
    """One status or several; an empty collection matches nothing."""
    sort_by: RunSort
    """Default "created_at". Rows equal in it follow by id; unfinished runs count as the latest."""


@runtime_checkable
class MetadataStoreProtocol(Protocol):
    """Where threads and runs have their rows."""

    # ── A run's life ─────────────────────────────────────────────────────────────────────────────────────

    async def start_run(self, run_id: str, *, worker_id: str, **start: Unpack[RunStart]) -> None:
        """Write the run's row, `running`, and its thread's if there is none; committed when this returns.

        Safe to repeat: the second call with the same `run_id` changes nothing.

        Args:
            run_id: a UUID made by the caller.
            worker_id: the process that owns the run; only it may finish it.
            start: what else is known; see `RunStart`.

        Raises:
            ThreadNotFoundError: the thread belongs to another owner. Nothing was written.
        """
        ...

    async def attach_thread(self, run_id: str, thread_id: str, *, owner: str | None) -> None:
        """Create the thread if there is none, and make it the run's if the run has none yet.

        Raises:
            ThreadNotFoundError: the thread belongs to another owner. Nothing was written.
        """
        ...

    def finish_run(self, finish: RunFinish) -> Awaitable[bool]:
        """Write how the run ended, and its thread's status with it, in one transaction.

        A coroutine function will do. A function that queues it before it returns, and returns a future, saves the
        middleware a task for each request.

        Returns:
            True if this call, or an earlier one of the same `finish`, ended the run. False if it was too
            late: the run had ended otherwise, is another worker's, or is gone; a deleted thread does not come
            back. Nothing was changed then, but that the first such finish by the worker of a run that had ended
            otherwise is kept in its `late_outcome`.
        """
        ...

    async def interrupt_runs(self, worker_id: str, error: RunError) -> int:
        """End all active runs of this worker as `interrupted`, their threads with them; returns how many."""
        ...

    # ── Runs ─────────────────────────────────────────────────────────────────────────────────────────────

    async def get_run(self, run_id: str, *, owner: OwnerFilter = ANY_OWNER) -> RunRow | None:
        """The run's row, or None."""
        ...

    async def search_runs(self, **search: Unpack[RunSearch]) -> list[RunRow]:
        """The runs that satisfy every condition, newest first; filtered, sorted and cut by the database.

        Raises:
            InvalidInputError: a condition's value cannot be meant.
            TypeError: there is no such condition.
        """
        ...

    async def update_run(self, run_id: str, *, metadata: Mapping[str, Any], owner: OwnerFilter = ANY_OWNER) -> RunRow:
        """Merge `metadata` over the run's, key by key, and return the new row.

        Raises:
            RunNotFoundError: there is no such run.
        """
        ...

    # ── Threads ──────────────────────────────────────────────────────────────────────────────────────────

    async def create_thread(
        self, thread_id: str, *, if_exists: Literal["raise", "do_nothing"] = "raise", **thread: Unpack[NewThread]
    ) -> ThreadRow:
        """Write a thread's row and return it; with `if_exists="do_nothing"` an existing one as it is.

        Raises:
            ThreadExistsError: it exists already, and `if_exists` is "raise".
            ThreadNotFoundError: it exists and belongs to another owner, and `if_exists` is "do_nothing".
        """
        ...

    async def get_thread(self, thread_id: str, *, owner: OwnerFilter = ANY_OWNER) -> ThreadRow | None:
        """The thread's row, or None."""
        ...

    async def search_threads(self, **search: Unpack[ThreadSearch]) -> list[ThreadRow]:
        """The threads that satisfy every condition, last changed first; filtered, sorted and cut by the database.

        Raises:
            InvalidInputError: a condition's value cannot be meant.
            TypeError: there is no such condition.
        """
        ...

    async def update_thread(
        self,
        thread_id: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        ttl: ThreadTTL | Literal["keep"] | None = "keep",
        owner: OwnerFilter = ANY_OWNER,
    ) -> ThreadRow:
        """Merge `metadata` key by key, replace `config` and `ttl` where given, and return the new row.

        Raises:
            ThreadNotFoundError: there is no such thread.
        """
        ...

    async def delete_thread(
        self,
        thread_id: str,
        *,
        force: bool = False,
        owner: OwnerFilter = ANY_OWNER,
        ignore_run: str | None = None,
    ) -> None:
        """Delete the thread's row and its runs'. Its checkpoints are the checkpointer's: see
        `Persistence.delete_thread`, which deletes both halves.

        Args:
            thread_id: the thread.
            force: delete it even though a run is active.
            owner: only if it is this owner's.
            ignore_run: the run that asks for the deletion: it does not count as active, and its row is kept,
                without the thread.

        Raises:
            ThreadNotFoundError: there is no such thread.
            ThreadBusyError: it has an active run, and `force` is False. Nothing was deleted.
        """
        ...

    # ── Rows put back as they were ───────────────────────────────────────────────────────────────────────

    async def restore_threads(self, rows: Sequence[ThreadRow]) -> int:
        """Write thread rows exactly as they are, times included, in one transaction; for copies and backups.

        A row whose id is there already stays as it is. `busy` is derived and never stored, so a row that reads
        `busy` is written as `idle`: its active runs, once restored, make it busy again.

        Args:
            rows: complete rows, at most 1000.

        Returns:
            How many were new.
        """
        ...

    async def restore_runs(self, rows: Sequence[RunRow]) -> int:
        """Write run rows exactly as they are, active ones included, in one transaction; for copies and backups.

        A row whose id is there already stays as it is.

        Args:
            rows: complete rows, at most 1000.

        Returns:
            How many were new.

        Raises:
            ThreadNotFoundError: the thread of one of them is missing, or has another owner than the run.
                Nothing was written.
        """
        ...
