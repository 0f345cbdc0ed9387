"""`InMemoryMetadataStore`: threads and runs in dictionaries."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar, Unpack, cast

from skeino.errors import (
    ConfigurationError,
    RunNotFoundError,
    ThreadBusyError,
    ThreadExistsError,
    ThreadNotFoundError,
)
from skeino.persistence.claims import Queue
from skeino.persistence.memory.sweeps import InMemorySweeps
from skeino.persistence.protocol import NewThread, RunSearch, RunStart, ThreadSearch
from skeino.persistence.queries import (
    Query,
    checked_error,
    checked_finish,
    checked_if_exists,
    checked_owner,
    checked_ttl_change,
    late_outcome_of,
    new_run,
    new_thread,
    run_query,
    thread_query,
)
from skeino.persistence.restoring import owners_of_threads, restored_runs, restored_threads
from skeino.persistence.rows import (
    ACTIVE_STATUSES,
    ANY_OWNER,
    OwnerFilter,
    RunError,
    RunFinish,
    RunRow,
    SettledStatus,
    ThreadRow,
    ThreadTTL,
)
from skeino.validation import (
    Scalar,
    validate_id,
    validate_json_object,
    validate_optional_json_object,
    validate_run_id,
    validate_thread_id,
)

RowT = TypeVar("RowT", ThreadRow, RunRow)

MAX_RUNS = 10_000


class InMemoryMetadataStore:
    """Threads and runs in dictionaries: for tests, demos, and state that may die with the process.

    Args:
        max_runs: how many runs to keep; beyond it the oldest finished ones are forgotten. Threads are kept.
        thread_ttl: the `ttl` of threads that are not given one.
    """

    def __init__(self, *, max_runs: int = MAX_RUNS, thread_ttl: ThreadTTL | None = None) -> None:
        if max_runs < 1:
            raise ConfigurationError("max_runs must be at least 1.")
        self._max_runs = max_runs
        self._thread_ttl = thread_ttl
        self._threads: dict[str, ThreadRow] = {}
        self._runs: OrderedDict[str, RunRow] = OrderedDict()  # in the order of their start
        self._active: dict[str, set[str]] = {}  # thread id → its active runs
        self._queues: dict[str, tuple[str, ...]] = {}  # thread id → the runs that want to write to it
        self._fences: dict[str, int] = {}
        self._sweeps = InMemorySweeps(self, self._threads, self._runs, self._active)

    # ── A run's life ─────────────────────────────────────────────────────────────────────────────────────

    async def start_run(self, run_id: str, *, worker_id: str, **start: Unpack[RunStart]) -> None:
        run = new_run(run_id, worker_id, start)
        thread_id, owner, create_thread = run["thread_id"], run["owner"], start.get("create_thread", True)
        if thread_id is not None:
            await self._while_it_expires(thread_id)
            self._refuse_other_owner(thread_id, owner)
        if run_id in self._runs:
            return
        if thread_id is not None and create_thread:
            new = new_thread(thread_id, {"owner": owner}, run["created_at"], default_ttl=self._thread_ttl)
            self._threads.setdefault(thread_id, new)
            self._active.setdefault(thread_id, set()).add(run_id)
        else:
            run["thread_id"] = None
        self._runs[run_id] = run
        self._forget_the_oldest()

    async def attach_thread(self, run_id: str, thread_id: str, *, owner: str | None) -> None:
        thread = new_thread(thread_id, {"owner": owner}, default_ttl=self._thread_ttl)
        await self._while_it_expires(thread_id)
        run = self._runs.get(validate_run_id(run_id))
        self._refuse_other_owner(thread_id, owner)
        self._threads.setdefault(thread_id, thread)
        if run is not None and run["thread_id"] is None and run["status"] in ACTIVE_STATUSES:
            run["thread_id"] = thread_id
            self._active.setdefault(thread_id, set()).add(run_id)

    # ── Who writes to a thread ───────────────────────────────────────────────────────────────────────────

    async def claim_thread(self, run_id: str, thread_id: str, *, owner: str | None) -> int | None:
        await self.attach_thread(run_id, thread_id, owner=owner)
        return await self.change_queue(thread_id, (), (run_id,), takes=True)

    async def get_queue(self, thread_id: str) -> Queue | None:
        if validate_thread_id(thread_id) not in self._threads:
            return None
        run_ids = self._queues.get(thread_id, ())
        return Queue(run_ids, frozenset(run_id for run_id in run_ids if self._is_active(run_id)))

    async def change_queue(
        self, thread_id: str, seen: Sequence[str], wanted: Sequence[str], *, takes: bool
    ) -> int | None:
        before = tuple(validate_run_id(run_id) for run_id in seen)
        after = tuple(validate_run_id(run_id) for run_id in wanted)
        if validate_thread_id(thread_id) not in self._threads or self._queues.get(thread_id, ()) != before:
            return None
        self._queues[thread_id] = after
        fence = self._fences.get(thread_id)
        if fence is None:
            fence = time.time_ns()
        self._fences[thread_id] = fence = fence + int(takes)
        return fence

    async def release_thread(self, run_id: str, thread_id: str) -> None:
        gone = validate_run_id(run_id)
        left = tuple(one for one in self._queues.pop(validate_thread_id(thread_id), ()) if one != gone)
        if left:
            self._queues[thread_id] = left

    def fence_here(self, thread_id: str) -> int | None:
        """The thread's fence now, for the checkpointer to look at before it writes; None if nobody has had it."""
        return self._fences.get(thread_id)

    def _is_active(self, run_id: str) -> bool:
        run = self._runs.get(run_id)
        return run is not None and run["status"] in ACTIVE_STATUSES

    # ── A run's end ──────────────────────────────────────────────────────────────────────────────────────

    def finish_run(self, finish: RunFinish) -> Awaitable[bool]:
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        answer.set_result(self._finish(checked_finish(finish)))
        return answer

    def _finish(self, finish: RunFinish) -> bool:
        run = self._runs.get(finish["run_id"])
        if run is None or run["worker_id"] != finish["worker_id"]:
            return False
        if run["status"] not in ACTIVE_STATUSES:
            if run["status"] == finish["status"] and run["finished_at"] == finish["finished_at"]:
                return True
            if run["late_outcome"] is None:
                run["late_outcome"] = late_outcome_of(finish)
            return False
        self._end(run, finish)
        return True

    async def interrupt_runs(self, worker_id: str, error: RunError) -> int:
        validate_id(worker_id, "worker_id")
        checked = checked_error(error)
        now = datetime.now(UTC)
        mine = [
            run for run in self._runs.values() if run["worker_id"] == worker_id and run["status"] in ACTIVE_STATUSES
        ]
        for run in mine:
            self._settle(run["thread_id"], run["run_id"], "interrupted", now)
            run["status"], run["finished_at"], run["error"] = "interrupted", now, checked
        return len(mine)

    # ── Runs ─────────────────────────────────────────────────────────────────────────────────────────────

    async def get_run(self, run_id: str, *, owner: OwnerFilter = ANY_OWNER) -> RunRow | None:
        run, owner = self._runs.get(validate_run_id(run_id)), checked_owner(owner)
        return deepcopy(run) if run is not None and _is_of(run, owner) else None

    async def search_runs(self, **search: Unpack[RunSearch]) -> list[RunRow]:
        query = run_query(search)
        found: Iterable[RunRow] = self._runs.values()
        if query.thread_id is not None:
            found = (run for run in found if run["thread_id"] == query.thread_id)
        return _page(found, query, lambda run: run["run_id"])

    async def update_run(self, run_id: str, *, metadata: Mapping[str, Any], owner: OwnerFilter = ANY_OWNER) -> RunRow:
        changes = validate_json_object(metadata, "metadata")
        run, owner = self._runs.get(validate_run_id(run_id)), checked_owner(owner)
        if run is None or not _is_of(run, owner):
            raise RunNotFoundError(f"There is no run {run_id}.")
        run["metadata"] |= changes
        return deepcopy(run)

    # ── Threads ──────────────────────────────────────────────────────────────────────────────────────────

    async def create_thread(
        self, thread_id: str, *, if_exists: Literal["raise", "do_nothing"] = "raise", **thread: Unpack[NewThread]
    ) -> ThreadRow:
        checked_if_exists(if_exists)
        row = new_thread(thread_id, thread, default_ttl=self._thread_ttl)
        if thread_id in self._threads:
            if if_exists == "raise":
                raise ThreadExistsError(f"There is a thread {thread_id!r} already.")
            self._refuse_other_owner(thread_id, row["owner"])
        return self._seen(self._threads.setdefault(thread_id, row))

    async def get_thread(self, thread_id: str, *, owner: OwnerFilter = ANY_OWNER) -> ThreadRow | None:
        thread, owner = self._threads.get(validate_thread_id(thread_id)), checked_owner(owner)
        return self._seen(thread) if thread is not None and _is_of(thread, owner) else None

    async def search_threads(self, **search: Unpack[ThreadSearch]) -> list[ThreadRow]:
        threads = (self._with_status(thread) for thread in self._threads.values())
        return _page(threads, thread_query(search), lambda thread: thread["thread_id"])

    async def update_thread(
        self,
        thread_id: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        ttl: ThreadTTL | Literal["keep"] | None = "keep",
        owner: OwnerFilter = ANY_OWNER,
    ) -> ThreadRow:
        merged = validate_optional_json_object(metadata, "metadata")
        replaced = None if config is None else validate_json_object(config, "config")
        new_ttl = checked_ttl_change(ttl)
        thread, owner = self._threads.get(validate_thread_id(thread_id)), checked_owner(owner)
        if thread is None or not _is_of(thread, owner):
            raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
        thread["metadata"] |= merged
        if replaced is not None:
            thread["config"] = replaced
        if new_ttl != "keep":
            thread["ttl"] = new_ttl
        thread["updated_at"] = datetime.now(UTC)
        return self._seen(thread)

    async def delete_thread(
        self,
        thread_id: str,
        *,
        force: bool = False,
        owner: OwnerFilter = ANY_OWNER,
        ignore_run: str | None = None,
    ) -> None:
        ignored = set() if ignore_run is None else {validate_run_id(ignore_run)}
        thread, owner = self._threads.get(validate_thread_id(thread_id)), checked_owner(owner)
        if thread is None or not _is_of(thread, owner):
            raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
        if not force and self._active.get(thread_id, set()) - ignored:
            raise ThreadBusyError(f"The thread {thread_id!r} has an active run: wait for it, or use force=True.")
        del self._threads[thread_id]
        for kept in (self._active, self._queues, self._fences):
            kept.pop(thread_id, None)
        for run_id in [run_id for run_id, run in self._runs.items() if run["thread_id"] == thread_id]:
            if run_id in ignored:
                self._runs[run_id]["thread_id"] = None
            else:
                del self._runs[run_id]

    # ── What is due ──────────────────────────────────────────────────────────────────────────────────────

    def sweeps(self) -> InMemorySweeps:
        return self._sweeps

    # ── Rows put back as they were ───────────────────────────────────────────────────────────────────────

    async def restore_threads(self, rows: Sequence[ThreadRow]) -> int:
        new = [row for row in restored_threads(rows) if row["thread_id"] not in self._threads]
        self._threads |= {row["thread_id"]: row for row in new}
        return len(new)

    async def restore_runs(self, rows: Sequence[RunRow]) -> int:
        runs = restored_runs(rows)
        for thread_id, owner in sorted(owners_of_threads(runs), key=str):
            if thread_id not in self._threads:
                raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
            self._refuse_other_owner(thread_id, owner)
        new = [run for run in runs if run["run_id"] not in self._runs]
        for run in new:
            self._runs[run["run_id"]] = run
            if run["thread_id"] is not None and run["status"] in ACTIVE_STATUSES:
                self._active.setdefault(run["thread_id"], set()).add(run["run_id"])
        self._forget_the_oldest()
        return len(new)

    # ── Helpers ──────────────────────────────────────────────────────────────────────────────────────────

    async def _while_it_expires(self, thread_id: str) -> None:
        """Wait until no sweep is about to delete the thread's state, which may be in a database."""
        while (expiring := self._sweeps.expiring.get(thread_id)) is not None:
            await expiring.wait()

    def _refuse_other_owner(self, thread_id: str, owner: str | None) -> None:
        thread = self._threads.get(thread_id)
        if thread is not None and thread["owner"] != owner:
            raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")

    def _seen(self, thread: ThreadRow) -> ThreadRow:
        """A copy of the row as a reader sees it."""
        return deepcopy(self._with_status(thread))

    def _with_status(self, thread: ThreadRow) -> ThreadRow:
        """The row, busy while a run is active; a shallow copy, if any."""
        return {**thread, "status": "busy"} if self._active.get(thread["thread_id"]) else thread

    def _end(self, run: RunRow, finish: RunFinish) -> None:
        linked = None if finish["thread_id"] is None else self._threads.get(finish["thread_id"])
        if run["thread_id"] is None and linked is not None and linked["owner"] == run["owner"]:
            run["thread_id"] = finish["thread_id"]
        self._settle(run["thread_id"], run["run_id"], finish["thread_status"], finish["finished_at"])
        run["metadata"] |= finish["metadata"]
        run["status"], run["error"], run["http_status"] = finish["status"], finish["error"], finish["http_status"]
        run["finished_at"], run["paused"] = finish["finished_at"], finish["paused"]
        run["checkpoint_count"] = finish["checkpoint_count"]
        run["first_checkpoint_id"] = finish["first_checkpoint_id"]
        run["last_checkpoint_id"] = finish["last_checkpoint_id"]

    def _settle(self, thread_id: str | None, run_id: str, status: SettledStatus | None, at: datetime) -> None:
        if thread_id is None:
            return
        active = self._active.get(thread_id, set())
        active.discard(run_id)
        if not active:
            self._active.pop(thread_id, None)
        thread = self._threads.get(thread_id)
        if thread is not None and status is not None:
            thread["status"] = status
            thread["updated_at"] = max(thread["updated_at"], at)

    def _forget_the_oldest(self) -> None:
        while len(self._runs) > self._max_runs:
            oldest = next((run for run in self._runs.values() if run["status"] not in ACTIVE_STATUSES), None)
            if oldest is None:
                return
            del self._runs[oldest["run_id"]]


