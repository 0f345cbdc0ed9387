"""`InMemorySweeps`: what is due in dictionaries, and what is done about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.base import BaseCheckpointSaver

from skeino.persistence.rows import ACTIVE_STATUSES, RunRow, ThreadRow
from skeino.persistence.sweeping import Due, Expiry, Strategy, remove_state

if TYPE_CHECKING:
    from skeino.persistence.memory.store import InMemoryMetadataStore


class InMemorySweeps:
    """Sweeps in memory; see `Sweeps` for what each operation promises.

    Args:
        store: whose rows they are.
        threads: its rows, by their ids.
        runs: the same.
        active: its threads that have active runs, with their ids.
    """

    def __init__(
        self,
        store: InMemoryMetadataStore,
        threads: dict[str, ThreadRow],
        runs: dict[str, RunRow],
        active: Mapping[str, Collection[str]],
    ) -> None:
        self._store = store
        self._threads, self._runs, self._active = threads, runs, active
        self.expiring: dict[str, asyncio.Event] = {}
        """Threads whose state is being deleted or pruned: a run that wants one waits until that is done."""
        self._pruned: dict[str, datetime] = {}  # thread id → which change of it has been pruned
        self._worker_id = ""
        self._begun_at = self._expires_at = float("-inf")

    async def begin(self, worker_id: str, *, seconds: float, interval: float) -> float:
        now = time.monotonic()
        free = max(self._expires_at, self._begun_at + interval)
        if free > now:
            return max(0.1, free - now)
        self._worker_id, self._begun_at, self._expires_at = worker_id, now, now + seconds
        self._pruned = {thread_id: at for thread_id, at in self._pruned.items() if thread_id in self._threads}
        return 0.0

    async def renew(self, worker_id: str, *, seconds: float) -> bool:
        if self._worker_id != worker_id:
            return False
        self._expires_at = time.monotonic() + seconds
        return True

    async def end(self, worker_id: str) -> None:
        await self.renew(worker_id, seconds=0.0)

    async def count_due(self, run_retention: timedelta | None) -> Due:
        strategies = [strategy for _, strategy in self._due()]
        runs = 0 if run_retention is None else sum(1 for _ in self._finished(run_retention))
        return Due(strategies.count("delete"), strategies.count("keep_latest"), runs)

    async def due_threads(
        self, *, strategies: Collection[Strategy], limit: int, leave_out: Collection[str] = ()
    ) -> list[str]:
        due = [thread_id for thread_id, strategy in self._due() if strategy in strategies]
        return [thread_id for thread_id in due if thread_id not in leave_out][:limit]

    async def expire_thread(self, thread_id: str, checkpointer: BaseCheckpointSaver[Any]) -> Expiry:
        strategy = None if thread_id in self.expiring else self._strategy_of(thread_id)
        if strategy is None:
            return "kept"
        seen = self._threads[thread_id]["updated_at"]
        self.expiring[thread_id] = done = asyncio.Event()
        try:
            # Its state first: if that fails, of a database that has gone away say, the thread is still due.
            expiry = await remove_state(checkpointer, thread_id, strategy)
            if thread_id not in self._threads:  # it was deleted meanwhile
                return "kept"
            if expiry == "deleted":
                await self._store.delete_thread(thread_id)
            else:
                self._pruned[thread_id] = seen
            return expiry
        finally:
            del self.expiring[thread_id]
            done.set()

    async def delete_finished_runs(self, older_than: timedelta, *, limit: int) -> int:
        gone = [run_id for run_id, _ in zip(self._finished(older_than), range(limit), strict=False)]
        for run_id in gone:
            del self._runs[run_id]
        return len(gone)

    def _due(self) -> Iterator[tuple[str, Strategy]]:
        for thread_id, thread in self._threads.items():
            if thread["ttl"] is not None and self._is_due(thread):
                yield thread_id, thread["ttl"]["strategy"]

    def _strategy_of(self, thread_id: str) -> Strategy | None:
        """What is to be done with the thread; None if it is not due, or in use."""
        thread = self._threads.get(thread_id)
        if thread is None or thread["ttl"] is None or self._active.get(thread_id) or not self._is_due(thread):
            return None
        return thread["ttl"]["strategy"]

    def _is_due(self, thread: ThreadRow) -> bool:
        if thread["ttl"] is None or self._pruned.get(thread["thread_id"]) == thread["updated_at"]:
            return False
        return datetime.now(UTC) - thread["updated_at"] > timedelta(minutes=thread["ttl"]["ttl"])

    def _finished(self, older_than: timedelta) -> Iterator[str]:
        before = datetime.now(UTC) - older_than
        for run_id, run in self._runs.items():
            ended = run["finished_at"]
            if ended is not None and ended < before and run["status"] not in ACTIVE_STATUSES:
                yield run_id