def _is_of(row: ThreadRow | RunRow, owner: OwnerFilter) -> bool:
    return owner is ANY_OWNER or row["owner"] == owner


def _page(rows: Iterable[RowT], query: Query, id_of: Callable[[RowT], str]) -> list[RowT]:
    """The rows that the query wants, sorted and cut; copies."""
    found = [row for row in rows if _matches(row, query, id_of(row))]
    found.sort(key=lambda row: (_sort_key(row, query.sort_by), id_of(row)), reverse=query.descending)
    return [deepcopy(row) for row in found[query.offset : query.offset + query.limit]]


def _matches(row: ThreadRow | RunRow, query: Query, row_id: str) -> bool:
    return (
        (query.statuses is None or row["status"] in query.statuses)
        and (query.ids is None or row_id in query.ids)
        and _is_of(row, query.owner)
        and (query.created_after is None or row["created_at"] >= query.created_after)
        and (query.created_before is None or row["created_at"] < query.created_before)
        and (
            query.metadata is None
            or all(
                key in row["metadata"] and _json_equal(row["metadata"][key], wanted)
                for key, wanted in query.metadata.items()
            )
        )
    )


def _json_equal(stored: object, wanted: Scalar) -> bool:
    """Equality as JSON has it: 1 is 1.0, but neither is true."""
    return isinstance(stored, bool) == isinstance(wanted, bool) and stored == wanted


def _sort_key(row: ThreadRow | RunRow, column: str) -> Any:
    value = cast("dict[str, Any]", row)[column]
    return (value is None, value) if column == "finished_at" else value
